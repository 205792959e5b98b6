"""The figures of a report, drawn with matplotlib: each a function from a run to a figure.

One colour stands for one policy in all of them: blue for ``least_load``, black for what nobody can
do, the rest from a palette that colour-blind readers can tell apart, and grey where there are more.
Labels stand at the lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from .render import duration_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lbcore.lab.runfile import RunFile

BLUE: Final = "#0072B2"
INK: Final = "#1f2933"
MUTED: Final = "#8a94a0"
FAINT: Final = "#dfe4ea"
#: after Okabe and Ito (2008)
OTHERS: Final = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7a5195")
REFERENCES: Final = ("clairvoyant", "central queue")
FEATURED: Final = "least_load"
#: of more workers only so many rows are drawn
ROWS_MAX: Final = 16
WIDTH: Final = 7.4
#: what is drawn of workers over time, in this order
SERIES: Final = (
    ("load", "load, seconds of work"),
    ("pending", "requests there"),
    ("busy", "part of the time it was busy"),
    ("cpu", "CPU, in cores"),
)

STYLE: Final[dict[str, Any]] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "figure.facecolor": "#ffffff",
    "savefig.facecolor": "#ffffff",
    "svg.fonttype": "path",
    "svg.hashsalt": "lb",
    "pdf.fonttype": 42,
}


class Picture(NamedTuple):
    """One figure: its height in inches, and what draws it."""

    height: float
    draw: Callable[[FigureBase], None]
    is_placed: bool = False  # it places its axes itself

    def figure(self) -> Figure:
        """It alone, as wide as a page."""
        figure = Figure(figsize=(WIDTH, self.height))
        if not self.is_placed:
            figure.set_layout_engine("constrained")
        self.draw(figure)
        return figure


def color_of(policy: str, policies: Sequence[str]) -> str:
    """The colour that stands for a policy."""
    if policy in REFERENCES:
        return INK
    if policy == FEATURED:
        return BLUE
    rest = [each for each in policies if each not in REFERENCES and each != FEATURED]
    place = rest.index(policy) if policy in rest else len(OTHERS)
    return OTHERS[place] if place < len(OTHERS) else MUTED


def featured(run: RunFile) -> str:
    """The policy that figures of one policy show."""
    names = [row["policy"] for row in run.policies] or [*run.requests, *run.series]
    if FEATURED in names:
        return FEATURED
    return next((name for name in names if name not in REFERENCES), names[0] if names else "")


# ---- the system ----------------------------------------------------------------------------------


def topology_picture(run: RunFile) -> Picture:
    """Clients, the broker, and the workers with what is known of each."""
    rows = min(ROWS_MAX, len(run.topology.get("workers", [])))
    return Picture(max(1.2, 0.27 * rows + 0.35), partial(_draw_topology, run), True)


def _draw_topology(run: RunFile, figure: FigureBase) -> None:
    workers = run.topology.get("workers", [])
    shown = workers if len(workers) <= ROWS_MAX else workers[: ROWS_MAX - 1]
    rows = max(3, len(shown) + (len(shown) < len(workers)))
    axes = _canvas(figure, rows)
    middle = rows / 2
    _box(axes, 0.0, middle - 0.5, 1.6, 1.0, "clients", "requests by rate")
    _box(axes, 3.0, middle - 0.5, 2.2, 1.0, "broker", str(run.topology.get("policy", "")), BLUE)
    _arrow(axes, (1.6, middle), (3.0, middle))
    for place, worker in enumerate(shown):
        y = middle + len(workers[:ROWS_MAX]) / 2 - place - 0.5
        _arrow(axes, (5.2, middle), (6.7, y), MUTED)
        facts = [f"weight {worker['weight']:g}"] if worker.get("weight", 1) != 1 else []
        if worker.get("speed", 1) != 1:
            facts.append(f"speed {worker['speed']:g}")
        if worker.get("concurrency", 1) != 1:
            facts.append(f"{worker['concurrency']} at once")
        _box(axes, 6.7, y - 0.36, 1.75, 0.72, str(worker["name"]), "")
        axes.text(8.6, y, ", ".join(facts), va="center", fontsize=7.5, color=MUTED)
    if len(shown) < len(workers):
        axes.text(6.8, 0.5, f"and {len(workers) - len(shown):,} more", va="center", color=MUTED)


def flow_picture(run: RunFile) -> Picture:
    """What happens to one request, with the mean times where they are known."""
    return Picture(0.95, partial(_draw_flow, run), True)


def _draw_flow(run: RunFile, figure: FigureBase) -> None:
    row = next((each for each in run.policies if each["policy"] == featured(run)), {})
    service = run.topology.get("mean_service_s")
    mean = row.get("mean")
    waits = None if mean is None or service is None else max(0.0, mean - service)
    steps = [
        ("client", "sends it"),
        ("queue", f"waits {duration_text(waits)}" if waits is not None else "waits"),
        ("choice", featured(run) or str(run.topology.get("policy", ""))),
        ("worker", f"runs {duration_text(service)}" if service else "runs it"),
        ("client", f"has it after {duration_text(mean)}" if mean is not None else "has it"),
    ]
    axes = _canvas(figure, 1.4)
    for place, (title, text) in enumerate(steps):
        x = place * 2.03
        _box(axes, x, 0.2, 1.72, 1.0, title, text, BLUE if title == "choice" else INK)
        if place:
            _arrow(axes, (x - 0.31, 0.7), (x, 0.7))


def seconds_text(value: float) -> str:
    """A time on an axis: ``1,000 s``, ``10 s``, ``10 ms``."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * factor >= 0.9995 or unit == "µs":
            return f"{value * factor:,.4g} {unit}"
    return ""


