"""The two pictures of a run: forget against neighbor recall, and the training curves.

Pure drawing: numbers in, a PNG out. Leaves out reading results (``report``) and tables (``tables``).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

INK, MUTED, GRID = "#22262b", "#707782", "#e6e8eb"
PALETTE = ("#5b6470", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours, which colour-blind readers can tell apart; the first, for the base model, is a grey."""
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#b9bec5",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Point:
    """One checkpoint of the Pareto plot, in percent."""

    name: str
    forget: float
    neighbor: float
    forget_interval: tuple[float, float] | None = None
    neighbor_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Curve:
    """One metric of a panel."""

    key: str
    """The metric's name in metrics.jsonl."""
    label: str
    color: str
    scale: float = 1.0
    dotted: bool = False
    """Drawn with markers and without a fill, for values that are measured now and then."""


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    curves: tuple[Curve, ...]
    limits: tuple[float, float] | None = None


FORGET, BOUNDARY, OVERALL = "#d55e00", "#0072b2", "#5b6470"
PANELS = (
    Panel(
        "Reward",
        "mean reward of a rollout",
        (
            Curve("reward/overall", "all prompts", OVERALL),
            Curve("reward/forget/overall", "forget", FORGET),
            Curve("reward/boundary/overall", "boundary", BOUNDARY),
        ),
    ),
    Panel(
        "Refusals",
        "percent of answers that refuse",
        (
            Curve("reward/forget/refusal", "forget", FORGET, 100),
            Curve("reward/boundary/refusal", "boundary", BOUNDARY, 100),
            Curve("val/reward/forget/refusal", "forget, validation", FORGET, 100, dotted=True),
            Curve("val/reward/boundary/refusal", "boundary, validation", BOUNDARY, 100, dotted=True),
        ),
        (-4, 104),
    ),
    Panel("Distance from the reference", "KL loss, nats a token", (Curve("actor/kl_loss", "KL", "#009e73"),)),
)


def pareto(
    points: Sequence[Point],
    path: str | Path,
    *,
    title: str = "",
    trajectory: Sequence[tuple[int, float, float]] = (),
) -> None:
    """Forget recall (lower is better) against neighbor recall (higher is better), one point per checkpoint.

    Args:
        trajectory: (step, forget, neighbor) in percent, measured on validation prompts during training; drawn as a
            line of its own, because it is not measured on the probes that the points are measured on.
    """
    with _figure(path, (8.0, 5.6)) as figure:
        axes = figure.add_subplot()
        axes.set_xlabel("forget: ROUGE-L recall, %   (lower is better)")
        axes.set_ylabel("neighbor: ROUGE-L recall, %   (higher is better)")
        axes.set_title(title, pad=12)
        _set_limits(axes, [*map(_worst_corner, points), *((x, y) for _, x, y in trajectory)])
        axes.scatter(0, 100, marker="*", s=230, color="#f0c419", clip_on=False, zorder=4, label="ideal")
        if trajectory:
            _draw_trajectory(axes, trajectory)
        for point, color, height in zip(points, cycle(PALETTE), _label_heights(axes, points), strict=False):
            _draw_point(axes, point, color, height)
        axes.legend(loc="lower right")


def _draw_point(axes: Axes, point: Point, color: str, label_height: float) -> None:
    for interval, along_x in ((point.forget_interval, True), (point.neighbor_interval, False)):
        if interval is not None:
            xs, ys = (interval, [point.neighbor] * 2) if along_x else ([point.forget] * 2, interval)
            axes.plot(xs, ys, color=color, linewidth=1.6, alpha=0.4, solid_capstyle="round", zorder=3)
    axes.scatter(point.forget, point.neighbor, s=120, color=color, edgecolor="white", linewidth=1.5, zorder=6)
    on_right = _label_on_right(axes, point)
    offset, align = (14, "left") if on_right else (-14, "right")
    place = {"xy": (point.forget, label_height), "ha": align, "color": color, "zorder": 7}
    _annotate(axes, point.name, offset=(offset, 1), va="bottom", fontweight="bold", fontsize=11, **place)
    numbers = f"forget {point.forget:.1f}   neighbor {point.neighbor:.1f}"
    _annotate(axes, numbers, offset=(offset, -1), va="top", fontsize=8.5, **place)


