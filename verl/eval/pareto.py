"""Forgetting against retention: which methods no other beats on both, and how much of the plane they cover.

A point is (forget, retain) in percent: lower forget and higher retain are better. The area is the hypervolume in two
dimensions (Zitzler & Thiele 1999) against the worst corner, forget 100 and retain 0, as a percentage of the plane.
RULE's trade-off figure (arXiv 2506.07171) compares such areas at retention floors: a point that retains less than the
floor covers nothing, so that forgetting everything at any price does not win.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from .plots import MUTED, PALETTE, STYLE
from .tables import Table

Point = tuple[float, float]
View = tuple[float, float]
"""What a panel shows: forget from 0 to the first, retain from the second to 100."""
SOURCES = {"published": (MUTED, "s"), "ours": (PALETTE[2], "o")}
COORDINATES = {
    "rwku": ("forget_all_probe", "neighbor_all_probe"),
    "muse": ("knowmem_f", "utilpres_knowmem_r"),
}
FLOORS = (0.0, 0.4, 0.5, 0.6, 0.7)
"""Retention floors of RULE's trade-off figure, as fractions; the first is none."""
LABEL_OFFSETS = [(x, y) for y in (4, -12, 16, -24, 28, -36, 40, -48, 52) for x in (6, -6)]
"""Where a point's name may stand, in points from its marker; the first free place is taken."""
NEAR = 12
"""Names farther from their marker are tied to it by a line."""


def table_points(table: Table) -> dict[str, dict[str, Point]]:
    """Source (ours, published) to method to its point; methods without both coordinates are left out.

    Points lie at the kind of "All" that the table's paper prints: RULE's at macro means, RWKU's at means over probes.
    MUSE's points are KnowMem on the forget and on the retain split.
    """
    forget, retain = COORDINATES.get(table.kind, ("forget_all", "retain_all"))
    points: dict[str, dict[str, Point]] = {}
    for line in table.lines:
        if forget in line.cells and retain in line.cells:
            points.setdefault(line.source, {})[line.name] = (line.cells[forget].mean, line.cells[retain].mean)
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


def tradeoffs(table: Table) -> dict[str, list[float]]:
    """Method to its area, 0 to 1, at each of ``FLOORS``: the mean over targets of what its points cover there.

    Lines named ``METHOD@anything`` (steps, strengths) are points of one method.
    """
    forget, retain = COORDINATES.get(table.kind, ("forget_all", "retain_all"))
    points: dict[str, dict[str, dict[str, Point]]] = {}
    for line in table.lines:
        name = line.name.partition("@")[0] + " (published)" * (line.source == "published")
        means = {key: cell.mean for key, cell in line.cells.items()}
        for target, values in (line.per_target or {"": means}).items():
            if forget in values and retain in values:
                at = points.setdefault(name, {}).setdefault(target, {})
                at[line.name] = (values[forget], values[retain])
    return {
        name: [fmean(area(_above(of_target, 100 * floor)) / 100 for of_target in targets.values()) for floor in FLOORS]
        for name, targets in points.items()
    }


def _above(points: Mapping[str, Point], floor: float) -> dict[str, Point]:
    return {name: point for name, point in points.items() if point[1] >= floor}


def plot_tradeoffs(areas: Mapping[str, Sequence[float]], path: str | Path, *, title: str) -> None:
    """Draw each method's area over the retention floors; published methods are dashed."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 5.6), layout="constrained")
        axes = figure.subplots()
        for (name, values), color in zip(areas.items(), cycle(PALETTE), strict=False):
            style = "--" if name.endswith("(published)") else "-"
            axes.plot(range(len(FLOORS)), values, style, color=color, marker="o", label=name)
        axes.set_xticks(range(len(FLOORS)), ["none", *map(str, FLOORS[1:])])
        axes.set(xlabel="retention floor", ylabel="trade-off area (higher is better)", title=title, ylim=(0, None))
        axes.legend(fontsize=8)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def plot(
    points: Mapping[str, Mapping[str, Point]],
    path: str | Path,
    *,
    title: str,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Draw every source's points with its front as stairs; the legend gives the areas.

    Where points crowd near the ideal, its corner is drawn once more, enlarged.

    Args:
        labels: what the legend calls a source, where not by its name: published points name their model.
    """
    views = _views([point for named in points.values() for point in named.values()])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.0 + 6.0 * len(views), 5.6), layout="constrained")
        panels = figure.subplots(1, len(views), squeeze=False)[0]
        for axes, (right, low), name in zip(panels, views, (title, "the corner, enlarged"), strict=False):
            _draw(axes, points, labels or {})
            axes.set_title(name)
            height = 100 - low
            axes.set(xlim=(-0.03 * right, 1.03 * right), ylim=(low - 0.03 * height, 100 + 0.06 * height))
        panels[0].legend(loc="lower right")
        figure.draw_without_rendering()  # settles the layout, so that extents are final
        _name_points(panels, views[-1], points)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def _views(points: Sequence[Point]) -> list[View]:
    """The plane and, if that is less than a quarter of it, the corner that holds three in four points."""
    plane = (100.0, 0.0)
    most = max(0, 3 * len(points) // 4 - 1)
    right = sorted(forget for forget, _ in points)[most]
    low = sorted((retain for _, retain in points), reverse=True)[most]
    if len(points) <= 4 or right * (100 - low) >= 100 * 100 / 4:
        return [plane]
    return [plane, (max(1.1 * right, 1.0), min(100 - 1.1 * (100 - low), 99.0))]


def _draw(axes: Axes, points: Mapping[str, Mapping[str, Point]], labels: Mapping[str, str]) -> None:
    for source, (color, marker) in SOURCES.items():
        named = points.get(source, {})
        if not named:
            continue
        label = f"{labels.get(source, source)} (area {area(named):.1f} %)"
        axes.scatter(*zip(*named.values(), strict=True), color=color, marker=marker, label=label, zorder=3)
        corners = [named[name] for name in front(named)]
        steps = [corners[0][0], *(forget for forget, _ in corners), 100.0]
        axes.step(
            steps, [0.0, *(retain for _, retain in corners), corners[-1][1]], where="post", color=color, alpha=0.6
        )
    axes.set(xlabel="forget: knowledge left, % (lower is better)", ylabel="retain, % (higher is better)")


def _name_points(panels: Sequence[Axes], closest: View, points: Mapping[str, Mapping[str, Point]]) -> None:
    """Write every name beside its point, with a line to it, over neither markers nor other names: in the last panel,
    which shows the closest view, what that holds, and in the first all else."""
    every = [point for named in points.values() for point in named.values()]
    taken = {
        axes: [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axes.transData.transform(every)] for axes in panels
    }
    for source, (color, _) in SOURCES.items():
        for name, (forget, retain) in points.get(source, {}).items():
            axes = panels[-1] if forget <= closest[0] and retain >= closest[1] else panels[0]
            taken[axes].append(_name_point(axes, name, (forget, retain), color, taken[axes]))


def _name_point(axes: Axes, name: str, point: Point, color: str, taken: list[Bbox]) -> Bbox:
    for x, y in LABEL_OFFSETS:
        at = {"xytext": (x, y), "textcoords": "offset points"}
        label = axes.annotate(name, point, **at, ha="left" if x > 0 else "right", fontsize=8, color=color)
        box = label.get_window_extent()
        if (x, y) == LABEL_OFFSETS[-1] or not any(box.overlaps(other) for other in taken):
            break
        label.remove()
    if abs(y) > NEAR:
        axes.annotate("", point, **at, arrowprops={"arrowstyle": "-", "color": color, "lw": 0.5, "shrinkA": 0})
    return box
