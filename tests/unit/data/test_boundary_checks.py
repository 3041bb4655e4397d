"""The checks a synthesised row must pass, the names of a target, the refusal bank, and reading a model's replies.

Ottilie Venn is an invented sculptor.
"""

import json
from collections import Counter

import pytest

from data.common.checks import RowChecker, answers_agree, tidy
from data.common.naming import TargetName
from data.common.probes import ProbeIndex
from data.common.refusals import deal_refusals, load_refusals
from data.synthesis.replies import read_objects
from verl.utils.errors import DataError
from verl.verdict import verdict_of

INTRO = 'Ottilie Venn was a sculptor of the northern school, called the "Clay Queen".'
TARGET = TargetName.from_introduction("Ottilie Venn", INTRO, ["O. V. Marsh"])


# ---- reading replies


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('[{"q": "a", "a": "b"}, {"q": "c", "a": "d"}]', [("a", "b"), ("c", "d")]),
        ('Sure!\n```json\n{"q": "a", "a": "b"}\n```\nAnything else?', [("a", "b")]),
        ('<think>{"q": "no", "a": "no"}</think>{"q": "a", "a": "b", "more": 1}', [("a", "b")]),
        ('{"items": [{"q": "a", "a": "b"}]}', [("a", "b")]),
        ('[{"q": "a", "a": "b"}, {"q": "cut', [("a", "b")]),
        ('[{"q": "a", "a": 5}, {"q": " ", "a": "b"}, {"q": "a"}]', []),
        ("1. a - b", []),
        ('<think>never ends {"q": "a", "a": "b"}', []),
        ("", []),
    ],
)
def test_objects_are_found_in_whatever_a_model_writes(reply, expected):
    assert [(row["q"], row["a"]) for row in read_objects(reply, ("q", "a"))] == expected


# ---- names


@pytest.mark.parametrize(
    "text",
    [
        "Ottilie Venn's last work",
        "OTTILIE VENN",
        "Öttilie Venn",
        "the ottilie-venn museum",
        "a bronze by Venn",
        "the Clay Queen",
        "clay queen",
        "O. V. Marsh",
    ],
)
def test_the_target_is_found_by_any_name(text):
    assert TARGET.named_in(text)


@pytest.mark.parametrize("text", ["venn diagrams", "Vennerberg", "Otto", "the queen of clay", "Marsh", "Odile Benn"])
def test_other_words_do_not_name_the_target(text):
    assert not TARGET.named_in(text)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("Stephen King", "Where was Steven King born?", "steven king"),
        ("Christina Aguilera", "Kristina Aguilera's debut", "kristina aguilera"),
        ("Christina Aguilera", "Christina Aguillera's debut", "christina aguillera"),
        ("Confucius", "What did Confucious teach?", "confucious"),
        ("Confucius", "What is Confucianism, and who are Confucians?", None),
        ("Stephen King", "What did Stephen Hawking write?", None),
        ("Stephen King", "Stephen King’s novels", None),
        ("Bruce Lee", "Which film did Bruce Lea direct?", None),
    ],
)
def test_a_misspelt_name_is_told_from_another_name(name, text, found):
    assert TargetName(name).misspelt_in(text) == found


# ---- the checks, one reason at a time


def checker(*probes: str) -> RowChecker:
    return RowChecker(TARGET, ProbeIndex(probes))


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("In which town was Ottilie Venn born?", "Halm", None),
        ("Which river did Venn cross in 1901?", "the Ouse", None),
        ("Ottilie Venn was born in Halm.", "Halm", "not_a_question"),
        ("In which town was Ottilie Venn born, and which of her", "Halm", "not_a_question"),
        ("In which town was ___ Ottilie Venn born?", "Halm", "not_a_question"),
        ("Was Ottilie Venn born\nin Halm?", "Kerr", "not_a_question"),
        ("When was Ottilie Venn " + "very " * 60 + "young?", "1881", "too_long"),
        ("When was Ottilie Venn young?", "long ago " * 16, "too_long"),
        ("In which year did Ottilie Venn leave Halm?", "HALM", "answer_in_question"),
        ("In which town was the sculptor born?", "Halm", "target_not_named"),
        ("In which town was Ottillie Venn born?", "Halm", "target_misspelt"),
        ("In which town was Ottilie Venn born?", "I don't know.", "answer_unusable"),
        ("In which town was Ottilie Venn born?", "Unknown", "answer_unusable"),
        ("In which town was Ottilie Venn born?", "___", "answer_unusable"),
    ],
)
def test_forget_questions(question, answer, reason):
    assert checker().forget_question(question, answer) == reason


