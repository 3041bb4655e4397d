"""The forget, neighbor and Atlas utility parts: ROUGE-L recall, refusal rate and containment of short answers."""

from functools import partial
from pathlib import Path

from ..config import PromptStyle
from ..generation import Generator
from ..probes import ask, column_scores, decoding, read_rows
from ..results import Part, Row

FORGET_FILES = {"fb": "forget_level1.json", "qa": "forget_level2.json", "aa": "forget_level3.json"}
NEIGHBOR_FILES = {"fb": "neighbor_level1.json", "qa": "neighbor_level2.json"}
UTILITY_FILE = "retain_atlas.json"


def load_probes(data: Path, files: dict[str, str]) -> list[Row]:
    """Rows of the files, each with its column's name added."""
    keys = {"aa": ["query", "answer", "type"]}
    return [
        {**row, "column": column}
        for column, name in files.items()
        for row in read_rows(data / name, keys.get(column, ["query", "answer"]))
    ]


def forget_part(style: PromptStyle, system: str | None = None) -> Part:
    """Fill-in-the-blank, question and adversarial probes about the target (levels 1, 2, 3); lower is better."""
    return _part("forget", FORGET_FILES, style, system)


def neighbor_part(style: PromptStyle, system: str | None = None) -> Part:
    """Fill-in-the-blank and question probes about what is near the target; higher is better."""
    return _part("neighbor", NEIGHBOR_FILES, style, system)


def utility_part(style: PromptStyle, system: str | None = None) -> Part:
    """General knowledge of the Atlas world, in one column named ``utility``; higher is better."""
    return _part("utility", {"utility": UTILITY_FILE}, style, system)


def _part(name: str, files: dict[str, str], style: PromptStyle, system: str | None) -> Part:
    load = partial(load_probes, files=files)

    def run(data: Path, generator: Generator) -> list[Row]:
        return ask(generator, load(data), style, system, desc=name)

    score = partial(column_scores, columns=list(files))
    return Part(name, "generation", tuple(files.values()), decoding(style, system), run, score, load)
