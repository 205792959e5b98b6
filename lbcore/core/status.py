"""What a running system says about itself: read-only views of the broker's books."""

from __future__ import annotations

from typing import Any, Final

from .broker import Broker
from .children import ChildState
from .clients import ClientRecord
from .errors import BadRequest, Forbidden
from .fleet import Worker
from .ledger import Ledger
from .quarantine import answer_quarantine

#: what a client's key may ask for; with that of an admin everything is allowed
CLIENT_OPERATIONS: Final = frozenset({"status", "tasks", "explain", "result"})
#: what changes the system for everybody
ADMIN_OPERATIONS: Final = frozenset({"quarantine"})


def answer_control(
    broker: Broker, message: Any, now: float, rights: str = "client"
) -> dict[str, Any]:
    """Answer one CONTROL frame: ``{"op": "status" | "tasks" | "explain" | "quarantine"}``.

    ``rights`` is the role whose key the asking client has.

    Returns ``{"ok": value}`` or ``{"error": {...}}``.
    """
    asked = message.get("op") if isinstance(message, dict) else None
    operation = asked if isinstance(asked, str) else None
    if rights != "admin" and operation in ADMIN_OPERATIONS:
        text = f"{operation!r} needs the key of an admin; this client has that of a {rights}"
        return {"error": Forbidden(text).to_wire()}
    if rights != "admin" and operation not in CLIENT_OPERATIONS:
        operation = None
    if operation == "status":
        return {"ok": system_status(broker, now)}
    if operation == "tasks":
        return {"ok": task_list(broker.ledger)}
    if operation == "quarantine":
        ledger = broker.ledger
        return answer_quarantine(ledger.quarantine, ledger.tasks.numbers, message, now)
    if operation == "explain":
        ids, last = message.get("ids"), message.get("last", 10)
        journal = broker.ledger.journal
        if isinstance(ids, list) and all(isinstance(item, int) for item in ids):
            return {"ok": journal.find(ids[:1000], now)}
        if isinstance(last, int) and 0 < last <= 1000:
            return {"ok": journal.last(last, now)}
    return {"error": BadRequest(f"unknown control operation {asked!r:.100}").to_wire()}


def system_status(broker: Broker, now: float) -> dict[str, Any]:
    """The whole system, as ``status --json`` shows it (the shell adds pid and address)."""
    ledger = broker.ledger
    policy = ledger.topology.policy
    return {
        "name": ledger.topology.name,
        "state": "DRAIN" if ledger.draining else "RUNNING",
        "uptime_s": now - broker.started_at,
        "last_change": broker.last_change,
        "broker": {
            "address": str(ledger.topology.broker),
            "policy": policy.label,
            "pending_weight": policy.pending_weight,
            "cpu_weight": policy.cpu_weight,
            "queued": ledger.queue.count,
            "queued_bytes": ledger.queue.bytes,
            "in_flight": ledger.in_flight,
            "clients": len(ledger.clients),
            "accepted": ledger.accepted,
            "completed": ledger.completed,
            "failed": ledger.failed,
            "backlog_s": ledger.backlog_s(now),
            "transit_s": ledger.fleet.transit_s,
            "idle_while_queued_s": ledger.idling.seconds,
            "ejections": ledger.ejections_count,
        },
        "durable": _durable_status(ledger),
        "clients": [_client_status(ledger, client) for client in ledger.clients.values()],
        "workers": [
            _worker_status(ledger, worker, now) for worker in ledger.fleet.by_name.values()
        ],
    }


def _durable_status(ledger: Ledger) -> dict[str, Any]:
    durable = ledger.durable
    return {
        "level": durable.level.name.lower(),
        "every": durable.every,
        "unfinished": len(durable.open) + len(durable.recovered),
        "being_written": len(durable.staged) + len(durable.finishing),
        "accepted": durable.accepted,
        "finished": durable.finished,
        "is_full": durable.retry_at is not None,
    }


def _client_status(ledger: Ledger, client: ClientRecord) -> dict[str, Any]:
    queued, queued_bytes = ledger.queue.waiting_of(client.number)
    return {
        "number": client.number,
        "name": client.name,
        "queued": queued,
        "queued_bytes": queued_bytes,
        "in_flight": client.in_flight - queued,
        "accepted": client.accepted,
        "paused": client.paused,
    }


def _worker_status(ledger: Ledger, worker: Worker, now: float) -> dict[str, Any]:
    config = worker.config
    backlog_s = worker.backlog_s(now)
    prefetch = max((ledger.fleet.prefetch(task) for task in worker.counts), default=0)
    return {
        "name": worker.name,
        "pid": worker.pid if worker.state is ChildState.RUNNING else None,
        "address": str(config.address),
        "state": worker.state.value,
        "pending": worker.pending,
        "backlog_s": backlog_s,
        "cpu": worker.cpu,
        "cpu_age_s": max(0.0, now - worker.cpu_at) if worker.cpu_at > 0 else None,
        "availability": worker.availability_at_time(now),
        "speed": worker.speed(),
        "load": ledger.topology.policy.pending_weight * backlog_s,
        "weight": config.weight,
        "concurrency": config.concurrency,
        "window": worker.concurrency + prefetch,
        "tags": list(config.tags),
        "completed": worker.completed,
        "failed": worker.failed,
        "restarts": worker.restarts,
        # how long it gets no work yet; 0: it has its trial now, or waits for it
        "ejected_s": ledger.ejected_s(worker.number, now),
        "rss_bytes": worker.rss_bytes,
    }


def task_list(ledger: Ledger) -> list[dict[str, Any]]:
    """Every task: what its worker says of it, and what the broker learned."""
    tasks = []
    for number, spec in enumerate(ledger.tasks.specs):
        cost = ledger.fleet.costs[number]
        unlearned = sum(
            worker.samples[number][0] for worker in ledger.fleet.workers if number in worker.samples
        )
        tasks.append(
            {
                **spec,
                "learned_cost_s": cost.mean_s if cost.count else None,
                "cpu_share": cost.cpu_share if cost.count else None,
                "count": cost.count + int(unlearned),
                "workers": sum(number in worker.tasks for worker in ledger.fleet.ready),
            }
        )
    return sorted(tasks, key=lambda task: str(task["name"]))
