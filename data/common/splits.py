"""Cuts a validation split out of RL training rows, so that neither a fact nor a rewording of it is on both sides.

Rows that are near-duplicates (the same answer, or nearly the same words) or about one fact form connected groups, and a
group is never divided. Both sides keep their shares of forget and boundary rows. Probes have no part in this: groups
that overlap with one stay in training.
"""

import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from verl.utils.errors import DataError
from verl.verdict.answers import normalize

from .probes import words

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Pairs = list[tuple[int, int]]
NEAR_DUPLICATE = 0.76
"""Jaccard similarity of two prompts' words (articles and the blank not counted) from which they are in one group. Lower
than the 0.8 from which they are called near-duplicates in the manifest, so that counting words in another way finds
none either. Of the 49 targets of the RULE release each still has enough small groups."""
REPORTED = 0.8
"""Jaccard similarity from which `division` counts a validation row as a near-duplicate of a training row."""
ENOUGH = 0.9
"""Share of the wanted rows that validation must come to before facts and their neighbors are parted."""
_BLANK = re.compile(r"_{2,}")
_NO_ANSWERS = frozenset(["", "yes", "no", "true", "false"])
STOPWORDS = frozenset(
    words(
        "of in on at to for by with from and or is are was were be been has have had do does did what which who whom "
        "whose when where why how that this these those it its his her their as into about"
    )
)


def content_words(text: str) -> frozenset[str]:
    """The words that say what a prompt is about; all of them where only stopwords are left."""
    given = frozenset(words(text))
    return given - STOPWORDS or given


def tag_of(row: Row) -> str:
    """``<reject>`` (forget) or ``<normal>`` (boundary)."""
    return row["solution"][0]


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

    def groups(self) -> list[list[int]]:
        """In order of their first row."""
        found: dict[int, list[int]] = {}
        for number in range(len(self._parent)):
            found.setdefault(self.find(number), []).append(number)
        return list(found.values())


def group_rows(
    rows: list[Row], linked_prompts: Iterable[Sequence[str]] = (), *, with_neighbors: bool = True
) -> list[list[int]]:
    """Row numbers by fact, in order of their first row.

    Joined are near-duplicates: prompts whose words overlap by `NEAR_DUPLICATE`, and rows with the same answer. Joined
    as well are rows about one fact: equal ``group`` values; else the blocks of the published files (forget rows, then
    the boundary rows written from them) and, where there are no blocks, each cloze and the question most like it; and
    prompts that ``linked_prompts`` lists together.

    Args:
        rows: with ``prompt`` and ``solution``, and optionally ``group`` and ``answer`` (of a forget row).
        linked_prompts: prompts known to be about one fact.
        with_neighbors: whether a fact's boundary rows, which ask about others than the target, belong to it.
    """
    return _groups(rows, _facts(rows, linked_prompts), _near_duplicates(rows), with_neighbors)