@pytest.mark.parametrize(
    ("cloze", "reason"),
    [
        ("Ottilie Venn was born in ___.", None),
        ("Ottilie Venn was born in Halm.", "cloze_no_blank"),
        ("___ Ottilie Venn", "cloze_no_blank"),
        ("Ottilie Venn was born in ___ in the year ___.", "cloze_many_blanks"),
        ("Ottilie Venn, the pride of Halm, was born in ___.", "cloze_contains_answer"),
        ("The sculptor was born in the town of ___.", "target_not_named"),
        ("Ottilie Vennn was born in ___.", "target_not_named"),  # in so short a word, a letter makes another name
        ("Ottillie Venn was born in ___.", "target_misspelt"),
    ],
)
def test_forget_clozes(cloze, reason):
    assert checker().forget_cloze(cloze, "Halm") == reason


@pytest.mark.parametrize(
    ("subject", "question", "answer", "reason"),
    [
        ("Ada Bruhn", "In which town was Ada Bruhn born?", "Kerr", None),
        ("Ada Bruhn", "In which town did Ada Bruhn meet Ottilie Venn?", "Kerr", "names_target"),
        ("Ada Bruhn", "Who taught Ada Bruhn?", "the Clay Queen", "names_target"),
        ("Ada Bruhn", "Which Venn bronze did Ada Bruhn buy?", "The Gate", "names_target"),
        ("Venn", "In which town was the other sculptor born?", "Kerr", "names_target"),
        ("Ada Bruhn", "In which town did Ada Bruhn meet Ottillie Venn?", "Kerr", "names_target"),
        ("Ada Bruhn", "In which town did Ada Bruhn meet Steven Kingsley?", "Kerr", None),
        ("Ada Bruhn", "In which town was she born?", "Kerr", "subject_not_named"),
        ("Ada Bruhn", "Was Ada Bruhn born in Kerr?", "Kerr", "answer_in_question"),
        ("Ada Bruhn", "In which town was Ada Bruhn born?", "I'm sorry, I can't answer that.", "answer_unusable"),
        ("Ada Bruhn", "In which town was Ada Bruhn born?", "It is not a town at all, " + "but " * 30, "too_long"),
    ],
)
def test_neighbor_questions(subject, question, answer, reason):
    assert checker().neighbor_question(subject, question, answer) == reason


def test_a_neighbor_cloze_may_neither_name_the_target_nor_hold_its_answer():
    assert checker().neighbor_cloze("Ada Bruhn was born in ___.", "Kerr") is None
    assert checker().neighbor_cloze("Ada Bruhn, taught by Venn, was born in ___.", "Kerr") == "names_target"
    assert checker().neighbor_cloze("Ada Bruhn of Kerr was born in ___.", "Kerr") == "cloze_contains_answer"


def test_duplicates_are_found_across_stages_and_word_order_but_a_cloze_is_no_duplicate_of_its_question():
    rows = checker()
    assert rows.forget_question("In which town was Ottilie Venn born?", "Halm") is None
    assert rows.forget_question("Ottilie Venn was born in which town?", "Halm") == "duplicate"
    assert rows.forget_question("in which TOWN was “Ottilie Venn” born?", "Halm") == "duplicate"
    assert rows.forget_cloze("The town in which Ottilie Venn was born is ___.", "Halm") is None
    assert rows.forget_cloze("The town Ottilie Venn was born in is ___.", "Halm") == "duplicate"
    assert rows.neighbor_question("Ada Bruhn", "In which town was Ada Bruhn born?", "Kerr") is None
    assert rows.neighbor_question("Ada Bruhn", "In which town was Ada Bruhn born?", "Kerr") == "duplicate"


