"""The forget, neighbor and Atlas utility parts: ROUGE-L recall, verdicts and containment of short answers."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from verl.utils.errors import DataError

from ..generation import Generator
from ..probes import Asking, ask, column_scores, probe_decoding
from ..reading import read_rows
from ..results import Interview, Part, Row

FORGET_FILES = {"fb": "forget_level1.json", "qa": "forget_level2.json", "aa": "forget_level3.json"}
NEIGHBOR_FILES = {"fb": "neighbor_level1.json", "qa": "neighbor_level2.json"}
UTILITY_FILE = "retain_atlas.json"
SHOT_FILES = {column: FORGET_FILES[column] for column in ("fb", "qa")}
"""What few-shot examples are drawn from."""
LEVELS = {"fb": "1", "qa": "2", "aa": "3"}


def load_probes(data: Path, files: dict[str, str]) -> list[Row]:
    """Rows of the files, each with its column's name added.

    Raises:
        DataError: a row without a text in one of its columns, or of another level than its file.
    """
    probes = []
    for column, name in files.items():
        texts = ["query", "type"] if column == "aa" else ["query"]
        rows = read_rows(data / name, texts, answers=["answer"], optional=["subject", "type"])
        for number, row in enumerate(rows):
            level = LEVELS.get(column)
            if level is not None and str(row.get("level", level)) != level:
                raise DataError(
                    f"{data / name}: row {number}: level={row['level']!r}, but the file is of level {level}"
                )
            probes.append({**row, "column": column})
    return probes


def forget_part(asking: Asking) -> Part:
    """Fill-in-the-blank, question and adversarial probes about the target (levels 1, 2, 3); lower is better."""
    return _part("forget", FORGET_FILES, asking)


def neighbor_part(asking: Asking) -> Part:
    """Fill-in-the-blank and question probes about what is near the target; higher is better."""
    return _part("neighbor", NEIGHBOR_FILES, asking)


def utility_part(asking: Asking) -> Part:
    """General knowledge of the Atlas world, in one column named ``utility``, never behind shots; higher is better."""
    return _part("utility", {"utility": UTILITY_FILE}, replace(asking, shots=0))


def _part(name: str, files: dict[str, str], asking: Asking) -> Part:
    load = partial(load_probes, files=files)
    shots = SHOT_FILES if asking.shots else {}

    def run(data: Path, generator: Generator) -> Interview:
        return ask(generator, load(data), asking, name, pool=load_probes(data, shots))

    score = partial(column_scores, columns=list(files))
    read = tuple({**dict.fromkeys(files.values()), **dict.fromkeys(shots.values())})
    return Part(name, "generation", read, probe_decoding(asking), run, score, load)
