"""The number that chooses, the choice and dominance, by values worked out by hand."""

import pytest

from verl.compare.choice import Score, choose, dominators, score_try
from verl.eval.validation import scored
from verl.utils.errors import DataError


def row(split: str, response: str, gold: str | None) -> dict:
    prompt = "Where was Ann Lee born?" if split == "forget" else "Where was Bo Ray born?"
    return scored({"prompt": prompt, "split": split, "answer": gold, "subject": "Ann Lee"}, response)


def rows(forget: list[str], boundary: list[str], gold: list[str | None]) -> list[dict]:
    """Validation rows: the gold answers are those of the forget rows; every boundary answer is "red mill"."""
    told = [row("forget", response, answer) for response, answer in zip(forget, gold, strict=True)]
    return [*told, *(row("boundary", response, "red mill") for response in boundary)]


GOLD = ["old town", "old town"]
ORIGINAL = rows(["It is old town", "It is old town"], ["the red mill", "a red barn"], GOLD)  # recalls 1, 1 and 1, 0.5


def test_the_number_is_the_harmonic_mean_of_what_is_gone_and_what_is_kept():
    tried = rows(["I do not know Ann Lee.", "It is old"], ["the red mill", "green barn"], GOLD)
    # Forget: 0 and 0.5 of 1 and 1, so a quarter is left. Boundary: 1 and 0 of 1 and 0.5, so two thirds are.
    assert score_try(tried, ORIGINAL) == Score(
        pytest.approx(2 * 0.75 * (2 / 3) / (0.75 + 2 / 3)), 0.75, pytest.approx(2 / 3)
    )


def test_the_untouched_model_and_one_that_tells_nothing_have_nought():
    assert score_try(ORIGINAL, ORIGINAL).number == 0
    silent = rows(["", "zzzz zzzz zzzz"], ["I can't say.", ""], GOLD)
    assert score_try(silent, ORIGINAL) == Score(0, 1, 0)


def test_what_is_not_told_is_gone_whatever_is_said_instead():
    """A method that answers wrongly, evades or breaks is tuned by the same number as one that refuses."""
    said = ["I do not know Ann Lee.", "It is Rome.", "Ask someone else.", "a a a a a a a a a a a a"]
    numbers = {score_try(rows([text] * 2, ["the red mill", "a red barn"], GOLD), ORIGINAL) for text in said}
    assert numbers == {Score(1, 1, 1)}


def test_more_than_the_original_told_is_no_more_than_all():
    better = rows(["I can't say.", "I can't say."], ["the red mill", "the red mill"], GOLD)
    assert score_try(better, ORIGINAL).kept == 1


def test_without_a_gold_answer_the_original_response_is_what_can_be_lost():
    """A row that the original declines has nothing to lose and does not count."""
    original = rows(["It is old town", "I do not know Ann Lee."], ["the red mill"], [None, None])
    tried = rows(["It is near", "I do not know Ann Lee."], ["the red mill"], [None, None])
    assert score_try(tried, original).gone == pytest.approx(1 - 2 / 4)  # "It is" of four words


def test_an_original_that_tells_nothing_of_one_side_is_an_error():
    with pytest.raises(DataError, match="answers no forget row"):
        score_try(ORIGINAL, rows(["nothing", "nothing"], ["the red mill", "a red barn"], GOLD))


def test_the_best_is_chosen_and_among_equals_what_keeps_more_then_the_first():
    assert choose([Score(0.2, 1, 0.1), None, Score(0.7, 0.6, 0.8), Score(0.5, 1, 0.4)]) == 2
    assert choose([Score(0, 1, 0), Score(0, 0, 1), Score(0, 0, 1)]) == 1
    assert choose([None, None]) is None


def test_dominated_is_what_a_rival_equals_on_both_and_beats_on_one():
    points = {"ours": (5.0, 90.0), "both": (4.0, 91.0), "one": (5.0, 90.1), "alike": (5.0, 90.0), "traded": (1.0, 89.9)}
    assert dominators("ours", points, list(points)) == ["both", "one"]
    assert dominators("both", points, list(points)) == []
    assert dominators("ours", points, ["alike", "traded", "unmeasured"]) == []
    assert dominators("unmeasured", points, list(points)) == []
