"""One run of the benchmark: what was asked for, what is at hand, how much time is left.

Hands out agents, measures pairs with them, and remembers what had to be left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from bench.contender import BenchError, Contender
from bench.measure import Pair
from bench.registry import GROUPS, load_contender
from bench.remote import Remote
from bench.results import Comparison, RowResult, Skipped


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much is measured."""

    rounds: int = 5
    #: rounds of what takes little time and drifts much: a wake-up, a start
    short_rounds: int = 11
    quick: bool = False
    #: how long one measurement of a no-op row is meant to take
    target_s: float = 1.0
    #: after this no new round begins
    budget_s: float = 560.0
    #: groups of contenders to measure
    only: frozenset[str] = frozenset(GROUPS)
    rows: tuple[str, ...] = ()
    spin_count: int = 2000
    spin_s: float = 0.01
    waiting_count: int = 100_000
    waiting_bytes: int = 100


class Probe(Protocol):
    """One way to measure a contender."""

    def prepare(self, remote: Remote, mode: str) -> dict[str, Any]:
        """Calibrate and warm up; the arguments for ``measure``."""
        ...

    def measure(self, remote: Remote, arguments: dict[str, Any]) -> float:
        """One figure."""
        ...


#: a contender that is ready to be measured, with its calibrated arguments
Side = tuple[Remote, dict[str, Any]]


@dataclass(slots=True, kw_only=True)
class Session:
    """Holds lb's agents over several rows; a context manager that ends every agent."""

    settings: Settings
    folder: Path
    say: Callable[[str], None]
    started: float = field(default_factory=time.monotonic)
    skipped: list[Skipped] = field(default_factory=list)
    rows: list[RowResult] = field(default_factory=list)
    #: versions of everything that was measured
    versions: dict[str, str] = field(default_factory=dict)
    #: names of contenders that broke on the way
    failed: list[str] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)
    _kept: dict[str, Remote] = field(default_factory=dict)
    _checked: dict[str, bool] = field(default_factory=dict)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def new_row(
        self,
        key: str,
        title: str,
        unit: str,
        heads: tuple[str, str, str, str] = ("lb", "peer", "lb", "peer"),
    ) -> RowResult:
        """A row of this run's table; it is there from now on, however far its measuring gets."""
        row = RowResult(key=key, title=title, unit=unit, heads=heads)
        self.rows.append(row)
        return row

    def left_s(self) -> float:
        """Seconds of the time for the whole run that are left."""
        return self.settings.budget_s - (time.monotonic() - self.started)

    def available(self, name: str) -> bool:
        """Whether a contender was asked for, is at hand and has not failed; says so once if not."""
        if name not in self._checked:
            self._checked[name] = self._check(name)
        return self._checked[name]

    def drop(self, name: str, reason: str) -> None:
        """Measure a contender no more: it failed."""
        contender = load_contender(name)
        self._checked[name] = False
        self.failed.append(name)
        self.skipped.append(Skipped(name=name, title=contender.title, reason=reason))
        self.say(f"  {contender.title} failed: {reason}")

    def keep(self, name: str) -> Remote | None:
        """A contender that stays started until ``release``; None when it is not to be had."""
        if not self.available(name):
            return None
        if name not in self._kept:
            remote = self.begin(name, self._stack)
            if remote is None:
                return None
            self._kept[name] = remote
        return self._kept[name]

    def release(self) -> None:
        """End the contenders that were kept."""
        self._kept.clear()
        self._stack.close()

    def begin(self, name: str, stack: ExitStack) -> Remote | None:
        """Start a contender that ends with ``stack``; None when it is not to be had."""
        if not self.available(name):
            return None
        try:
            remote = stack.enter_context(Remote(name, self.folder))
            self.versions.update(remote.ask("versions"))
        except BenchError as error:
            self.drop(name, str(error))
            return None
        self.versions.pop("ok", None)
        return remote

    def figure(self, name: str, measure: Callable[[], float]) -> float | None:
        """What ``measure`` returns; None, with the contender dropped, when it fails."""
        try:
            return measure()
        except BenchError as error:
            self.drop(name, str(error))
            return None

    def plan(self, pairs: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
        """Of (lb's contender, mode, peer): those worth measuring with what is to be had.

        Without a peer each way of using lb is measured once, and without lb each peer.
        """
        modes = {mode for _, mode, peer in pairs if self.available(peer)}
        peers: set[str] = set()
        planned = []
        for lb, mode, peer in pairs:
            with_peer = self.available(peer) and (peer not in peers or self.available(lb))
            alone = not self.available(peer) and self.available(lb) and mode not in modes
            if with_peer or alone:
                planned.append((lb, mode, peer))
            peers.add(peer)
            if alone:
                modes.add(mode)
        return planned

    def compare(
        self, row: RowResult, probe: Probe, *, lb: str, mode: str, peer: str, rounds: int
    ) -> None:
        """Measure lb and a peer in turn, ``rounds`` times; who is not to be had is left out."""
        peer_title = load_contender(peer).title
        if self.left_s() < 0:
            row.notes.append(f"{mode} / {peer_title}: not measured, the time was up")
            return
        with ExitStack() as stack:
            remotes = self.keep(lb), self.begin(peer, stack)
            sides = [self._prepare(remote, probe, mode) for remote in remotes]
            if sides == [None, None]:
                return
            titles = [title for title, side in zip((mode, peer_title), sides, strict=True) if side]
            self.say(f"  {' / '.join(titles)}")
            pairs = self._alternate(probe, sides, rounds)
            if len(pairs) < rounds:
                row.notes.append(f"{' / '.join(titles)}: {len(pairs)} of {rounds} rounds")
        peer_name, title = (peer, peer_title) if sides[1] else ("", "")
        row.comparisons.append(
            Comparison(lb_mode=mode, peer=peer_name, peer_title=title, pairs=tuple(pairs))
        )

    def _alternate(
        self,
        probe: Probe,
        sides: Sequence[Side | None],
        rounds: int,
    ) -> list[Pair]:
        pairs: list[Pair] = []
        round_s = 0.0
        for done in range(rounds):
            if done and self.left_s() < round_s:
                break
            began = time.monotonic()
            figures: list[float | None] = []
            for side in sides:
                if side is None or not self.available(side[0].name):
                    figures.append(None)
                    continue
                remote, arguments = side
                figures.append(self.figure(remote.name, partial(probe.measure, remote, arguments)))
            if figures == [None, None]:
                break
            pairs.append(Pair(*figures))
            round_s = time.monotonic() - began
        return pairs

    def _prepare(self, remote: Remote | None, probe: Probe, mode: str) -> Side | None:
        if remote is None:
            return None
        try:
            return remote, probe.prepare(remote, mode)
        except BenchError as error:
            self.drop(remote.name, str(error))
            return None

    def _check(self, name: str) -> bool:
        contender: type[Contender] = load_contender(name)
        if group_of(name) not in self.settings.only:
            return False
        missing = contender.missing()
        if not missing:
            return True
        reason = f"{' and '.join(missing)} not found"
        self.skipped.append(
            Skipped(name=name, title=contender.title, reason=reason, install=contender.install)
        )
        self.say(f"  {contender.title} skipped: {reason}; to have it: {contender.install}")
        return False


def group_of(name: str) -> str:
    """What ``--only`` calls a contender."""
    return next(group for group, names in GROUPS.items() if name in names)
