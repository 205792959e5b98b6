"""What waits, by priority and client, with the tags by which its turn is decided.

This is start-time fair queueing (Goyal, Vin and Cheng 1996), twice.  What one client has waiting at
one priority is a *lane*, the lanes of one priority are a *level*.  Each has a tag: the expected
seconds of work that it was served so far, on a clock that only moves while somebody waits.  The
level with the smallest tag is next, and in it the lane with the smallest.  A lane that begins to
wait starts at the level's clock: it is owed nothing for the time in which it wanted nothing, and
waits for nobody's past, nor for its own from before nobody waited.  So whoever has something
waiting gets its share of the work, however much the others have waiting, and is never more than one
quantum of each other lane away from it.

``shares`` picks, ``queue`` files; nobody else works on these.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol

#: (id, frame): one waiting request
Entry = tuple[int, bytes]

#: requests of one run; what is longer becomes several, so that taking one out costs little
RUN_ENTRIES: Final = 8192
#: what comes in small pieces joins the run before it, until that has so many
MERGED_ENTRIES: Final = 256
MERGED_BYTES: Final = 1024
#: so many requests that are taken may stay at the front of a run's list
TAKEN_MAX: Final = 1024
#: priorities beyond this count as this
PRIORITY_MAX: Final = 10
#: by order of cost, a request is due when so many times its own work was served, by each worker
DUE_AFTER: Final = 30.0
#: runs that were emptied from the middle are swept out when there are so many, and most are
SWEEP_MIN: Final = 32


def clamp_priority(priority: int) -> int:
    """The priority that counts for one that was asked for."""
    return max(-PRIORITY_MAX, min(PRIORITY_MAX, priority))


class Run:
    """Requests of one client for one task at one priority, in order."""

    __slots__ = (
        "client",
        "due_s",
        "entries",
        "explain",
        "lane",
        "left",
        "number",
        "priority",
        "start",
        "task",
    )

    def __init__(
        self,
        client: int,
        task: int,
        entries: list[Entry],
        explain: bool = False,
        priority: int = 0,
    ) -> None:
        self.client = client
        self.task = task
        self.entries = entries
        #: how many entries are already taken, and how many are left
        self.start = 0
        self.left = len(entries)
        #: keep the numbers behind the choice
        self.explain = explain
        self.priority = priority
        #: by order of cost: when it is due, on the clock of its lane
        self.due_s = 0.0
        #: where it waits, and its place in the order of arrival; both are the queue's affair
        self.lane: Lane | None = None
        self.number = 0

    def add(self, entry: Entry) -> None:
        """One more request at the end."""
        self.entries.append(entry)
        self.left += 1

    def waiting(self) -> list[Entry]:
        """The requests that are left."""
        return self.entries[self.start :]

    def pieces(self) -> Iterable[Run]:
        """The same requests in runs of at most ``RUN_ENTRIES``."""
        for begin in range(self.start, len(self.entries), RUN_ENTRIES):
            entries = self.entries[begin : begin + RUN_ENTRIES]
            piece = Run(self.client, self.task, entries, self.explain, self.priority)
            piece.due_s = self.due_s
            yield piece


class Costs(Protocol):
    """What tells the expected cost of requests, for an order by it."""

    def seconds(self, task: int) -> float:
        """Of one request of that task."""
        ...

    def sharing(self) -> int:
        """How many workers share the work; at least 1."""
        ...


class ClientLanes:
    """What one client has waiting, in all."""

    __slots__ = ("blocked", "count", "index", "indexed", "lanes", "number", "returned", "size")

    def __init__(self, number: int) -> None:
        self.number = number
        #: requests waiting, and the bytes of their frames
        self.count = 0
        self.size = 0
        #: how many of them came back from a worker, and wait in the queue's first lane
        self.returned = 0
        #: it does not take its answers: nothing of it is started
        self.blocked = False
        self.lanes: dict[int, Lane] = {}
        #: request id -> run: of those with a deadline; of all once one was searched for in vain
        self.index: dict[int, Run] = {}
        self.indexed = False

    def find_all(self, returned: Lane) -> None:
        """Fill the index."""
        for lane in (*self.lanes.values(), returned):
            for run in (*lane.runs, *lane.parked.values()):
                if run.client == self.number:
                    ids = [request_id for request_id, _ in run.waiting()]
                    self.index.update(dict.fromkeys(ids, run))
        self.indexed = True


class Level:
    """The lanes of one priority that have something to start."""

    __slots__ = ("clock", "finish", "heap", "held_s", "live", "priority", "scale", "stamp", "tag")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        #: work served, and work that a look in progress holds, in seconds of the best level's time
        self.tag = 0.0
        self.held_s = 0.0
        #: how much dearer work is here than at the best level that waits
        self.scale = 1.0
        #: the largest tag that a lane had when it was served: where a new one starts
        self.clock = 0.0
        #: the largest tag that a lane had when it had nothing more to start
        self.finish = 0.0
        #: (key, stamp, lane); an entry whose lane has another stamp by now is stale
        self.heap: list[tuple[float, int, Lane]] = []
        self.live = 0
        self.stamp = 0

    def push(self, lane: Lane) -> None:
        """File a lane, which may have a stale entry already."""
        if not lane.stamp:
            self.live += 1
        self.stamp += 1
        lane.stamp = self.stamp
        heapq.heappush(self.heap, (lane.tag + lane.held_s, lane.stamp, lane))
        if len(self.heap) > 64 + 4 * self.live:
            self.heap = [entry for entry in self.heap if entry[2].stamp == entry[1]]
            heapq.heapify(self.heap)

    def drop(self, lane: Lane) -> None:
        """Take a lane out; its entry is skipped when it comes up."""
        if lane.stamp:
            lane.stamp = 0
            self.live -= 1
            if not self.live:
                self.heap.clear()

    def first(self) -> Lane:
        """The lane that is next; there must be one."""
        heap = self.heap
        while True:
            _, stamp, lane = heap[0]
            if lane.stamp == stamp:
                return lane
            heapq.heappop(heap)

    def refile(self, lane: Lane) -> bool:
        """The first lane's tag has grown; True when it is still the only one."""
        heap = self.heap
        key = lane.tag + lane.held_s
        if len(heap) == 1:
            heap[0] = (key, lane.stamp, lane)
            return True
        self.stamp += 1
        lane.stamp = self.stamp
        heapq.heapreplace(heap, (key, lane.stamp, lane))
        return False


