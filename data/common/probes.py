"""Knows every probe of a benchmark folder and tells whether a training prompt overlaps with one.

An overlap is a normalised match, or a run of ``ngram`` words in common; a probe that is shorter than that counts when
it occurs whole. Rewordings that keep neither are not found.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from verl.rows.sources import read_file
from verl.rows.values import is_number, shown
from verl.utils.errors import DataError
from verl.verdict.answers import normalize

PROBE_NGRAM = 7
"""Words, articles not counted. Of the 1,200 published training prompts of Stephen King, Confucius and Christina
Aguilera, 23, 0 and 37 share 7 words in a row with a forget or neighbor probe, nearly all of them about the same fact;
189, 12 and 301 share 5, mostly a turn of phrase."""
SHORTEST_PROBE = 4
"""Words. Shorter probes say too little to be looked for inside a longer prompt."""

QUESTION_FILES = (*(f"forget_level{level}" for level in (1, 2, 3)), *(f"neighbor_level{level}" for level in (1, 2)))
PROBE_FIELDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(QUESTION_FILES, ("query",)),
    "forget_mia": ("text",),
    "retain_mia": ("text",),
    "retain_mmlu": ("question",),
    "retain_bbh": ("question",),
    "truthful": ("question",),
    "triviaqa": ("question",),
    "fluency": ("instruction",),
    "retain_atlas": ("query",),
    "knowmem/forget_qa": ("question",),
    "knowmem/retain_qa": ("question",),
    "verbmem/forget": ("prompt", "gt"),
    "privleak/forget": ("text",),
    "privleak/retain": ("text",),
    "privleak/holdout": ("text",),
}
"""Probe file (without .json) of RWKU, Atlas and MUSE, and the fields whose text is a probe."""


def words(text: str) -> list[str]:
    """Normalised words; the blank of a cloze is not one."""
    return normalize(re.sub(r"_+", " ", text)).split()


class ProbeIndex:
    """The probes as a set of normalised texts and a set of word runs."""

    def __init__(self, texts: Iterable[str] = (), ngram: int = PROBE_NGRAM):
        self.ngram = ngram
        self.size = 0
        self._exact: set[str] = set()
        self._runs: set[tuple[str, ...]] = set()
        self._lengths: set[int] = set()
        for text in texts:
            self._add(words(text))

    @classmethod
    def from_folder(cls, folder: str | Path, names: Iterable[str] = tuple(PROBE_FIELDS)) -> "ProbeIndex":
        """The probes of those files of ``folder`` which are there.

        Raises:
            DataError: there is none, so that nothing could be checked.
        """
        found = {name: path for name in names if (path := Path(folder) / f"{name}.json").is_file()}
        if not found:
            raise DataError(f"{folder}: holds no probe file ({', '.join(names)}); give the folder of a prepared target")
        return cls(text for name, path in found.items() for text in texts_of(name, read_file(path)))

    def _add(self, probe: list[str]) -> None:
        self.size += 1
        self._exact.add(" ".join(probe))
        length = min(self.ngram, len(probe))
        if length >= SHORTEST_PROBE:
            self._lengths.add(length)
            self._runs.update(_runs(probe, length))

    def overlap(self, text: str) -> str | None:
        """``probe_exact``, ``probe_ngram``, or None where the text overlaps with no probe."""
        given = words(text)
        if " ".join(given) in self._exact:
            return "probe_exact"
        if any(run in self._runs for length in self._lengths for run in _runs(given, length)):
            return "probe_ngram"
        return None


def _runs(tokens: list[str], length: int) -> Iterable[tuple[str, ...]]:
    return (tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1))


def texts_of(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """The probe texts in the rows of the probe file ``name`` (a key of `PROBE_FIELDS`)."""
    held = [row.get(field) for row in rows for field in PROBE_FIELDS[name]]
    return [str(text) for text in held if is_number(text) or isinstance(text, str) and text]


def level_problem(level: int) -> Callable[[dict[str, Any]], str | None]:
    """The check that a question is in the file of its level: the file decides in which column it counts."""
    return lambda row: None if row["level"] == str(level) else f"level={row['level']!r} must be '{level}' in this file"


def choice_problem(row: dict[str, Any]) -> str | None:
    """What is wrong with a question of multiple choice (MMLU): the answer is the index of a choice."""
    if len(row["choices"]) < 2 or not _texts(row["choices"]):
        return f"choices={shown(row['choices'])} must be two texts or more, none of them empty"
    if not 0 <= row["answer"] < len(row["choices"]):
        return f"answer={row['answer']} must be the index of one of its {len(row['choices'])} choices, from 0"
    problems = map(_example_problem, row.get("examples", ()))
    return next((f"one of its examples: {problem}" for problem in problems if problem), None)


def _example_problem(example: Any) -> str | None:
    choices, answer = (example.get(key) if isinstance(example, dict) else None for key in ("choices", "answer"))
    if not isinstance(choices, list) or type(answer) is not int:
        return f"{shown(example)} must hold choices and an answer"
    return choice_problem({"choices": choices, "answer": answer})


def mc1_problem(row: dict[str, Any]) -> str | None:
    """What is wrong with a question of TruthfulQA: of the choices in ``mc1_targets`` exactly one is labelled 1."""
    targets = row["mc1_targets"]
    choices, labels = targets.get("choices"), targets.get("labels")
    if isinstance(choices, list) and isinstance(labels, list) and len(choices) == len(labels) > 1 and _texts(choices):
        rest = [label for label in labels if label != 1]
        return None if rest == [0] * (len(labels) - 1) else f"labels={shown(labels)} must be one 1, the others 0"
    return f"mc1_targets={shown(targets)} must hold choices, all of them texts, and as many labels"


def answers_problem(row: dict[str, Any]) -> str | None:
    """What is wrong with the accepted answers of a question (TriviaQA)."""
    if row["answers"] and _texts(row["answers"]):
        return None
    return f"answers={shown(row['answers'])} must be a text or more, none of them empty"


def _texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) and value.strip() for value in values)