def _canvas(figure: FigureBase, rows: float) -> Axes:
    # on paper there is a heading above, which is a part of the figure
    heading = getattr(figure, "_suptitle", None) is not None
    axes = figure.add_axes((0.01, 0.04, 0.98, 0.78 if heading else 0.92))
    axes.set_xlim(-0.05, 9.95)
    axes.set_ylim(0, rows)
    axes.axis("off")
    return axes


def _box(
    axes: Axes, x: float, y: float, width: float, height: float, title: str, text: str,
    color: str = INK,
) -> None:  # fmt: skip
    style = "round,pad=0,rounding_size=0.12"
    patch = FancyBboxPatch(
        (x, y), width, height, boxstyle=style, linewidth=0.9, edgecolor=color, facecolor="none"
    )
    axes.add_patch(patch)
    center = x + width / 2
    lift = 0.17 * height if text else 0.0
    axes.text(
        center, y + height / 2 + lift, title, ha="center", va="center", color=color, weight="bold"
    )
    if text:
        axes.text(center, y + 0.28 * height, text, ha="center", va="center", fontsize=7.2)


def _arrow(
    axes: Axes, begin: tuple[float, float], end: tuple[float, float], color: str = INK
) -> None:
    axes.add_patch(
        FancyArrowPatch(
            begin, end, arrowstyle="-|>", mutation_scale=7, linewidth=0.8, color=color,
            shrinkA=2, shrinkB=2,
        )
    )  # fmt: skip


# ---- policies compared ---------------------------------------------------------------------------


def comparison_picture(run: RunFile) -> Picture | None:
    """p99 and mean of each policy relative to the first reference, with 95 % intervals."""
    rows = [row for row in run.policies if row.get("p99_ratio") and row["policy"] != REFERENCES[0]]
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: float(row["p99_ratio"]), reverse=True)
    return Picture(0.235 * len(rows) + 0.75, partial(_draw_comparison, run, rows))


