"""The settings of a comparison. Light: parsing them imports neither torch nor vLLM."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from verl.settings.path_types import PathText, Sources, folder_problem
from verl.utils.errors import closest

ORIGINAL = "original"
"""What ``start`` calls the model before unlearning."""
NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class RowConfig:
    """A row of the table: a method, and what its tries differ in."""

    stage: Literal["none", "rs", "rebo"] = "rs"
    """What makes its model: ``rs`` RS/train.py, ``rebo`` verl.trainer.main, ``none`` nothing (``settings`` and ``grid``
    are then the evaluator's, such as system_prompt)."""
    name: str | None = None
    """What the table calls it; null: its key."""
    kind: Literal["ours", "baseline", "ablation", "part"] = "baseline"
    """Tables say by which baselines a row of ours is dominated. A ``part`` is a model that rows need, and no row: it
    has one try and is not measured."""
    start: str = ORIGINAL
    """Row whose chosen model it starts from, ``$start`` in its settings; ``original``: the model before unlearning."""
    config: Sources | None = None
    """YAML files of its stage, in front of those of the world."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of every try. ``$model`` is the model before unlearning, ``$subject`` the target's name, ``$NAME`` a
    file of ``files``."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Setting to its values, the likeliest first; ``x3`` is three times what the row has without the grid. Tries are
    the first ``tries`` combinations, the last key changing fastest."""


@dataclass(frozen=True)
class CompareConfig:
    """A world (model, targets, settings), rows, and where everything goes."""

    model: PathText
    """Model before unlearning: a Hugging Face folder or hub id."""
    data: PathText
    """Folder of target folders."""
    targets: list[str]
    """Names or numbers of target folders."""
    log: PathText
    """Folder of the tries: ``<target>/seed<seed>/<row>/<try>``."""
    out: PathText
    """Folder of what is measured, of the table, tries.json and report.html."""
    rows: dict[str, RowConfig]
    """Row to what it is, in the order of the table."""
    only: list[str] | None = None
    """Rows to make; null: all. Those that they start from are made, too."""
    seeds: list[int] = field(default_factory=lambda: [1])
    """Seeds of training: a row is trained, and its try chosen, once a seed and target."""
    tries: int = 3
    """Tries of every method that has something to try."""
    files: dict[str, str] = field(default_factory=dict)
    """What ``$NAME`` in the rows' settings stands for: a file of the target's folder."""
    suite: Literal["rwku", "atlas"] = "rwku"
    """Benchmark of the chosen tries."""
    parts: list[str] | None = None
    """Its parts; null: all."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """More settings of the evaluator, the same for every row."""
    rs_config: Sources | None = None
    """YAML files of RS in this world, beneath the settings of every row of stage rs."""
    rebo_config: Sources | None = None
    """YAML files of ReBO in this world, over the file of every row of stage rebo."""
    attacks: Sources | None = None
    """YAML files of verl.eval.robustness with the attackers' budgets; null: the chosen tries are not attacked."""
    ranks: int = 1
    """Ranks of a try."""
    parallel: int | None = None
    """Tries at a time; null: as many as there is a core for each rank of on a CPU, one on GPUs."""
    minutes: dict[str, float] = field(default_factory=dict)
    """Minutes of one try of a stage (rs, rebo), and of one model's validation (score), evaluation (measure) and attacks
    (attack): for the estimate of a dry run."""
    keep_models: bool = False
    """Keep the models of tries that were not chosen."""
    dry_run: bool = False
    """Check everything, print rows, tries and minutes, and start nothing."""

    def problems(self) -> list[str]:
        found = [] if self.rows else ["rows={}: names no row; give for example config=examples/table.yaml"]
        for key in ("tries", "ranks", "parallel"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                found.append(f"{key}={getattr(self, key)}: must be at least 1; set 1")
        for key in ("targets", "seeds", "only"):
            given = getattr(self, key)
            if given is not None and not given:
                found.append(f"{key}=[]: names nothing; give at least one")
            if given and len(set(given)) < len(given):
                found.append(f"{key}={given}: names one twice; give each once")
        found += [
            f"seeds={seed}: must be 0 or greater; give for example seeds=[1,2]" for seed in self.seeds if seed < 0
        ]
        for key in ("log", "out"):
            if reason := folder_problem(Path(getattr(self, key))):
                found.append(f"{key}={getattr(self, key)}: {reason}")
        return (
            found
            + [f"only={name}: {self._unknown(name)}" for name in self.only or () if name not in self.rows]
            + ([problem for name, row in self.rows.items() for problem in self._row_problems(name, row)])
        )

    def _unknown(self, name: str) -> str:
        near = closest(name, self.rows)
        return f"is no row; {f'did you mean {near}?' if near else 'the rows are ' + ', '.join(self.rows)}"

    def _row_problems(self, name: str, row: RowConfig) -> list[str]:
        found = []
        if not NAME.fullmatch(name):
            found.append(
                f"rows.{name}: must be a lower-case word, since folders and variables have this name; rename it"
            )
        if row.start != ORIGINAL and row.start not in self.rows:
            found.append(f"rows.{name}.start={row.start}: {self._unknown(row.start)}")
        elif row.start != ORIGINAL and self._in_circle(name):
            found.append(f"rows.{name}.start={row.start}: starts from itself in the end; start one from {ORIGINAL}")
        if row.stage == "none" and (row.start != ORIGINAL or row.config):
            found.append(f"rows.{name}: stage=none trains nothing, so start and config do nothing; leave them out")
        if row.stage == "rebo" and not row.config:
            found.append(f"rows.{name}.config: is required for stage=rebo; give for example examples/grpo_rj_rl.yaml")
        found += [
            f"rows.{name}.grid.{key}=[]: has no value; give at least one" for key in row.grid if not row.grid[key]
        ]
        found += [
            f"rows.{name}.grid.{key}: is among the settings of the row, too; leave one of them out"
            for key in row.grid.keys() & row.settings.keys()
        ]
        return found

    def _in_circle(self, name: str) -> bool:
        seen = set()
        while name != ORIGINAL and name in self.rows and name not in seen:
            seen.add(name)
            name = self.rows[name].start
        return name in seen