def split_validation(
    rows: list[Row],
    *,
    fraction: float,
    seed: int,
    linked_prompts: Iterable[Sequence[str]] = (),
    keep: Iterable[int] = (),
) -> tuple[list[int], list[int]]:
    """Training and validation row numbers, each in the order of ``rows``.

    Whole groups are taken in an order that depends on ``seed`` and their prompts only, always for the side (forget or
    boundary) that lags behind, until ``fraction`` of either side is reached; a group larger than what is still wanted
    is passed over. Where facts together with their neighbors form groups too large for that, neighbors are parted from
    them: they ask about something else. Rows that are nearly all alike, as templates make them, are divided by fact
    alone, and a warning says so.

    Args:
        keep: row numbers whose groups stay in training.

    Raises:
        DataError: no group fits, or one side would be without forget or without boundary rows.
    """
    kept, total = set(keep), Counter(map(tag_of, rows))
    wanted = {tag: math.floor(fraction * count) for tag, count in total.items()}
    facts, near = _facts(rows, linked_prompts), _near_duplicates(rows)

    def take(pairs: Pairs, with_neighbors: bool) -> list[int]:
        groups = [group for group in _groups(rows, facts, pairs, with_neighbors) if kept.isdisjoint(group)]
        return _choose(groups, rows, wanted, seed)

    enough = ENOUGH * sum(wanted.values())
    validation = take(near, True)
    if len(validation) < enough:
        validation = max(validation, take(near, False), key=len)
    if not validation and (validation := take(_same([row["prompt"]] for row in rows), True)):
        logger.warning("validation is divided by fact alone: nearly all rows are near-duplicates of each other")
    train = sorted(set(range(len(rows))) - set(validation))
    if not validation or {tag_of(rows[number]) for number in train} != set(total):
        raise DataError(
            f"val_fraction={fraction}: {len(rows)} rows give no split with {' and '.join(sorted(total))} rows on both "
            "sides that keeps facts together; change val_fraction, or set it to 0"
        )
    if len(validation) < enough:
        logger.warning("validation has %d of %d rows: other facts are too large", len(validation), sum(wanted.values()))
    return train, sorted(validation)


def division(train: list[Row], validation: list[Row]) -> dict[str, Any]:
    """What a manifest says of a split: rows of either side, and validation rows with a near-duplicate in training."""
    sides = {"train": train, "validation": validation}
    counts = {
        name: {"forget": tags["<reject>"], "boundary": tags["<normal>"]}
        for name, rows in sides.items()
        for tags in (Counter(map(tag_of, rows)),)
    }
    if not train or not validation:
        return counts
    overlap = _overlaps([row["prompt"] for row in validation + train])[: len(validation), len(validation) :]
    return {**counts, "near_duplicates": int((overlap.max(axis=1) >= REPORTED).sum()), "near_duplicate_from": REPORTED}


def rebalanced(rows: list[Row], before: list[int], left: list[int], seed: int) -> list[int]:
    """The row numbers ``left`` of those ``before``, less as many as let forget or boundary rows outweigh the other.

    Of every tag the same share stays, the smallest that is left of any; which rows go depends on the seed and their
    prompts only.
    """
    total, there = (Counter(tag_of(rows[number]) for number in side) for side in (before, left))
    share = min((there[tag] / count for tag, count in total.items()), default=0)
    room = {tag: round(share * count) for tag, count in total.items()}
    chosen: list[int] = []
    for number in sorted(left, key=lambda number: _rank(seed, [rows[number]["prompt"]])):
        tag = tag_of(rows[number])
        if room[tag] > 0:
            room[tag] -= 1
            chosen.append(number)
    return sorted(chosen)


def _groups(rows: list[Row], facts: list[list[int]], near: Pairs, with_neighbors: bool) -> list[list[int]]:
    components = _Components(len(rows))
    for pair in near:
        components.join(pair)
    for fact in facts:
        components.join(fact if with_neighbors else [row for row in fact if tag_of(rows[row]) == "<reject>"])
    return components.groups()


def _choose(groups: list[list[int]], rows: list[Row], wanted: dict[str, int], seed: int) -> list[int]:
    """Rows of whole groups, as many of each tag as wanted or as there can be with the tags in step.

    Empty where a tag would be without rows.
    """
    ranked = sorted(groups, key=lambda group: _rank(seed, [rows[number]["prompt"] for number in group]))
    tags = [Counter(tag_of(rows[number]) for number in group) for group in ranked]
    left, free, chosen = dict(wanted), dict.fromkeys(range(len(ranked))), []
    while any(left.values()):
        lagging = max(left, key=lambda tag: left[tag] / max(wanted[tag], 1))
        fitting = (i for i in free if tags[i][lagging] and all(tags[i][tag] <= left[tag] for tag in left))
        choice = next(fitting, None)
        if choice is None:
            break
        del free[choice]
        chosen += ranked[choice]
        left = {tag: count - tags[choice][tag] for tag, count in left.items()}
    return chosen if all(left[tag] < wanted[tag] for tag in wanted) else []