def _draw_comparison(run: RunFile, rows: list[dict[str, Any]], figure: FigureBase) -> None:
    names = [row["policy"] for row in run.policies]
    axes = figure.subplots(1, 2, sharey=True)
    for place, (key, title) in enumerate((("p99", "99th percentile"), ("mean", "mean"))):
        panel: Axes = axes[place]
        values = [float(row[f"{key}_ratio"]) for row in rows]
        for y, (row, value) in enumerate(zip(rows, values, strict=True)):
            color = color_of(row["policy"], names)
            low, high = row.get(f"{key}_ratio_95", [value, value])
            panel.plot([max(low, 0.2), high], [y, y], color=color, linewidth=1.4, alpha=0.45)
            panel.plot([value], [y], "o", color=color, markersize=5)
            panel.annotate(
                f"{value:.2f}", (max(value, high), y), xytext=(6, 0), textcoords="offset points",
                va="center", fontsize=7.5, color=color,
                weight="bold" if row["policy"] == FEATURED else "normal",
            )  # fmt: skip
        panel.axvline(1.0, color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
        panel.set_xscale("log")
        low, high = min(*values, 1.0), max(values)
        panel.set_xlim(low / 1.12, max(high, 1.3 * low) ** 1.0 * 1.9)
        panel.set_title(f"{title}, relative to the {run.policies[0]['policy']}")
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.xaxis.set_minor_formatter(lambda *_: "")
        wanted = (1, 1.5, 2, 3, 5) if high < 8 else (1, 3, 10, 30) if high < 60 else (1, 10, 100)
        panel.set_xticks([tick for tick in wanted if tick <= high * 1.6])
        panel.grid(axis="x")
        panel.set_axisbelow(True)
    axes[0].set_yticks(range(len(rows)), [row["policy"] for row in rows])
    for label, row in zip(axes[0].get_yticklabels(), rows, strict=True):
        if row["policy"] == FEATURED:
            label.set(color=BLUE, weight="bold")


def latency_picture(run: RunFile) -> Picture | None:
    """The slowest parts of the requests on a scale that gives the tail its room."""
    return Picture(3.1, partial(_draw_latency, run)) if run.quantiles else None


def _draw_latency(run: RunFile, figure: FigureBase) -> None:
    drawn = [name for name in run.quantiles if name != REFERENCES[1]]
    names = [row["policy"] for row in run.policies] or drawn
    colored = [name for name in drawn if color_of(name, names) != MUTED]
    axes = figure.subplots()
    ends = []
    for name in sorted(drawn, key=lambda name: name in (FEATURED, REFERENCES[0])):
        points = [(q, s) for q, s in run.quantiles[name] if s and s > 0 and q < 1]
        if not points:
            continue
        xs, ys = [1 - q for q, _ in points], [s for _, s in points]
        color = color_of(name, names)
        is_reference = name in REFERENCES
        axes.plot(
            xs, ys, color=color, linewidth=2.2 if name == FEATURED else 1.2,
            linestyle=(0, (4, 2)) if is_reference else "-",
            alpha=1.0 if name in colored else 0.5, zorder=3 if name == FEATURED else 2,
        )  # fmt: skip
        if name in colored:
            ends.append((ys[-1], name, color))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.set_xlim(1.0, 1e-4)
    axes.set_xticks([0.5, 0.1, 0.01, 0.001], ["half", "1 of 10", "1 of 100", "1 of 1,000"])
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.yaxis.set_major_formatter(lambda value, _: seconds_text(value))
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel("this part of the requests took longer")
    axes.grid(which="major")
    _label_ends(axes, ends)


def _label_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names at the right ends of lines, moved apart where they would overlap."""
    low, high = (math.log(value) for value in axes.get_ylim())
    gap = (high - low) * 0.052
    last = -math.inf
    for value, name, color in sorted(ends):
        place = max(math.log(value), last + gap)
        last = place
        axes.annotate(
            name, (1e-4, math.exp(place)), xytext=(4, 0), textcoords="offset points", va="center",
            fontsize=7.5, color=color, weight="bold" if name == FEATURED else "normal",
            annotation_clip=False,
        )  # fmt: skip


# ---- workers -------------------------------------------------------------------------------------


def shares_picture(run: RunFile) -> Picture | None:
    """How evenly each policy spread the work: a dot for each worker, 1 is its fair share."""
    source: dict[str, dict[str, float]] = run.shares or {
        name: _fair(counts, run) for name, counts in run.requests.items()
    }
    source = {name: shares for name, shares in source.items() if shares}
    if not source:
        return None
    return Picture(0.24 * len(source) + 0.75, partial(_draw_shares, run, source))


def _draw_shares(run: RunFile, source: dict[str, dict[str, float]], figure: FigureBase) -> None:
    names = [row["policy"] for row in run.policies] or list(source)
    order = sorted(source, key=lambda name: max(source[name].values()), reverse=True)
    axes = figure.subplots()
    for y, name in enumerate(order):
        values = sorted(source[name].values())
        color = color_of(name, names)
        axes.plot([values[0], values[-1]], [y, y], color=color, linewidth=1, alpha=0.4)
        size = 26 if len(values) <= 32 else 6
        axes.scatter(values, [y] * len(values), s=size, color=color, alpha=0.75, linewidths=0)
    axes.axvline(1.0, color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
    axes.set_yticks(range(len(order)), order)
    for label, name in zip(axes.get_yticklabels(), order, strict=True):
        if name == FEATURED:
            label.set(color=BLUE, weight="bold")
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlabel("work done, relative to the fair share")
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def _fair(counts: dict[str, int], run: RunFile) -> dict[str, float]:
    total = sum(counts.values())
    weights = {w["name"]: w.get("weight", 1) for w in run.topology.get("workers", [])}
    able = sum(weights.get(name, 1) for name in counts)
    if not total or not able:
        return {}
    return {name: count / total / (weights.get(name, 1) / able) for name, count in counts.items()}


def series_picture(run: RunFile, policy: str) -> Picture | None:
    """Requests at each worker and how busy it was, over time."""
    series = run.series.get(policy)
    if not series or not series.get("moments"):
        return None
    names = list(series["workers"])[:ROWS_MAX]
    measures = [
        (key, title)
        for key, title in SERIES
        if all(key in series["workers"][name] for name in names)
    ]  # fmt: skip
    if not names or not measures:
        return None
    height = len(measures) * (0.165 * len(names) + 0.72)
    return Picture(height, partial(_draw_series, series, names, measures))


def _draw_series(
    series: dict[str, Any],
    names: list[str],
    measures: list[tuple[str, str]],
    figure: FigureBase,
) -> None:
    moments = series["moments"]
    panels = figure.subplots(len(measures), 1, squeeze=False, sharex=True)
    for (key, title), panel in zip(measures, panels[:, 0], strict=True):
        grid = [[value or 0.0 for value in series["workers"][name][key]] for name in names]
        top = max(1.0, max(max(row, default=0.0) for row in grid))
        image = panel.imshow(
            grid, aspect="auto", interpolation="nearest", cmap=_blues(), vmin=0.0, vmax=top,
            extent=(0.0, moments[-1], len(names) - 0.5, -0.5),
        )  # fmt: skip
        panel.set_yticks(range(len(names)), names)
        panel.set_title(title)
        bar = figure.colorbar(image, ax=panel, pad=0.01, fraction=0.03)
        bar.outline.set_visible(False)
        panel.tick_params(axis="y", length=0)
        panel.spines[["left", "bottom"]].set_visible(False)
    panels[-1, 0].set_xlabel("seconds from the start")


def _blues() -> Any:
    return mpl.colors.LinearSegmentedColormap.from_list(
        "lb", ["#f3f6fa", "#8fbfe0", BLUE, "#00263d"]
    )
