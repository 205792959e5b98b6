"""Requests that wait in the broker, in runs, and in which order they start.

A run is what one read brought from one client for one task: its requests wait, move and are handed
out together as far as they can, so that a million tiny requests do not cost a million decisions.
The usual request is two words here, its id and its frame; whatever is unusual about one (attempts,
deadline) is kept elsewhere under its id.

First go requests that came back from a worker, then fair shares (see ``lanes``).  ``dispatch``
looks through the queue like this: ``head`` is the run whose request is next; it is taken, held
(those behind it may overtake), passed over or parked; ``release`` ends a look that held any.

Nothing here takes longer the more is waiting, but for the logarithm of the number of clients.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator

from .lanes import (
    MERGED_BYTES,
    MERGED_ENTRIES,
    RUN_ENTRIES,
    TAKEN_MAX,
    ClientLanes,
    Costs,
    Entry,
    Lane,
    Parking,
    Run,
)
from .shares import Shares

__all__ = ["ClientLanes", "Entry", "RequestQueue", "Run", "frame_bytes"]


def frame_bytes(entries: Iterable[Entry]) -> int:
    """The size of their frames."""
    return sum([len(frame) for _, frame in entries])


class RequestQueue:
    """All that waits; ``connected`` are the numbers of clients that may send more."""

    __slots__ = (
        "_arrivals",
        "_clients",
        "_connected",
        "_lane",
        "_parking",
        "_returned",
        "_shares",
        "_touched",
        "bytes",
        "costs",
        "count",
        "parked_for",
    )

    def __init__(self, connected: Container[int] | None = None) -> None:
        #: requests waiting
        self.count = 0
        #: bytes of their frames
        self.bytes = 0
        #: what tells the cost of requests, where they go in order of it; None: first come first
        self.costs: Costs | None = None
        self._connected = connected
        self._clients: dict[int, ClientLanes] = {}
        #: requests that came back from a worker: before all others, and charged already
        self._returned = Lane()
        self._shares = Shares()
        #: the lane that is next, when that is known
        self._lane: Lane | None = None
        #: lanes in which the look in progress holds something
        self._touched: list[Lane] = []
        #: runs of tasks that nobody has
        self._parking = Parking()
        #: the state of the fleet for which they are parked
        self.parked_for = 0
        self._arrivals = 0

    # ---- coming in -----------------------------------------------------------------------------

    def append(self, run: Run, size: int, *, timed: bool = False) -> None:
        """Add a run to its lane; ``size`` is that of all its frames, in bytes.

        ``timed``: its requests have deadlines, so each may have to be found later.
        """
        owner = self._clients.get(run.client) or self._client(run.client)
        count = run.left
        self.count += count
        self.bytes += size
        owner.count += count
        owner.size += size
        lane = owner.lanes.get(run.priority) or self._open(owner, run.priority)
        place = len(lane.runs)
        if self.costs is not None:
            place = lane.place_by_cost(run, self.costs)
        last = lane.runs[place - 1] if place else None
        if (
            last is not None
            and last.task == run.task
            and last.left
            and last.explain == run.explain
            and size <= MERGED_BYTES
            and len(last.entries) + count <= MERGED_ENTRIES
        ):
            last.entries += run.entries
            last.left += count
            if timed or owner.indexed:
                owner.index.update(dict.fromkeys([entry[0] for entry in run.entries], last))
            return
        for piece in (run,) if count <= RUN_ENTRIES else run.pieces():
            self._arrivals += 1
            piece.number = self._arrivals
            piece.lane = lane
            if timed or owner.indexed:
                owner.index.update(dict.fromkeys([entry[0] for entry in piece.entries], piece))
            if piece.task in self._parking.tasks:
                self._parking.put(lane, piece)
            else:
                lane.runs.insert(place, piece)
                place += 1
        if not lane.stamp:
            self._file(lane)

    def push_front(self, runs: Iterable[Run]) -> None:
        """Put runs back at the front, the first of them first, before everything else."""
        returned = self._returned
        for whole in reversed(list(runs)):
            for run in reversed(list(whole.pieces())):
                self._arrivals += 1
                run.number = -self._arrivals
                run.lane = returned
                returned.runs.appendleft(run)
                size = frame_bytes(run.entries)
                self.count += run.left
                self.bytes += size
                owner = self._client(run.client)
                owner.count += run.left
                owner.size += size
                owner.returned += run.left
                owner.index.update(dict.fromkeys([entry[0] for entry in run.entries], run))
        self._lane = None

    # ---- a look through the queue --------------------------------------------------------------

    def head(self) -> Run | None:
        """The run whose request is next; None when nothing is left to look at."""
        lane = self._lane
        if lane is None:
            returned = self._returned
            lane = returned if returned.runs and returned.step() else self._shares.first()
            if lane is None:
                return None
            self._lane = lane
        return lane.runs[lane.at]

    def take(self, count: int, cost_s: float) -> list[Entry]:
        """Remove up to ``count`` requests of the head; each is expected to take ``cost_s``."""
        lane = self._lane
        assert lane is not None, "take without head"
        run = lane.runs[lane.at]
        begin = run.start + lane.offset
        taken = run.entries[begin : begin + count]
        taken_count = len(taken)
        if lane.offset:
            del run.entries[begin : begin + taken_count]
        else:
            run.start += taken_count
            if run.start > TAKEN_MAX:
                # let go of what is taken, or a long run would keep all its frames to the end
                del run.entries[: run.start]
                run.start = 0
        run.left -= taken_count
        size = frame_bytes(taken)
        self.count -= taken_count
        self.bytes -= size
        owner = lane.owner or self._clients[run.client]
        owner.count -= taken_count
        owner.size -= size
        if owner.index:
            for request_id, _ in taken:
                owner.index.pop(request_id, None)
        more = run.left > lane.offset or lane.step()
        level = lane.level
        if level is None:
            owner.returned -= taken_count
            if not more:
                self._lane = None
        elif not self._shares.serve(lane, level, cost_s * taken_count, more):
            self._lane = None
        if not owner.count:
            self._emptied(owner)
        return taken

    def hold(self, cost_s: float) -> None:
        """Leave the head's next request where it is, and look behind it as if it were taken."""
        lane = self._touch()
        lane.offset += 1
        self._advance(lane, cost_s)

    def pass_over(self) -> None:
        """Look behind the head's whole run: those who have its task have no room."""
        lane = self._touch()
        lane.at += 1
        lane.offset = 0
        self._advance(lane)

    def park(self) -> None:
        """Put the head's run aside until ``unpark``: nobody has its task."""
        lane = self._lane
        assert lane is not None, "park without head"
        run = lane.runs[lane.at]
        del lane.runs[lane.at]
        lane.offset = 0
        owner = lane.owner
        if owner is None:
            owner = self._client(run.client)
            owner.returned -= run.left
        home = owner.lanes.get(run.priority) or self._open(owner, run.priority)
        self._parking.put(home, run)
        self._advance(lane)

    def release(self) -> None:
        """End of a look: whatever it held or passed over waits as before."""
        for lane in self._touched:
            lane.rewind()
        for lane in self._touched:
            if lane.level is not None and lane.step():
                self._shares.file(lane, lane.level, owed=True)
        self._touched.clear()
        self._lane = None

    # ---- out of turn ---------------------------------------------------------------------------

    def unpark(self, parked_for: int) -> None:
        """Somebody new takes work: what was parked waits with the rest again."""
        self.parked_for = parked_for
        for lane in self._parking.clear():
            self._file(lane)

    def block(self, client: int, blocked: bool) -> None:
        """Start nothing more of a client, or start it again."""
        owner = self._client(client)
        owner.blocked = blocked
        for lane in owner.lanes.values():
            if blocked:
                self._drop(lane)
            elif not lane.stamp:
                self._file(lane)

    def remove_client(self, number: int) -> list[Run]:
        """Remove and return everything of a client."""
        owner = self._clients.pop(number, None)
        if owner is None:
            return []
        removed: list[Run] = []
        for lane in owner.lanes.values():
            self._drop(lane)
            removed += [run for run in lane.runs if run.left]
            for run in list(lane.parked.values()):
                self._parking.remove(lane, run)
                removed.append(run)
        if owner.returned:
            runs = self._returned.runs
            removed += [run for run in runs if run.client == number and run.left]
            kept = [run for run in runs if run.client != number]
            runs.clear()
            runs.extend(kept)
        self._lane = None
        self.count -= owner.count
        self.bytes -= owner.size
        return removed

    def remove_request(self, request_id: int, *, timed: bool = False) -> Entry | None:
        """Remove and return one waiting request; None when it does not wait here.

        The first search for one that has no deadline (``timed``) makes an index of all that its
        client has waiting.
        """
        owner = self._clients.get(request_id >> 32)
        if owner is None or not owner.count:
            return None
        if request_id not in owner.index and not owner.indexed and not timed:
            owner.find_all(self._returned)
        run = owner.index.pop(request_id, None)
        if run is None:
            return None
        entries = run.entries
        place = bisect_left(entries, (request_id,), run.start)
        if place == len(entries) or entries[place][0] != request_id:
            # whoever gives ids in another order than that of sending
            ids = [each[0] for each in entries]
            place = ids.index(request_id, run.start)
        entry = entries.pop(place)
        run.left -= 1
        self.count -= 1
        self.bytes -= len(entry[1])
        owner.count -= 1
        owner.size -= len(entry[1])
        lane = run.lane
        assert lane is not None, "a run that waits nowhere"
        owner.returned -= lane is self._returned
        if not run.left:
            self._run_emptied(lane, run)
        if not owner.count:
            self._emptied(owner)
        return entry

    # ---- what there is -------------------------------------------------------------------------

    def can_start(self) -> bool:
        """Something waits that is neither parked nor of a client that does not take its answers."""
        return bool(self._shares.active or self._returned.runs)

    def runs(self) -> Iterator[Run]:
        """Every run that waits: first those that came back, then client by client."""
        yield from (run for run in self._returned.runs if run.left)
        for owner in self._clients.values():
            for lane in owner.lanes.values():
                yield from (run for run in lane.runs if run.left)
                yield from lane.parked.values()

    def waiting_of(self, client: int) -> tuple[int, int]:
        """How many requests of a client wait, and the bytes of their frames."""
        owner = self._clients.get(client)
        return (owner.count, owner.size) if owner is not None else (0, 0)

    def check(self) -> None:
        """Assert everything that must always hold between two events."""
        runs = list(self.runs())
        assert self.count == sum(run.left for run in runs)
        assert self.bytes == sum(frame_bytes(run.waiting()) for run in runs)
        assert all(run.left == len(run.entries) - run.start > 0 for run in runs)
        for owner in self._clients.values():
            own = [run for run in runs if run.client == owner.number]
            assert owner.count == sum(run.left for run in own), owner.number
            assert owner.size == sum(frame_bytes(run.waiting()) for run in own), owner.number
            assert owner.returned == sum(run.left for run in own if run.lane is self._returned)
            for lane in owner.lanes.values():
                assert (lane.at, lane.offset, lane.held_s) == (0, 0, 0.0)
                assert bool(lane.stamp) == (bool(lane.runs) and not owner.blocked)
                assert not lane.stamp or lane.runs[0].left
        self._shares.check()
        self._parking.check()

    # ---- inside --------------------------------------------------------------------------------

    def _client(self, number: int) -> ClientLanes:
        owner = self._clients.get(number)
        if owner is None:
            owner = self._clients[number] = ClientLanes(number)
        return owner

    def _open(self, owner: ClientLanes, priority: int) -> Lane:
        lane = owner.lanes[priority] = Lane(owner, self._shares.level(priority))
        return lane

    def _file(self, lane: Lane) -> None:
        """A lane may have something to start."""
        owner, level = lane.owner, lane.level
        if owner is not None and level is not None and not owner.blocked and lane.step():
            self._shares.file(lane, level)
            self._lane = None

    def _drop(self, lane: Lane) -> None:
        """A lane waits for its turn no more."""
        if lane.level is not None:
            self._shares.drop(lane, lane.level)
        self._lane = None

    def _touch(self) -> Lane:
        lane = self._lane
        assert lane is not None, "hold without head"
        if not lane.at and not lane.offset:
            self._touched.append(lane)
        return lane

    def _advance(self, lane: Lane, cost_s: float = 0.0) -> None:
        more, level = lane.step(), lane.level
        if not (more if level is None else self._shares.hold(lane, level, cost_s, more)):
            self._lane = None

    def _run_emptied(self, lane: Lane, run: Run) -> None:
        """Its last request was taken out of turn."""
        if run.number in lane.parked:
            self._parking.remove(lane, run)
        elif lane.step():
            lane.sweep()
        else:
            self._drop(lane)
        self._lane = None

    def _emptied(self, owner: ClientLanes) -> None:
        """Nothing of a client waits any more; one that is gone is forgotten."""
        owner.index.clear()
        owner.indexed = False
        if self._connected is not None and owner.number not in self._connected:
            self._clients.pop(owner.number, None)
