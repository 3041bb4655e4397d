"""ROUGE-L, containment and token F1 against the reference packages and by hand."""

import random

import pytest
from rouge import Rouge

from verl.verdict.answers import contains_answer, normalize, rouge_l, token_f1


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


@pytest.mark.parametrize(
    "written",
    ["21 September 1947", "on 1947-09-21.", "the 21st of September, 1947", "21/9/1947", "9/21/1947", "1947年9月21日"],
)
def test_a_date_in_any_order_is_the_same_date(written):
    assert contains_answer(written, "September 21, 1947")
    assert not contains_answer(written.replace("21", "22"), "September 21, 1947")
    assert not contains_answer(written.replace("1947", "1948"), "21.9.1947")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("she had four sons", "4"),
        ("twenty-one albums", "21"),
        ("in the 21st century", "twenty-first century"),
        ("one thousand two hundred and five", "1,205"),
        ("12 disciples", "twelve disciple"),
        ("two cities", "city"),
        ("it was the capital", ["London", "the capital"]),
        ("他出生于波特兰。", "波特兰"),
        ("彼は東京で生まれた", "東京"),
        ("서울에서 태어났다", "서울"),
        ("वह दिल्ली में रहता है", "दिल्ली"),
        ("وُلِدَ في القاهرة", "القاهرة"),
        ("والقاهرة", "القاهرة"),
    ],
)
def test_answers_in_other_letters(text, answer):
    assert contains_answer(text, answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Kings Cross", "King"),
        ("forty", "four"),
        ("fourteen", "4"),
        ("twenty one", "20"),
        ("one two", "12"),
        ("1918年", "18年"),
        ("부산에서", "서울"),
        ("दिल्लीवाला", "दिल्ली"),
        ("القاهر", "القاهرة"),
        ("a class", "clas"),
        ("September 1947", "September 21, 1947"),
    ],
)
def test_parts_of_words_and_of_numbers_are_no_answers(text, answer):
    assert not contains_answer(text, answer)
