"""Forgetting against retention: which methods no other beats on both, and how much of the plane they cover.

A point is (forget, retain) in percent: lower forget and higher retain are better. The area is the hypervolume in two
dimensions (Zitzler & Thiele 1999) against the worst corner, forget 100 and retain 0, as a percentage of the plane.
"""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .plots import MUTED, PALETTE, STYLE
from .tables import Table

Point = tuple[float, float]


def table_points(table: Table) -> dict[str, dict[str, Point]]:
    """Source (ours, published) to method to its point, over the table's macro means; methods without both are left out.

    MUSE's points are KnowMem on the forget and on the retain split.
    """
    forget, retain = ("knowmem_f", "utilpres_knowmem_r") if table.kind == "muse" else ("forget_all", "retain_all")
    if table.kind == "rwku":
        retain = "neighbor_all"
    points: dict[str, dict[str, Point]] = {}
    for line in table.lines:
        # RWKU prints the mean over probes alone, so its published rows are placed by that.
        cells = [line.cells.get(key, line.cells.get(f"{key}_probe")) for key in (forget, retain)]
        if cells[0] is not None and cells[1] is not None:
            points.setdefault(line.source, {})[line.name] = (cells[0].mean, cells[1].mean)
    return points


def front(points: Mapping[str, Point]) -> list[str]:
    """Names of the points that no other point equals or beats in both and beats in one, by rising forget."""
    kept = [
        name
        for name, (forget, retain) in points.items()
        if not any(f <= forget and r >= retain and (f, r) != (forget, retain) for f, r in points.values())
    ]
    return sorted(kept, key=lambda name: points[name])


def area(points: Mapping[str, Point]) -> float:
    """Share of the plane, in percent, that is no better than some point. Coordinates outside 0..100 are clipped."""
    best: dict[float, float] = {}
    for forget, retain in points.values():
        clipped = min(max(forget, 0.0), 100.0)
        best[clipped] = max(best.get(clipped, 0.0), min(max(retain, 0.0), 100.0))
    edges = [*sorted(best), 100.0]
    covered = height = 0.0
    for left, right in zip(edges, edges[1:], strict=False):
        height = max(height, best[left])
        covered += (right - left) * height
    return covered / 100.0


def plot(points: Mapping[str, Mapping[str, Point]], path: str | Path, *, title: str) -> None:
    """Draw every source's points with its front as stairs; the legend gives the areas."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 5.6), layout="constrained")
        _draw(figure.subplots(), points, title)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def _draw(axes: Axes, points: Mapping[str, Mapping[str, Point]], title: str) -> None:
    for source, color, marker in (("published", MUTED, "s"), ("ours", PALETTE[2], "o")):
        named = points.get(source, {})
        if not named:
            continue
        label = f"{source} (area {area(named):.1f} %)"
        axes.scatter(*zip(*named.values(), strict=True), color=color, marker=marker, label=label, zorder=3)
        for name, point in named.items():
            axes.annotate(name, point, xytext=(5, 4), textcoords="offset points", fontsize=8, color=color)
        corners = [named[name] for name in front(named)]
        steps = [corners[0][0], *(forget for forget, _ in corners), 100.0]
        axes.step(
            steps, [0.0, *(retain for _, retain in corners), corners[-1][1]], where="post", color=color, alpha=0.6
        )
    axes.set(xlabel="forget: knowledge left, % (lower is better)", ylabel="retain, % (higher is better)", title=title)
    axes.set(xlim=(-3, 103), ylim=(-3, 106))
    axes.legend(loc="lower right")