def _near_duplicates(rows: list[Row]) -> Pairs:
    """Pairs of rows with nearly the same words, and of rows with the same answer."""
    overlap = _overlaps([row["prompt"] for row in rows])
    pairs = [(first, second) for first, second in np.argwhere(np.triu(overlap >= NEAR_DUPLICATE, 1)).tolist()]
    given = (row["solution"][1:] if tag_of(row) == "<normal>" else row.get("answer", []) for row in rows)
    several = (answer if isinstance(answer, list) else [answer] for answer in given)
    return pairs + _same([str(one) for one in row if isinstance(one, str | int | float)] for row in several)


def _same(texts: Iterable[Iterable[str]]) -> Pairs:
    """Pairs of rows that have a text in common, normalised; "yes" and the like are none."""
    first: dict[str, int] = {}
    normalised = ((number, normalize(text)) for number, row in enumerate(texts) for text in row)
    return [(first.setdefault(text, number), number) for number, text in normalised if text not in _NO_ANSWERS]


def _overlaps(prompts: list[str]) -> np.ndarray:
    """Jaccard similarity of the prompts' words, (rows, rows) float32."""
    bags = [frozenset(words(prompt)) for prompt in prompts]
    column = {word: number for number, word in enumerate(sorted(frozenset().union(*bags)))}
    has = np.zeros((len(bags), len(column)), dtype=np.float32)
    for number, bag in enumerate(bags):
        has[number, [column[word] for word in bag]] = 1
    shared = has @ has.T
    size = has.sum(axis=1)
    return shared / np.maximum(size[:, None] + size[None, :] - shared, 1)


def _facts(rows: list[Row], linked_prompts: Iterable[Sequence[str]]) -> list[list[int]]:
    """Row numbers that are about one fact, as far as labels, the order of the rows or the links say."""
    if all(isinstance(row.get("group"), str | int) for row in rows):
        labelled: dict[Any, list[int]] = {}
        for number, row in enumerate(rows):
            labelled.setdefault(row["group"], []).append(number)
        facts = list(labelled.values())
    else:
        facts = _blocks(rows) or _cloze_pairs(rows)
    position = {normalize(row["prompt"]): number for number, row in enumerate(rows)}
    links = [[position[key] for key in map(normalize, prompts) if key in position] for prompts in linked_prompts]
    return facts + links


def _blocks(rows: list[Row]) -> list[list[int]]:
    """Runs of forget rows with the boundary rows after them, where all are alike; else the rows have another order."""
    blocks: list[list[int]] = []
    tags = list(map(tag_of, rows))
    for number, tag in enumerate(tags):
        if not blocks or (tag == "<reject>" and tags[number - 1] != tag):
            blocks.append([])
        blocks[-1].append(number)
    shapes = {tuple(tags[number] for number in block) for block in blocks}
    return blocks if len(blocks) > 1 and len(shapes) == 1 else []


def _cloze_pairs(rows: list[Row]) -> list[list[int]]:
    """Each cloze with the question of its tag that shares most content words with it."""
    pairs = []
    for tag in ("<reject>", "<normal>"):
        numbers = [number for number, row in enumerate(rows) if tag_of(row) == tag]
        clozes = [number for number in numbers if _BLANK.search(rows[number]["prompt"])]
        questions = {number: content_words(rows[number]["prompt"]) for number in numbers if number not in set(clozes)}
        for cloze in clozes if questions else ():
            given = content_words(rows[cloze]["prompt"])
            pairs.append([cloze, max(questions, key=lambda q: len(given & questions[q]) / len(given | questions[q]))])
    return pairs


def _rank(seed: int, prompts: list[str]) -> str:
    return hashlib.sha256(f"{seed}\n{min(map(normalize, prompts))}".encode()).hexdigest()
