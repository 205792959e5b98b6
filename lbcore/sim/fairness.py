"""Who is served when everybody wants everything: one greedy client must not starve the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .client_process import ClientProcess
    from .run import Run

#: requests of a modest client, and how many times as many the greedy one sends before it
MODEST: Final = 60
GREED: Final = 20
#: how much more than a modest client the greedy one may have had when that one is done
SHARE_MAX: Final = 2.0
WAIT_S: Final = 60.0
TASK: Final = "short"


def check_fairness(run: Run) -> None:
    """On a quiet system a greedy client sends a lot, then the others send a little.

    When the others are done the greedy one must not have had more than its share.  Raises
    ``Violation``.
    """
    world, system, process = run.world, run.system, run.broker
    clients = [client for client in system.clients if client.alive and client.welcomed]
    if process is None or len(clients) < 2 or not process.broker.ledger.policy.late_binding:
        return
    limits = system.topology.limits
    if limits.queue < 2 * MODEST * GREED or limits.queue_bytes < 1 << 20:
        return
    greedy, *modest = clients
    if world.tracing:
        world.say(f"FAIRNESS: {greedy.name} is greedy, {len(modest)} are modest")
    greedy.send(TASK, MODEST * GREED)
    world.run(world.now + 0.005)
    before = _ended_by_itself(greedy)
    for client in modest:
        client.send(TASK, MODEST)
    end = world.now + WAIT_S
    while any(client.session.unanswered for client in modest):
        world.run(world.now + 0.005)
        if world.now > end:
            system.books.fail(f"modest clients wait for {WAIT_S:g} s beside a greedy one")
    served = _ended_by_itself(greedy) - before
    # what was with workers before, and what fits there at once, is nobody's fault
    slack = 4 * sum(worker.concurrency for worker in system.topology.workers) + 8
    if served > SHARE_MAX * MODEST + slack:
        system.books.fail(
            f"a greedy client was served {served} requests while {len(modest)} modest ones were "
            f"served {MODEST} each"
        )
    while greedy.session.unanswered:
        world.run(world.now + 0.1)
        if world.now > end + WAIT_S:
            system.books.fail("the greedy client is not served")


def _ended_by_itself(client: ClientProcess) -> int:
    """How many requests of a client were answered; what it takes back is not served."""
    books = client.books
    assert books is not None, "it is welcome"
    return books.count - client.session.unanswered - books.taken_back
