"""The broker's books follow the system while it runs: workers come, rest and go, settings change.

Called by ``broker``; works on the ``Ledger``.  Whoever decides is the supervisor: it says which
topology holds, and of each worker whether it is to be spared (``DRAIN``).  Both are said again and
again, so a broker that has just started learns what the one before it knew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from .actions import Drained, Note, Outbox, Recall
from .children import ChildState
from .ejection import end_all, forget
from .errors import UnknownTask
from .fleet import Worker
from .frames import Kind, control_frame, task_of
from .ledger import STALL_CHECK_S, Ledger
from .sizes import TASK_MASK
from .topology import Topology, WorkerConfig

_STATES: Final = frozenset(state.value for state in ChildState)


def follow_topology(
    ledger: Ledger, topology: Topology, names: Sequence[str], now: float, outbox: Outbox
) -> list[Worker]:
    """Take over another topology; returns the workers that it no longer has.

    ``names`` are the workers' names by number.  Those returned hold requests still, if any.
    """
    limits, policy = ledger.limits, ledger.topology.policy
    ledger.topology, ledger.limits = topology, topology.limits
    known = len(ledger.fleet.workers)
    gone = _match_workers(ledger, topology, names, now)
    if topology.policy != policy:
        _change_policy(ledger, topology, now, outbox)
    if topology.limits.frame_bytes != limits.frame_bytes:
        for client in ledger.clients.values():
            client.buffer.set_limit(topology.limits.frame_bytes)
        _raise_reply_limit(ledger)
    if len(ledger.fleet.workers) != known or topology.limits.frame_bytes != limits.frame_bytes:
        frame = control_frame(Kind.WORKERS, ledger.worker_news())
        for number in ledger.clients:
            outbox.to_client(number, frame)
    return gone


def _match_workers(
    ledger: Ledger, topology: Topology, names: Sequence[str], now: float
) -> list[Worker]:
    fleet = ledger.fleet
    present = {worker.name: worker for worker in topology.workers}
    known = {worker.name: None for worker in fleet.workers}
    assert all(map(str.__eq__, known, names)), "numbers do not change"
    for name in dict.fromkeys((*names, *present)):
        if name not in known:
            fleet.add(present.get(name, WorkerConfig(name=name)), name in present)
    for worker in fleet.workers:
        config = present.get(worker.name)
        if config is None or worker.name in fleet.by_name:
            continue
        # it comes back under its old number
        worker.state, worker.restarts = ChildState.STARTING, 0
        worker.config = config
        worker.forget_speed()
        fleet.by_name[worker.name] = worker
    gone = [worker for name, worker in fleet.by_name.items() if name not in present]
    fleet.by_name = {name: fleet.by_name[name] for name in present}
    for worker in fleet.by_name.values():
        if worker.config != present[worker.name]:
            _reconfigure(ledger, worker, present[worker.name], now)
    fleet.weight_max = max(worker.weight for worker in topology.workers)
    return gone


def _reconfigure(ledger: Ledger, worker: Worker, config: WorkerConfig, now: float) -> None:
    """``concurrency`` counts from the next process on: it is what that one was started with."""
    fleet, weight = ledger.fleet, worker.config.weight
    worker.config = config
    if config.weight != weight:
        # what was learned belongs to the old word for it
        worker.forget_speed()
        fleet.speed_version += 1
        ledger.changed(worker, now, keep_place=True)


def _change_policy(ledger: Ledger, topology: Topology, now: float, outbox: Outbox) -> None:
    """Another policy, or other weights in it: its index of the workers is made anew."""
    fleet = ledger.fleet
    fleet.policy = topology.policy
    fleet.speed_version += 1
    was_late = ledger.policy.late_binding
    ledger.policy = ledger.policies[topology.policy.name](fleet, ledger.policy.rng)
    ledger.sent.clear()
    ledger.heed_policy()
    if not topology.policy.eject:
        end_all(ledger, now)
    for worker in fleet.ready:
        ledger.changed(worker, now)
    if was_late == ledger.policy.late_binding:
        return
    ledger.loaded.clear()
    ledger.hold_until = None
    if not was_late:
        # what was bound on arrival can be bound better now
        ledger.stall_at = now + STALL_CHECK_S
        for worker in fleet.ready:
            if worker.pending > worker.concurrency:
                ledger.loaded[worker.number] = worker
                ledger.recalled.add(worker.number)
                outbox.add(Recall(worker.number))


def _raise_reply_limit(ledger: Ledger) -> None:
    """Workers learn of it later, and must not be cut off for what was right when they began."""
    ledger.reply_bytes_max = max(ledger.reply_bytes_max, ledger.limits.frame_bytes)
    for buffer in ledger.buffers.values():
        buffer.set_limit(ledger.reply_bytes_max)


def retire(ledger: Ledger, worker: Worker, now: float) -> None:
    """A worker is gone for good, with nothing left of it but its name and number."""
    assert not worker.inflight, worker.name
    ledger.spared.discard(worker)
    worker.draining = False
    worker.state, worker.pid = ChildState.EXITED, None
    worker.successes = worker.failures_in_row = 0
    worker.samples.clear()
    forget(ledger, worker)
    ledger.changed(worker, now)


def drop_lost_tasks(ledger: Ledger, now: float, outbox: Outbox) -> None:
    """Answer requests of tasks that no worker has any more: new code may have fewer.

    Only when every worker is here: one that is not may bring them.  Durable requests wait on.
    Called when a worker joins, and now and then as long as there are such tasks: a request may
    come back from a worker that was lost.
    """
    workers = ledger.fleet.by_name.values()
    if not all(worker.number in ledger.buffers for worker in workers):
        ledger.lost_tasks.difference_update(*(worker.tasks for worker in workers))
        return
    offered = frozenset[int]().union(*(worker.tasks for worker in workers))
    lost = ledger.lost_tasks = set(range(len(ledger.tasks.specs))) - offered
    if not lost or not (ledger.queue.count or ledger.suspects):
        return
    waiting = [
        (request_id, run.task & TASK_MASK)
        for run in ledger.queue.runs()
        if run.task & TASK_MASK in lost
        for request_id, _ in run.waiting()
    ]
    waiting += [(request_id, task_of(frame)) for request_id, frame in ledger.suspects.items()]
    for request_id, task in waiting:
        if task in lost and request_id not in ledger.durable.open:
            ledger.take_out(request_id, now)
            error = UnknownTask(f"no worker has the task {ledger.tasks.name(task)} any more")
            ledger.answer(request_id, task, error, outbox)


def follow_process(
    ledger: Ledger, worker: Worker, view: Mapping[str, Any], now: float, outbox: Outbox
) -> None:
    """What the supervisor knows of a worker: the state of its process, restarts, CPU."""
    worker.restarts = int(view.get("restarts") or 0)
    state = str(view.get("state"))
    if state == ChildState.DRAIN:
        if not worker.draining:
            spare(ledger, worker, now, outbox)
        elif not worker.inflight:
            outbox.add(Drained(worker.number))
    else:
        worker.draining = False
        ledger.spared.discard(worker)
        if state == ChildState.RUNNING and worker.number in ledger.buffers:
            # also after it greeted while it still was to be spared, or before its start was told
            worker.state = ChildState.RUNNING
            ledger.refresh_ready(worker, now)
    # RUNNING is what the broker sees itself, by the worker's greeting
    if worker.position < 0 and not worker.solo and state in _STATES and state != ChildState.RUNNING:
        worker.state = ChildState(state)
    if "wall_s" in view:
        ledger.take_report(worker, view, now)
    if worker.availability < 1.0:
        # its last report has aged since
        ledger.changed(worker, now, keep_place=True)


def spare(ledger: Ledger, worker: Worker, now: float, outbox: Outbox) -> None:
    """Send a worker nothing more, and take back what it has not begun."""
    worker.draining = True
    ledger.spared.add(worker)
    ledger.loaded.pop(worker.number, None)
    if worker.number in ledger.buffers:
        worker.state = ChildState.DRAIN
        ledger.refresh_ready(worker, now)
    if worker.pending and worker.number in ledger.buffers:
        ledger.recalled.add(worker.number)
        outbox.add(Recall(worker.number))
    outbox.add(Note("INFO", f"{worker.name} gets nothing new; {worker.pending} requests are there"))


def tell_drained(ledger: Ledger, outbox: Outbox) -> None:
    """Say which of the spared workers have nothing left."""
    for worker in [worker for worker in ledger.spared if not worker.inflight]:
        # said once here; ``fleet_reported`` says it again as long as it is asked
        ledger.spared.discard(worker)
        outbox.add(Drained(worker.number))
