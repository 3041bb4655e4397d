"""Rows into tries: combinations of a grid, factors worked out, names, order. Pure.

A try is one training with one seed on one target; what is measured of it is the model that it ends with. As a command
(``python3 -m verl.compare.plan``) it says what is wrong with a comparison's settings alone, before a world is made.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from string import Template
from typing import Any

from verl.settings.cli import run_cli
from verl.settings.describe import flow
from verl.utils.errors import ConfigError, bullet_list

from .config import ORIGINAL, CompareConfig, RowConfig

FACTOR = re.compile(r"x(\d+(?:\.\d+)?(?:e-?\d+)?)")


@dataclass(frozen=True)
class Try:
    """One try of a row on a target with a seed."""

    row: str
    target: str
    """Name of its folder."""
    seed: int
    number: int
    """From 1, in the order of the grid."""
    point: tuple[tuple[str, Any], ...]
    """What it differs in from the row's other tries; factors are not worked out."""

    @property
    def unit(self) -> tuple[str, str, int]:
        """What one choice is made for."""
        return self.row, self.target, self.seed

    @property
    def place(self) -> Path:
        return Path(self.target) / f"seed{self.seed}" / self.row / str(self.number)


def grid_points(grid: Mapping[str, list[Any]], tries: int) -> list[dict[str, Any]]:
    """The first ``tries`` combinations, the last key changing fastest; one empty one where there is no grid."""
    return [dict(zip(grid, values, strict=True)) for values in islice(product(*grid.values()), tries)]


def grid_problems(config: CompareConfig) -> list[str]:
    """Rows whose tries are fewer than those of the others. What trains nothing and varies nothing has one."""
    found = []
    for name in selected(config):
        row = config.rows[name]
        have = len(grid_points(row.grid, config.tries))
        if have < config.tries and (row.stage != "none" or row.grid) and row.kind != "part":
            found.append(
                f"rows.{name}.grid: has {have} combination(s), and every method gets tries={config.tries}; add values, "
                "or set fewer tries"
            )
    return found


def selected(config: CompareConfig) -> list[str]:
    """The rows to make, in the order of the table: the original, those that are asked for, and what they start from."""
    wanted = set(config.only or config.rows)
    for name in list(wanted):
        while (name := config.rows[name].start) != ORIGINAL:
            wanted.add(name)
    return [name for name, row in config.rows.items() if name in wanted or is_original(row)]


def is_original(row: RowConfig) -> bool:
    """Whether a row is the model before unlearning, asked as it is."""
    return row.stage == "none" and not row.grid and not row.settings


def is_part(config: CompareConfig, name: str) -> bool:
    """Whether a row is a model that others need, and none of the table's."""
    return config.rows[name].kind == "part"


def waves(config: CompareConfig) -> list[list[str]]:
    """The rows in the order of training: a row comes behind the one that it starts from."""
    left, done, ordered = selected(config), {ORIGINAL}, []
    while left:
        now = [name for name in left if config.rows[name].start in done]
        ordered.append(now)
        done |= set(now)
        left = [name for name in left if name not in now]
    return ordered


def tries_of(config: CompareConfig, name: str, targets: list[str]) -> Iterator[Try]:
    """All tries of a row. What trains nothing has no seed: it is measured once, under the first."""
    row = config.rows[name]
    for target in targets:
        for seed in config.seeds[:1] if row.stage == "none" else config.seeds:
            for number, point in enumerate(grid_points(row.grid, 1 if is_part(config, name) else config.tries), 1):
                yield Try(name, target, seed, number, tuple(point.items()))


def worked_out(point: Mapping[str, Any], base: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A point of a grid with its factors worked out.

    Args:
        base: what the row has without the grid, sections within sections.

    Raises:
        ConfigError: a factor of what is no number.
    """
    values = {}
    for key, value in point.items():
        values[key] = value
        if isinstance(value, str) and (factor := FACTOR.fullmatch(value)):
            before: Any = base
            for name in key.split("."):
                before = before.get(name) if isinstance(before, Mapping) else None
            if isinstance(before, bool) or not isinstance(before, int | float):
                raise ConfigError(
                    f"{where}.{key}={value}: multiplies {key}={before}, which is no number; write the value"
                )
            # Seven digits, so that 3 x 0.1 is 0.3 in folders and tables.
            values[key] = type(before)(float(f"{before * float(factor[1]):.7g}"))
    return values


def filled(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Settings with ``$NAME`` replaced, also within lists and mappings.

    Raises:
        ConfigError: for a name that means nothing.
    """

    def fill(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [fill(key, one) for one in value]
        if isinstance(value, dict):
            return {name: fill(f"{key}.{name}", one) for name, one in value.items()}
        if not isinstance(value, str) or "$" not in value:
            return value
        template = Template(value)
        if unknown := set(template.get_identifiers()) - names.keys():
            raise ConfigError(f"{key}={value}: ${unknown.pop()} means nothing; known are ${', $'.join(names)}")
        return template.safe_substitute(names)

    return {key: fill(key, value) for key, value in settings.items()}


def as_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as ``key=value`` words."""
    return [f"{key}={value if isinstance(value, str) else flow(value)}" for key, value in settings.items()]


def shown(point: Mapping[str, Any]) -> str:
    """A point of a grid in few words: the last part of each key, numbers short."""
    words = []
    for key, value in point.items():
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        words.append(f"{key.rpartition('.')[2]}={text if len(text) <= 40 else text[:37] + '...'}")
    return ", ".join(words)


def check_grids(config: CompareConfig) -> None:
    """Raise ConfigError for rows with too few tries."""
    if found := grid_problems(config):
        raise ConfigError(bullet_list("some rows have too few tries:", found))


if __name__ == "__main__":
    sys.exit(run_cli(CompareConfig, check_grids, sys.argv[1:]))
