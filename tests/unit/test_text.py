"""ROUGE-L, containment and token F1 against the reference packages and by hand."""

import random

import pytest
from rouge import Rouge

from verl.utils.text import contains_answer, normalize, rouge_l, token_f1


def test_rouge_l_equals_the_rouge_package_on_random_texts():
    rng = random.Random(0)
    words = ["a", "the", "King.", "king", "wrote", "it,", "in", "1974", "Carrie", "and", "then.", "more"]
    for _ in range(300):
        given, wanted = (" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(2))
        expected = Rouge(metrics=["rouge-l"]).get_scores(given, wanted)[0]["rouge-l"]
        assert rouge_l(given, wanted) == pytest.approx((expected["r"], expected["p"], expected["f"]), abs=1e-9)


def test_empty_texts_score_zero():
    assert rouge_l("", "King") == rouge_l("King", "...") == (0, 0, 0)


def test_answers_are_found_by_words_whatever_their_spelling():
    assert contains_answer("It was Stephen King’s first.", "King")
    assert contains_answer("about 1,200 people", "1200")
    assert contains_answer("BEYONCE sang", "Beyoncé")
    assert not contains_answer("Kingston", "King")
    assert not contains_answer("in 1918", "18")
    assert not contains_answer("anything", "...")


def test_normalize():
    assert normalize("The  Über-King's “Book”") == "uber king s book"
    assert normalize("The The") == "the the"


def test_token_f1_by_hand():
    assert token_f1("the King of Rome", ["A king", "Rome"]) == pytest.approx(2 * (1 / 3) * 1 / (1 / 3 + 1))
    assert token_f1("", "") == 1.0
    assert token_f1("x", "") == 0.0