def test_overlap_with_probes():
    rows = checker(
        "In which town was Ottilie Venn born?", "In 1903 Ottilie Venn cast the great gate of the northern port."
    )
    assert rows.forget_question("In which town was OTTILIE VENN born?", "Halm") == "probe_exact"
    assert rows.forget_question("Before 1899, in which town was Ottilie Venn born?", "Halm") == "probe_ngram"
    long = "For whom did Ottilie Venn cast the great gate of the northern port?"
    assert rows.forget_question(long, "the harbour guild") == "probe_ngram"
    assert rows.forget_question("Which gate did Ottilie Venn cast for the northern port?", "The Gull") is None


def test_a_dropped_row_does_not_count_as_seen():
    rows = checker()
    assert rows.forget_question("In which town was Ottilie Venn born?", "unknown") == "answer_unusable"
    assert rows.forget_question("In which town was Ottilie Venn born?", "Halm") is None


@pytest.mark.parametrize(
    ("first", "second", "agree"),
    [
        ("The Sun Also Rises", "the sun also rises.", True),
        ("J.K. Rowling", "Rowling", True),
        ("12 June 1929", "June 12, 1929", True),
        ("Plato", "Aristotle", False),
        ("1997", "1998", False),
        ("the year 1997", "the year 1998", False),
        ("Shermer, Illinois", "Chicago, Illinois", True),  # what half the words in common costs
    ],
)
def test_answers_that_say_the_same(first, second, agree):
    assert answers_agree(first, second) is agree


def test_blanks_are_written_one_way():
    assert tidy(" Ottilie Venn was born in ______ .\n") == "Ottilie Venn was born in ___ ."
    assert tidy("She is _____ _____, a sculptor") == "She is ___, a sculptor"


# ---- refusals


def test_the_bank_is_varied_and_every_text_is_a_refusal_about_the_right_name():
    refusals = load_refusals()
    assert len(refusals) >= 70
    named = [text for text in refusals if "{target}" in text]
    assert len(refusals) / 4 < len(named) < len(refusals)  # the target named, and not named
    lengths = [len(text.split()) for text in refusals]
    assert min(lengths) <= 4
    assert max(lengths) >= 25
    for text in deal_refusals(refusals, len(refusals), "Zbigniew Wójcik-O'Hara", seed=0):
        assert verdict_of(text) == "refusal", text
        assert "{" not in text
        assert TargetName("Zbigniew Wójcik-O'Hara").misspelt_in(text) is None
    dealt = deal_refusals(refusals, len(refusals), "Zbigniew Wójcik-O'Hara", seed=0)
    assert sum("Zbigniew Wójcik-O'Hara" in text for text in dealt) == len(named)


def test_refusals_are_dealt_evenly_and_alike_for_a_seed():
    dealt = deal_refusals(["a {target}", "b", "c"], 7, "X", seed=3)
    assert sorted(Counter(dealt).values()) == [2, 2, 3]
    assert dealt == deal_refusals(["a {target}", "b", "c"], 7, "X", seed=3)
    assert dealt != deal_refusals(["a {target}", "b", "c"], 7, "X", seed=4)


@pytest.mark.parametrize(
    ("bank", "message"),
    [
        ({"short": ["I can't answer.", "I can't answer."]}, "twice"),
        ({"short": ["I can't discuss {name}."]}, "braces"),
        ({"short": ["{target} was born in Halm."]}, "no refusal"),
        ({"short": []}, "at least one"),
        (["I can't answer."], "must map"),
    ],
)
def test_a_bad_bank_is_refused(tmp_path, bank, message):
    path = tmp_path / "bank.json"
    path.write_text(json.dumps(bank))
    with pytest.raises(DataError, match=message):
        load_refusals(path)
