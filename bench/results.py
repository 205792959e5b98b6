"""What was measured, as values: comparisons in pairs, single figures, and goals that judge them.

Pure.  The rows fill these in; the report prints them and turns them into JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.measure import Pair, Spread, pair_ratios

Bound = Literal["at least", "at most"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One goal of the project and the figure that answers it; None means not measured."""

    text: str
    value: float | None
    bound: Bound
    limit: float
    unit: str
    #: a stricter limit that is aimed at
    aim: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the figure is within the limit; None when there is no figure."""
        return self._within(self.limit)

    @property
    def aim_met(self) -> bool | None:
        """Whether the figure is within what is aimed at; None without a figure or an aim."""
        return None if self.aim is None else self._within(self.aim)

    def _within(self, limit: float) -> bool | None:
        if self.value is None:
            return None
        return self.value >= limit if self.bound == "at least" else self.value <= limit

    def to_json(self) -> dict[str, Any]:
        """All fields and the verdict."""
        return {
            "text": self.text,
            "value": self.value,
            "bound": self.bound,
            "limit": self.limit,
            "aim": self.aim,
            "unit": self.unit,
            "met": self.met,
            "aim_met": self.aim_met,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """lb and one peer, measured in turn; either side is empty where it was not to be had."""

    #: how lb was used: ``stream``, ``submit``, ``call``, ``Unix``
    lb_mode: str
    peer: str
    peer_title: str
    pairs: tuple[Pair, ...]

    @property
    def lb(self) -> Spread | None:
        """The spread of lb's figures."""
        return Spread.of([pair.lb for pair in self.pairs if pair.lb is not None])

    @property
    def peer_figures(self) -> Spread | None:
        """The spread of the peer's figures."""
        return Spread.of([pair.peer for pair in self.pairs if pair.peer is not None])

    @property
    def ratio(self) -> Spread | None:
        """The spread of lb / peer, pair by pair."""
        return Spread.of(pair_ratios(self.pairs))

    def to_json(self) -> dict[str, Any]:
        """Everything, the single pairs included."""
        return {
            "lb_mode": self.lb_mode,
            "peer": self.peer,
            "peer_title": self.peer_title,
            "pairs": [
                {"lb": pair.lb, "peer": pair.peer, "ratio": pair.ratio} for pair in self.pairs
            ],
            "lb": _spread_json(self.lb),
            "peer_figures": _spread_json(self.peer_figures),
            "ratio": _spread_json(self.ratio),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Something measured of lb alone, several times."""

    name: str
    values: tuple[float, ...]
    unit: str

    @property
    def spread(self) -> Spread | None:
        """The spread of its values."""
        return Spread.of(self.values)

    def to_json(self) -> dict[str, Any]:
        """The values and their spread."""
        return {
            "name": self.name,
            "unit": self.unit,
            "values": list(self.values),
            **(_spread_json(self.spread) or {}),
        }


@dataclass(slots=True, kw_only=True)
class RowResult:
    """One row of the table."""

    key: str
    title: str
    #: what the comparisons' figures are in: ``requests/s``, ``us``, ``s``
    unit: str
    #: heads of the columns: how, beside what, and the two figures; the ratio is theirs
    heads: tuple[str, str, str, str] = ("lb", "peer", "lb", "peer")
    comparisons: list[Comparison] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    #: what a reader must know: rounds cut short, a system that failed on the way
    notes: list[str] = field(default_factory=list)

    def ratio_to(self, peer: str, lb_mode: str | None = None) -> float | None:
        """The median ratio to a peer, of the first comparison that fits; None without one."""
        for comparison in self.comparisons:
            if comparison.peer == peer and lb_mode in (None, comparison.lb_mode):
                return comparison.ratio.median if comparison.ratio else None
        return None

    def lb_figure(self, lb_mode: str) -> float | None:
        """The median of all of lb's figures in that mode."""
        values = [
            pair.lb
            for comparison in self.comparisons
            if comparison.lb_mode == lb_mode
            for pair in comparison.pairs
            if pair.lb is not None
        ]
        spread = Spread.of(values)
        return spread.median if spread else None

    def figure(self, name: str) -> float | None:
        """The median of a figure by name; None when it was not measured."""
        for figure in self.figures:
            if figure.name == name and figure.spread:
                return figure.spread.median
        return None

    def to_json(self) -> dict[str, Any]:
        """The row with all it holds."""
        return {
            "row": self.key,
            "title": self.title,
            "unit": self.unit,
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
            "figures": [figure.to_json() for figure in self.figures],
            "goals": [goal.to_json() for goal in self.goals],
            "notes": self.notes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A contender that is not measured, why, and what would bring it in."""

    name: str
    title: str
    reason: str
    install: str = ""

    def to_json(self) -> dict[str, str]:
        """All fields."""
        return {
            "name": self.name,
            "title": self.title,
            "reason": self.reason,
            "install": self.install,
        }


def all_goals(rows: Sequence[RowResult]) -> list[Goal]:
    """The goals of all rows, in order."""
    return [goal for row in rows for goal in row.goals]


def _spread_json(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else spread.to_json()
