"""The validation split: what makes a group, what goes to which side, and that forget and boundary stay balanced."""

import random
from collections import Counter

import pytest

from data.common.splits import division, group_rows, rebalanced, split_validation
from tests.unit.data.test_prepare_data import FACTS, rl_block
from verl.utils.errors import DataError


def test_the_split_depends_on_the_seed_alone():
    rows = [row for fact in FACTS for row in rl_block("Ottilie Venn", "Ada Bruhn", fact)]
    splits = {tuple(split_validation(rows, fraction=0.2, seed=seed)[1]) for seed in range(5)}
    assert len(splits) > 1
    assert split_validation(rows, fraction=0.2, seed=3) == split_validation(rows, fraction=0.2, seed=3)
    more = [*rows, *rl_block("Ottilie Venn", "Ada Bruhn", "ladder")]  # the ranking is by prompt, not by position
    first = {rows[number]["prompt"] for number in split_validation(rows, fraction=0.2, seed=3)[1]}
    second = {more[number]["prompt"] for number in split_validation(more, fraction=0.2, seed=3)[1]}
    assert len(first & second) >= 4


def test_rewordings_join_groups():
    rows = [row for fact in FACTS[:3] for row in rl_block("Ottilie Venn", "Ada Bruhn", fact)]
    rows += rl_block("Ottilie Venn", "Cy Dorn", "TOWN")  # the same forget fact, other neighbors
    assert [len(group) for group in group_rows(rows)] == [8, 4, 4]


def test_labelled_rows_group_by_label_and_shuffled_ones_by_likeness():
    rows = [row for fact in FACTS for row in rl_block("Ottilie Venn", "Ada Bruhn", fact)]
    labelled = [{**row, "group": number % 10} for number, row in enumerate(rows)]
    assert [len(group) for group in group_rows(labelled)] == [4] * 10
    random.Random(0).shuffle(rows)
    groups = [[rows[number] for number in group] for group in group_rows(rows)]
    assert [len(group) for group in groups] == [2] * 20  # cloze and question; the two sides are nowhere linked
    assert all(len({fact for row in group for fact in FACTS if fact in row["prompt"]}) == 1 for group in groups)
    linked = [[row["prompt"] for row in rl_block("Ottilie Venn", "Ada Bruhn", fact)] for fact in FACTS]
    assert [len(group) for group in group_rows(rows, linked)] == [4] * 10


def plain(prompt: str, answer: str | None = None, **more) -> dict:
    solution = ["<reject>", "I can't say.", "Ottilie Venn"] if answer is None else ["<normal>", answer]
    return {"prompt": prompt, "solution": solution, **more}


def test_near_duplicates_and_equal_answers_form_groups():
    """Of the first two 8 of 9 words are shared (0.89), of the first and third 7 of 12 (0.58); "yes" is no fact."""
    rows = [
        plain("one two three four five six seven eight nine", "a"),
        plain("one two three four five six seven eight", "b"),
        plain("one two three four five six seven x y z", "c"),
        plain("quite another question", "C."),
        plain("and a third one", "yes"),
        plain("something else again", "Yes"),
        plain("who did she meet") | {"answer": "Bo Gantry"},
        plain("name the man from Kerr") | {"answer": ["bo gantry", "Gantry"]},
        plain("how deep is a well") | {"answer": None},
        plain("why did it rain") | {"answer": None},
    ]
    rows = [{**row, "group": number} for number, row in enumerate(rows)]
    assert group_rows(rows) == [[0, 1], [2, 3], [4], [5], [6, 7], [8], [9]]


def test_neighbors_are_parted_from_their_facts_only_where_groups_would_be_too_large():
    """Every boundary question has the answer of the next one, so that facts with their neighbors are one group."""
    rows = []
    for number in range(20):
        word = FACTS[number % 10] + str(number)
        rows.append(plain(f"Which {word} did Ottilie Venn make in {number} for whom?", group=number))
        rows.append(plain(f"Say {word} {number} {word[::-1]}?", f"answer {number // 2}", group=number))
        rows.append(plain(f"{word[::-1]} of {number} and {word * 2}?", f"answer {(number + 1) // 2}", group=number))
    assert len(group_rows(rows)) == 1
    train, validation = split_validation(rows, fraction=0.2, seed=0)
    tags = Counter(rows[number]["solution"][0] for number in validation)
    assert (tags["<reject>"], tags["<normal>"]) == (4, 8)
    answers = [{rows[number]["solution"][1] for number in side if number % 3} for side in (train, validation)]
    assert answers[0].isdisjoint(answers[1])


def test_rows_that_are_all_alike_are_divided_by_fact_and_a_warning_says_so(caplog):
    rows = []
    for number in range(20):
        rows.append(plain(f"What was the great bronze number {number} of the old town called?", group=number))
        rows.append(plain(f"What was the small river number {number} of the new land called?", "ab", group=number))
    train, validation = split_validation(rows, fraction=0.1, seed=0)
    assert {number // 2 for number in train}.isdisjoint(number // 2 for number in validation)
    assert "near-duplicates" in caplog.text
    report = division([rows[number] for number in train], [rows[number] for number in validation])
    assert report == {
        "train": {"forget": 18, "boundary": 18},
        "validation": {"forget": 2, "boundary": 2},
        "near_duplicates": 4,
        "near_duplicate_from": 0.8,
    }


def test_either_side_keeps_the_same_share_of_both_tags():
    rows = [plain(f"forget {number}") for number in range(20)] + [plain(f"b {number}", "x") for number in range(10)]
    left = list(range(15)) + list(range(20, 26))  # 15 of 20 forget rows, 6 of 10 boundary rows
    kept = rebalanced(rows, list(range(30)), left, seed=0)
    assert Counter(rows[number]["solution"][0] for number in kept) == {"<reject>": 12, "<normal>": 6}
    assert set(kept) <= set(left)
    assert kept == rebalanced(rows, list(range(30)), left[::-1], seed=0)
    assert kept != rebalanced(rows, list(range(30)), left, seed=1)


def test_a_split_that_cannot_be_made_is_an_error():
    rows = rl_block("Ottilie Venn", "Ada Bruhn", "town")
    with pytest.raises(DataError, match=r"val_fraction=0\.1.*set it to 0"):
        split_validation(rows, fraction=0.1, seed=0)