def _label_on_right(axes: Axes, point: Point) -> bool:
    return point.forget < sum(axes.get_xlim()) / 2


def _label_heights(axes: Axes, points: Sequence[Point]) -> list[float]:
    """Where the labels stand: at their points, moved down where two on one side would overlap."""
    low, high = axes.get_ylim()
    gap = 0.085 * (high - low)
    heights = {}
    floor = {True: high, False: high}
    for index in sorted(range(len(points)), key=lambda i: -points[i].neighbor):
        side = _label_on_right(axes, points[index])
        heights[index] = min(points[index].neighbor, floor[side])
        floor[side] = heights[index] - gap
    return [heights[index] for index in range(len(points))]


def _draw_trajectory(axes: Axes, trajectory: Sequence[tuple[int, float, float]]) -> None:
    steps, xs, ys = zip(*trajectory, strict=True)
    color = "#56b4e9"
    label = "ReBO training, on validation prompts"
    axes.plot(
        xs, ys, color=color, linewidth=1.4, linestyle=(0, (3, 1.5)), marker="o", markersize=4, zorder=5, label=label
    )
    ends = sorted({0, len(steps) - 1}, key=lambda index: ys[index])
    style = {"ha": "right", "fontsize": 8.5, "color": MUTED, "zorder": 8}  # above the star, where training ends
    for index, side in zip(ends, ("top", "bottom"), strict=False):  # the lower one below its point
        _annotate(axes, f"step {steps[index]}", (xs[index], ys[index]), (-9, 0), va=side, **style)


def _annotate(axes: Axes, text: str, xy: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
    halo = [withStroke(linewidth=3, foreground="white")]
    axes.annotate(text, xy, offset, textcoords="offset points", annotation_clip=False, path_effects=halo, **style)


def _worst_corner(point: Point) -> tuple[float, float]:
    """The end of the intervals that is farthest from the ideal."""
    forget = point.forget if point.forget_interval is None else point.forget_interval[1]
    return forget, point.neighbor if point.neighbor_interval is None else point.neighbor_interval[0]


def _set_limits(axes: Axes, shown: Sequence[tuple[float, float]]) -> None:
    """From the ideal corner to a little beyond the farthest point, with room for labels on the left."""
    right = max(max(x for x, _ in shown), 10.0)
    low = min(min(y for _, y in shown), 90.0)
    axes.set_xlim(-0.12 * right, 1.06 * right)
    axes.set_ylim(low - 0.16 * (100 - low), 100 + 0.05 * (100 - low))
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= 100 and tick <= 1.06 * right])
    axes.set_yticks([tick for tick in axes.get_yticks() if low - 0.16 * (100 - low) <= tick <= 100 and tick >= 0])


def curves(rows: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "") -> list[str]:
    """Reward, refusal rates and KL over training steps; returns the metrics that no row has, which are left out.

    Args:
        rows: ``{"step", metric: value, ...}``, a metric being absent on steps where it was not measured.
    """
    missing = []
    with _figure(path, (13.2, 4.2)) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        for axes, panel in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
            missing += _draw_panel(axes, panel, rows)
    return missing


def _draw_panel(axes: Axes, panel: Panel, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    missing = []
    for curve in panel.curves:
        # A resumed run logs some steps again: the later value is the one it went on from.
        points = {row["step"]: curve.scale * row[curve.key] for row in rows if row.get(curve.key) is not None}
        if not points:
            missing.append(curve.key)
            continue
        style = {"marker": "o", "markersize": 5, "linestyle": (0, (1, 2))} if curve.dotted else {"linewidth": 2}
        axes.plot(*zip(*sorted(points.items()), strict=True), color=curve.color, label=curve.label, **style)
    axes.set_title(panel.title)
    axes.set_xlabel("training step")
    axes.set_ylabel(panel.unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.limits:
        axes.set_ylim(*panel.limits)
    if len(panel.curves) == len(missing):
        axes.text(0.5, 0.5, "not logged in this run", transform=axes.transAxes, ha="center", color=MUTED)
    elif len(panel.curves) > 1:
        axes.legend(fontsize=9)
    return missing


@contextmanager
def _figure(path: str | Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure in our style, saved as PNG beside its place and then renamed; no display and no pyplot state."""
    path = Path(path)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.tmp")
        figure.savefig(beside, dpi=160, format="png", facecolor="white")
        beside.replace(path)
