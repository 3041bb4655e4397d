"""Prints what trains a row of a comparison on one target, untuned: its name, and the words of RS/train.py.

    python3 scripts/baseline_words.py row=npo_klr files=examples/table.yaml,examples/table_rwku.yaml \
        model=MODEL target=data/RWKU/Target/1_Stephen_King

The words are a line, quoted for a shell, with the first of the row's grid. run_rwku.sh trains BASELINES so. Left out:
the folder that is written, and tuning (run_table.sh).
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from verl.compare.config import ORIGINAL, CompareConfig
from verl.compare.jobs import ALTERNATES, FORGET_ONLY, job_of, needs
from verl.compare.plan import tries_of
from verl.settings.cli import run_cli
from verl.settings.path_types import PathText
from verl.settings.reader import load
from verl.utils.errors import ConfigError, closest


@dataclass(frozen=True)
class BaselineConfig:
    """A row of a rows file, and what it is to be trained on."""

    row: str
    """Row of stage rs that starts from the model before unlearning."""
    files: str
    """YAML files of rows and world."""
    model: PathText
    """Model before unlearning."""
    target: PathText
    """The target's folder, which need not be there."""
    rs_config: str | None = None
    """YAML files of RS instead of the world's."""


def baseline(config: BaselineConfig) -> tuple[str, list[str]]:
    """What tables call the row, and the words of RS/train.py but for output_dir.

    Raises:
        ConfigError: there is no such row, or RS/train.py alone does not make it.
    """
    target = Path(config.target)
    words = [f"config={config.files}", f"model={config.model}", f"data={target.parent}", "log=log", "out=results"]
    words += [f"rs_config={config.rs_config}"] * bool(config.rs_config)
    table = load(CompareConfig, [*words, f"targets=['{target.name}']", "attacks=null", "tries=1"])
    if config.row not in table.rows:
        near = closest(config.row, table.rows)
        raise ConfigError(f"BASELINES={config.row}: is no row of {config.files}; did you mean {near or 'npo_klr'}?")
    row, made = table.rows[config.row], [name for name in (FORGET_ONLY, ALTERNATES) if needs(table, config.row, name)]
    if row.stage != "rs" or row.start != ORIGINAL or made:
        raise ConfigError(f"BASELINES={config.row}: is not made by RS/train.py alone; bash run_table.sh makes it")
    one = next(tries_of(table, config.row, [target.name]))
    return row.name or config.row, job_of(table, one, target, config.model).words


def show(config: BaselineConfig) -> None:
    name, words = baseline(config)
    print(f"{name}\n{shlex.join(words)}")


def main(argv: list[str]) -> int:
    return run_cli(BaselineConfig, show, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
