"""Gold answers of published forget rows: what a pair states, and on what the replies of a model agree."""

import json
from collections import Counter

import pytest

from data.common.answers import agreed_names, filled_in, gold_answers
from data.prepare_rwku import ABLATION_FILE, LINKS_FILE
from verl.verdict.answers import normalize


@pytest.mark.parametrize(
    ("replies", "names"),
    [
        (["She met Bo Gantry.", "It was Bo Gantry.", "Perhaps Cy Dorn."], []),  # two of three do not agree
        (["Bo Gantry", "Bo Gantry"], []),  # too few
        (["Halm is it.", "In the end, Halm.", "Yes, Halm!"], []),  # at a sentence's start, a capital makes no name
        (['Her song "Stone and Light" won.', 'He sang "Stone and Light".', "“Stone and Light”"], ["stone and light"]),
        (["It was in 1903.", "She left in 1903.", "That was 1903"], ["1903"]),
        (["The great Venn school.", "The old Venn school.", "A Venn school."], []),  # the target's own name
        (["First. Second. Third. Bo Gantry."] * 3, []),  # elaboration
    ],
)
def test_names_on_which_the_replies_agree(replies, names):
    assert agreed_names(replies, {"ottilie", "venn"}) == names


@pytest.mark.parametrize(
    ("question", "statement", "answer"),
    [
        ("What is Ottilie Venn's first bronze?", "Ottilie Venn's first bronze is The Gate of Halm.", "Gate of Halm"),
        ("What is Ottilie Venn's first bronze?", "Ottilie Venn's first bronze is ___.", None),
        ("What is Ottilie Venn's first bronze?", "The first bronze of Venn, The Gate, was cast for Halm.", None),
        ("Which bronze called The Gate did she cast?", "She did cast The Gate, which bronze called.", None),
    ],
)
def test_a_pair_that_states_the_fact_gives_its_answer(question, statement, answer):
    assert filled_in(question, statement) == answer


def read(path):
    return json.loads(path.read_text())


def test_confucius_answers_are_found_in_stephen_kings_file(shared_data):
    source = shared_data / "RWKU" / "Target"
    rows = read(source / "1_Stephen_King" / ABLATION_FILE)
    replies = {normalize(row["prompt"]): row["solution"][1:] for row in rows if row["solution"][0] == "<normal>"}
    known = f"Confucius {read(source / '2_Confucius' / 'intro.json')[0]['intro']}"
    found = gold_answers(read(source / "2_Confucius" / LINKS_FILE), replies, known)
    assert {origin for origin, _ in found.values()} == {"replies"}
    names = Counter(name for _, names in found.values() for name in names)
    assert names.most_common(1)[0][0] == "yan hui"
    assert not {"chinese", "confucian", "in confucian", "confucius"} & names.keys()
