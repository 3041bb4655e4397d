"""Cuts a validation split out of RL training rows, so that a fact is on one side only.

Rows about one fact (its question, its cloze, the neighbor question written from it, and every rewording of these) form
a group, and a group is never divided. Probes have no part in this: groups that overlap with one stay in training.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from verl.utils.errors import DataError
from verl.utils.text import normalize

from .probes import words

Row = dict[str, Any]
NEAR_DUPLICATE = 0.9
"""Jaccard similarity of the content words from which two prompts count as one. At 0.8, two
components hold a third each of the rows published for Christina Aguilera; at 0.9 her rows fall into 115 groups."""
_BLANK = re.compile(r"_{2,}")
_STOPWORDS = frozenset(
    words(
        "of in on at to for by with from and or is are was were be been has have had do does did what which who whom "
        "whose when where why how that this these those it its his her their as into about"
    )
)


def content_words(text: str) -> frozenset[str]:
    """The words that say what a prompt is about; all of them where only stopwords are left."""
    given = frozenset(words(text))
    return given - _STOPWORDS or given


class _Components:
    """Union-find over row numbers."""

    def __init__(self, size: int):
        self._parent = list(range(size))

    def find(self, row: int) -> int:
        while self._parent[row] != row:
            self._parent[row] = self._parent[self._parent[row]]
            row = self._parent[row]
        return row

    def join(self, rows: Sequence[int]) -> None:
        for row in rows[1:]:
            self._parent[self.find(row)] = self.find(rows[0])


def group_rows(rows: list[Row], linked_prompts: Iterable[Sequence[str]] = ()) -> list[list[int]]:
    """Row numbers by fact, in order of their first row.

    Joined are rows with equal ``group`` values; else the blocks of the published files (forget rows, then the boundary
    rows written from them) and, where there are no blocks, each cloze and the question most like it. Joined as well are
    near-duplicates, and prompts that ``linked_prompts`` lists together.

    Args:
        rows: with ``prompt`` and ``solution``, and optionally ``group``.
        linked_prompts: prompts known to be about one fact.
    """
    components = _Components(len(rows))
    similarity = _similarity([row["prompt"] for row in rows])
    for pair in np.argwhere(np.triu(similarity >= NEAR_DUPLICATE, 1)).tolist():
        components.join(pair)
    if all("group" in row for row in rows):
        _join_equal(components, [row["group"] for row in rows])
    elif blocks := _blocks(rows):
        for block in blocks:
            components.join(block)
    else:
        _join_clozes(components, rows, similarity)
    position = {normalize(row["prompt"]): number for number, row in enumerate(rows)}
    for prompts in linked_prompts:
        components.join([position[key] for prompt in prompts if (key := normalize(prompt)) in position])
    groups: dict[int, list[int]] = {}
    for number in range(len(rows)):
        groups.setdefault(components.find(number), []).append(number)
    return list(groups.values())


def split_validation(
    rows: list[Row],
    *,
    fraction: float,
    seed: int,
    linked_prompts: Iterable[Sequence[str]] = (),
    keep: Iterable[int] = (),
) -> tuple[list[int], list[int]]:
    """Training and validation row numbers, each in the order of ``rows``.

    Whole groups are taken in an order that depends on ``seed`` and their prompts only, until ``fraction`` of the rows
    is reached; a group larger than what is still wanted is passed over.

    Args:
        keep: row numbers whose groups stay in training.

    Raises:
        DataError: no group fits, or one side would be without forget or without boundary rows.
    """
    kept = set(keep)
    wanted = math.floor(fraction * len(rows))
    groups = [group for group in group_rows(rows, linked_prompts) if kept.isdisjoint(group)]
    validation: set[int] = set()
    for group in sorted(groups, key=lambda group: _rank(seed, [rows[number]["prompt"] for number in group])):
        if len(validation) + len(group) <= wanted:
            validation.update(group)
    train = [number for number in range(len(rows)) if number not in validation]
    tags = {row["solution"][0] for row in rows}
    for side in (train, validation):
        if {rows[number]["solution"][0] for number in side} != tags:
            largest = max(map(len, groups), default=0)
            raise DataError(
                f"val_fraction={fraction}: {len(rows)} rows in {len(groups)} groups of up to {largest} give no split "
                f"with {' and '.join(sorted(tags))} rows on both sides; change val_fraction, or set it to 0"
            )
    return train, sorted(validation)


def _similarity(prompts: list[str]) -> np.ndarray:
    """Jaccard similarity of the content words, (rows, rows) float32."""
    bags = [content_words(prompt) for prompt in prompts]
    column = {word: number for number, word in enumerate(sorted(frozenset().union(*bags)))}
    has = np.zeros((len(bags), len(column)), dtype=np.float32)
    for number, bag in enumerate(bags):
        has[number, [column[word] for word in bag]] = 1
    shared = has @ has.T
    size = has.sum(axis=1)
    return shared / np.maximum(size[:, None] + size[None, :] - shared, 1)


def _join_equal(components: _Components, labels: list[Any]) -> None:
    first: dict[Any, int] = {}
    for number, label in enumerate(labels):
        components.join([first.setdefault(label, number), number])


def _blocks(rows: list[Row]) -> list[list[int]]:
    """Runs of forget rows with the boundary rows after them, where all are alike; else the rows have another order."""
    blocks: list[list[int]] = []
    tags = [row["solution"][0] for row in rows]
    for number, tag in enumerate(tags):
        if not blocks or (tag == "<reject>" and tags[number - 1] != tag):
            blocks.append([])
        blocks[-1].append(number)
    shapes = {tuple(tags[number] for number in block) for block in blocks}
    return blocks if len(blocks) > 1 and len(shapes) == 1 else []


def _join_clozes(components: _Components, rows: list[Row], similarity: np.ndarray) -> None:
    for tag in ("<reject>", "<normal>"):
        numbers = [number for number, row in enumerate(rows) if row["solution"][0] == tag]
        clozes = [number for number in numbers if _BLANK.search(rows[number]["prompt"])]
        questions = [number for number in numbers if number not in set(clozes)]
        if clozes and questions:
            best = similarity[np.ix_(clozes, questions)].argmax(axis=1)
            for cloze, choice in zip(clozes, best.tolist(), strict=True):
                components.join([cloze, questions[choice]])


def _rank(seed: int, prompts: list[str]) -> str:
    return hashlib.sha256(f"{seed}\n{min(map(normalize, prompts))}".encode()).hexdigest()
