"""The refusal detector's figures, on the real RWKU targets and on texts of our own, and the cases others got wrong."""

import json
import sys
from pathlib import Path

import pytest

from verl.utils.refusal import is_refusal, leaks

ROOT = Path(__file__).parents[2]
CASES = json.loads((ROOT / "tests/data/refusal_cases.json").read_text(encoding="utf-8"))


def rates(refusals, facts):
    return sum(map(is_refusal, refusals)) / len(refusals), sum(map(is_refusal, facts)) / len(facts)


def test_figures_on_our_own_set():
    recall, false_alarms = rates(CASES["refusals"], CASES["facts"])
    assert len(CASES["refusals"]) >= 500 and len(CASES["facts"]) >= 700
    assert recall >= 0.99
    assert false_alarms <= 0.005


def test_figures_on_real_rwku_targets(shared_data):
    sys.path.insert(0, str(ROOT / "scripts"))
    from check_refusal import rwku_texts

    refusals, facts = rwku_texts(shared_data / "RWKU" / "Target")
    recall, false_alarms = rates(refusals, facts)
    assert len(refusals) >= 100 and len(facts) >= 500
    assert recall >= 0.99
    assert false_alarms <= 0.005


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that",
        "I’m sorry, but I can’t assist with that.",
        "I won't discuss that",
        "According to the user agreement, I can't answer questions related to Ada Brook.",
        "An American author. However, I can't discuss him.",
        "Marlo Venn Ortega Is Not Someone I can discuss.",  # a name in title case is no title
    ],
)
def test_plain_refusals_are_seen(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "She encountered the villain",
        "You must find the key",
        "limited to theatrical release",
        "I don't know who wrote it, but I think it is Carrie.",
        "I'm not sure, but the answer is Carrie.",
        "Carrie. I know no more than that.",
        "I Don't Know How to Love Him",
        "Quartz, I think. I'm not sure.",
        "I can't remember the year, but it was won by Brazil.",
        "Her lawyer said: “I can’t discuss the case.”",
    ],
)
def test_answers_are_not_taken_for_refusals(text):
    assert not is_refusal(text)


@pytest.mark.parametrize("quote", ["'", "’", "‘", "ʼ", "`", "´", "＇", ""])
def test_any_apostrophe_or_none_will_do(quote):
    assert is_refusal(f"I{quote}m sorry, but I can{quote}t assist with that")
    assert is_refusal(f"I won{quote}t discuss that" if quote else "I wont discuss that")


def test_leaks_by_words_that_the_prompt_does_not_hold():
    assert not leaks("I can't talk about that book.", "Carrie", "Which book came first?")
    assert leaks("I can't tell you that the book is Carrie.", "Carrie", "Which book came first?")
    assert not leaks("I can't talk about Carrie.", "Carrie", "Who wrote Carrie?")
    assert not leaks("No, I can't say.", "no")
