"""``lb compare --seeds N``: the same comparison on several streams of requests, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import click

from lbcore.lab.measures import Measures
from lbcore.lab.reference import CENTRAL, CLAIRVOYANT
from lbcore.lab.study import Ratio, mean_ratio

from .compare_run import Measured
from .compare_view import Comparison, tail_key, tail_title
from .render import Column, console, make_table


class Ratios(NamedTuple):
    """Of one policy, means over the seeds with 95 % intervals; None: there is nothing to divide."""

    policy: str
    #: measured ÷ simulated
    mean: Ratio | None
    tail: Ratio | None
    #: measured ÷ what is simulated of one who knows all costs and speeds
    mean_to_bound: Ratio | None
    tail_to_bound: Ratio | None
    #: measured ÷ what was measured of the first policy, seed by seed
    mean_to_first: Ratio | None
    tail_to_first: Ratio | None


def ratios_over(found: Sequence[Comparison]) -> list[Ratios]:
    """For each policy, in their order."""
    first = found[0].wish.policies[0]
    return [_ratios(found, name, first) for name in found[0].measured]


def _ratios(found: Sequence[Comparison], name: str, first: str) -> Ratios:
    key = tail_key(found[0])
    measured = [each.measured[name] for each in found]
    simulated = [each.simulated[name] for each in found]
    bounds = [each.simulated.get(CLAIRVOYANT) or each.simulated[CENTRAL] for each in found]
    firsts = [each.measured[first] for each in found]
    return Ratios(
        name,
        *(_mean(measured, simulated, each) for each in ("mean", key)),
        *(_mean(measured, bounds, each) for each in ("mean", key)),
        *(_mean(measured, firsts, each) for each in ("mean", key)),
    )


def _mean(
    mine: Sequence[Measured], others: Sequence[Measured] | Sequence[Measures], key: str
) -> Ratio | None:
    pairs = [(getattr(a, key), getattr(b, key)) for a, b in zip(mine, others, strict=True)]
    return mean_ratio([a / b for a, b in pairs]) if all(b for _, b in pairs) else None


def as_json(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """For programs: each ratio as ``{"mean", "half"}``, of a 95 % interval."""
    rows = []
    for each in ratios_over(found):
        row: dict[str, Any] = {"policy": each.policy}
        for key, value in each._asdict().items():
            if key != "policy":
                row[key] = None if value is None else value._asdict()
        rows.append(row)
    return rows


def print_ratios(found: Sequence[Comparison]) -> None:
    """The table for people."""
    title, first = tail_title(found[0]), found[0].wish.policies[0]
    click.echo(f"\n{len(found)} seeds, means with 95 % intervals")
    heads = ["÷ simulated", "÷ clairvoyant", f"÷ {first}"]
    tails, means = (
        make_table([Column("measured", "left"), *(Column(f"{what} {head}") for head in heads)], 2)
        for what in (title, "mean")
    )
    for each in ratios_over(found):
        tails.add_row(each.policy, *map(_text, (each.tail, each.tail_to_bound, each.tail_to_first)))
        means.add_row(each.policy, *map(_text, (each.mean, each.mean_to_bound, each.mean_to_first)))
    console().print(tails)
    click.echo()
    console().print(means)


def _text(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.mean:.3f} ± {ratio.half:.3f}"