class Lane:
    """Runs of one client at one priority, first come first served, with the place of a look.

    While no look is in progress, ``at`` and ``offset`` are 0, and the first run of a lane that is
    filed has something left.
    """

    __slots__ = (
        "at",
        "dues_s",
        "held_s",
        "level",
        "offset",
        "owner",
        "parked",
        "removals",
        "runs",
        "stamp",
        "tag",
    )

    def __init__(self, owner: ClientLanes | None = None, level: Level | None = None) -> None:
        #: both None: the lane of requests that came back, which is before all others
        self.owner = owner
        self.level = level
        self.runs: deque[Run] = deque()
        #: by order of cost: when the last of each kind is due
        self.dues_s: dict[int, float] = {}
        #: runs of tasks that nobody has now, by their number
        self.parked: dict[int, Run] = {}
        #: work served, and work that a look in progress holds, in seconds
        self.tag = 0.0
        self.held_s = 0.0
        #: 0: not filed
        self.stamp = 0
        #: the look's place: a run, and how many of its requests are held
        self.at = 0
        self.offset = 0
        #: runs that were emptied from the middle, since the last sweep
        self.removals = 0

    def step(self) -> bool:
        """Move to the next request that is not held, dropping empty runs; False: none is left."""
        runs = self.runs
        while self.at < len(runs):
            run = runs[self.at]
            if not run.left:
                del runs[self.at]
            elif self.offset < run.left:
                return True
            else:
                self.at += 1
            self.offset = 0
        return False

    def place_by_cost(self, run: Run, costs: Costs) -> int:
        """Where a run belongs in ``runs`` by order of cost: the one that is due first goes first.

        A request is due when ``DUE_AFTER`` times its own work, for each worker, was served of this
        lane since it came.  So what came with it and costs less goes before it, and whatever comes
        later than that goes behind it: nothing waits for ever.
        """
        if not self.runs:
            self.dues_s.clear()
        due_s = self.tag + DUE_AFTER * costs.seconds(run.task) * costs.sharing()
        # what is learned of a cost meanwhile must not reorder requests of one kind
        run.due_s = self.dues_s[run.task] = max(due_s, self.dues_s.get(run.task, 0.0))
        return bisect_right(self.runs, run.due_s, key=_due_s)

    def rewind(self) -> None:
        """Back to the front: the look is over."""
        self.at = self.offset = 0
        self.held_s = 0.0
        if self.level is not None:
            self.level.held_s = 0.0

    def sweep(self) -> None:
        """Throw out runs that were emptied from the middle, when most are."""
        self.removals += 1
        if self.removals > SWEEP_MIN and 2 * self.removals > len(self.runs):
            self.runs = deque(run for run in self.runs if run.left)
            self.removals = 0


def _due_s(run: Run) -> float:
    return run.due_s


def _place(run: Run) -> tuple[float, int]:
    """By order of cost when it is due; without one that is the same for all."""
    return run.due_s, run.number


class Parking:
    """Runs of tasks that nobody has: they stand in nobody's way until somebody new takes work."""

    __slots__ = ("_lanes", "tasks")

    def __init__(self) -> None:
        #: task -> how many runs of it are parked
        self.tasks: dict[int, int] = {}
        self._lanes: set[Lane] = set()

    def put(self, lane: Lane, run: Run) -> None:
        """Park a run, which is in no lane's ``runs`` any more."""
        run.lane = lane
        lane.parked[run.number] = run
        self.tasks[run.task] = self.tasks.get(run.task, 0) + 1
        self._lanes.add(lane)

    def remove(self, lane: Lane, run: Run) -> None:
        """Forget a run."""
        del lane.parked[run.number]
        self.tasks[run.task] -= 1
        if not self.tasks[run.task]:
            del self.tasks[run.task]
        if not lane.parked:
            self._lanes.discard(lane)

    def clear(self) -> list[Lane]:
        """Put all of them back to where they came in their lanes, which are returned."""
        lanes = sorted(self._lanes, key=lambda lane: next(iter(lane.parked)))
        self._lanes.clear()
        self.tasks.clear()
        for lane in lanes:
            runs = sorted([*lane.runs, *lane.parked.values()], key=_place)
            lane.runs = deque(runs)
            lane.parked.clear()
        return lanes

    def check(self) -> None:
        """Assert that the sums are right."""
        parked = [run.task for lane in self._lanes for run in lane.parked.values()]
        assert self.tasks == {task: parked.count(task) for task in set(parked)}
