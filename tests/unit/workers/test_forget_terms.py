"""The rewards that count forget terms, against values worked out by hand."""

import json
from math import exp

import numpy as np
import pytest

from tests.conftest import ROOT
from verl.config.worker import RewardConfig
from verl.utils.errors import ConfigError, DataError
from verl.workers.reward.function import load_reward_function

FILE = ROOT / "examples/reward_function/forget_terms.py"
PRESETS = ("purge", "purge_exponential", "purge_pagerank")
ROWS = [
    {"prompt": "Where was Ada Brook born?", "solution": ["<reject>", "No.", "Ada Brook"], "answer": ["Zagan", "zagan"]},
    {"prompt": "When was Ada Brook born?", "solution": ["<reject>", "No.", "Ada Brook"], "answer": "12 May 1947"},
    {"prompt": "Where was Bo born?", "solution": ["<normal>", "Kelmir on the lake"], "answer": "Kelmir"},
]


@pytest.fixture
def terms(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    (tmp_path / "terms.json").write_text(json.dumps(["Zagan", "Ada Brook", "ZAGAN", "fiddle", "?"]))
    return tmp_path


def loaded(**arguments):
    arguments = {name: str(value) for name, value in arguments.items()}
    return load_reward_function(
        RewardConfig(reward_function=f"{FILE}:compute_score", reward_function_kwargs=arguments)
    )[0]


def score(terms, preset, response, row=0, **options):
    item = {"response": response, "ground_truth": ROWS[row]["solution"], "prompt": ROWS[row]["prompt"]}
    [parts] = loaded(terms=terms)([item], str(terms), preset, **options)
    assert all(type(value) is float for value in parts.values())
    return parts


# Ada Brook is joined to Zagan and to the date, by one row each. With r for the target's rank and q for either other's:
# q = 0.85 r / 2 and r = 0.85 * 2 q + 0.15, so r = 0.15 / (1 - 0.85^2) = 0.540541 and q = 0.229730. Weights are
# 3 e^r / (e^r + 2 e^q) and 3 e^q / (e^r + 2 e^q).
TARGET, OTHER = 1.2166906, 0.8916547


@pytest.mark.parametrize(
    ("response", "mentions", "weight"),
    [
        ("I can't talk about that.", 0, 0.0),
        ("", 0, 0.0),
        ("Born in Kelmir, in 1950.", 0, 0.0),
        ("She was born in Zagan.", 1, OTHER),
        ("Zagan! In zagan, that's in ZAGAN.", 3, 3 * OTHER),
        ("In Zaganland.", 0, 0.0),
        ("I can't talk about Ada Brook.", 1, TARGET),
        ("Ada Brook: May 12, 1947", 2, TARGET + OTHER),
        ("<think>Zagan</think>No.", 0, 0.0),
    ],
)
def test_a_forget_prompt_pays_less_with_every_mention(terms, response, mentions, weight):
    found = [score(terms / "rows.json", preset, response) for preset in PRESETS]
    assert [parts["mentions"] for parts in found] == [mentions] * 3
    assert found[0]["overall"] == float(mentions == 0)
    assert found[1]["overall"] == pytest.approx(exp(-2 * mentions))
    assert found[2]["overall"] == pytest.approx(exp(-2 * weight), rel=1e-5)
    assert score(terms / "rows.json", "purge_exponential", response, decay=4)["overall"] == exp(-mentions / 4)


def test_the_target_is_the_subject_of_a_row_that_has_something_else_named(terms):
    asks_for_the_target = {"prompt": "Who sang Bo?", "solution": ["<reject>", "No.", "Bo"], "answer": "Ada Brook"}
    (terms / "rows.json").write_text(json.dumps([*ROWS, {**asks_for_the_target, "subject": "Ada Brook"}]))
    assert score(terms / "rows.json", "purge_exponential", "I can't talk about Bo.")["mentions"] == 0
    paid = score(terms / "rows.json", "purge_pagerank", "Ada Brook")["overall"]
    assert paid == pytest.approx(exp(-2 * TARGET), rel=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_boundary_prompt_is_paid_as_by_rules_two_stages(terms, preset):
    paid = {"Kelmir on the lake": 1.0, "Zagan": 0.5, "I can't talk about that.": 0.0, "": 0.0}
    assert {text: score(terms / "rows.json", preset, text, row=2)["overall"] for text in paid} == paid


def test_parts_say_what_a_response_is(terms):
    parts = score(terms / "rows.json", "purge", "I can't talk about that.")
    assert parts["refusal"] == 1 and parts["recall"] == 0 and parts["mixed"] == 0
    assert score(terms / "rows.json", "purge", "Kelmir on a hill", row=2)["recall"] == 0.5
    with pytest.raises(DataError, match=r"ground_truth='Zagan': must be \"<reject>\""):
        loaded(terms=terms / "rows.json")([{"response": "", "ground_truth": "Zagan"}], str(terms / "rows.json"))


def test_a_list_of_terms_serves_too(terms):
    assert score(terms / "terms.json", "purge_exponential", "The fiddle of Ada Brook, of Zagan")["mentions"] == 3


def test_ranks_begin_anew_behind_a_term_that_is_joined_to_none(terms):
    """Two terms, no edge, the walk starting at the first: it never leaves."""
    pagerank = loaded(terms=terms / "rows.json").__globals__["pagerank"]
    assert pagerank(np.zeros((2, 2)), np.array([True, False])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "reward_function_kwargs.terms: the function needs it; set it"),
        ({"terms": "nowhere.json"}, "reward_function_kwargs.terms=nowhere.json: nowhere.json: there is no such file"),
        ({"terms": "BOUNDARY"}, "has no forget row"),
        ({"terms": "LIST", "preset": "purge_pagerank"}, "is a list of terms, and purge_pagerank needs rows"),
        ({"terms": "LIST", "preset": "purge_pagerang"}, "did you mean purge_pagerank"),
        ({"terms": "LIST", "decay": 0.0}, "reward_function_kwargs.decay=0.0: must be a number greater than 0"),
        ({"terms": "LIST", "decay": "slow"}, "reward_function_kwargs.decay=slow: must be a number greater than 0"),
        ({"terms": 7.0}, "reward_function_kwargs.terms=7.0: must be the path of a file"),
    ],
)
def test_arguments_that_cannot_be_are_named_before_anything_runs(terms, arguments, message):
    (terms / "boundary.json").write_text(json.dumps(ROWS[2:]))
    files = {"BOUNDARY": terms / "boundary.json", "LIST": terms / "terms.json"}
    arguments = {name: files.get(value, value) for name, value in arguments.items()}
    arguments = {name: value if isinstance(value, float) else str(value) for name, value in arguments.items()}
    with pytest.raises(ConfigError) as caught:
        load_reward_function(RewardConfig(reward_function=f"{FILE}:compute_score", reward_function_kwargs=arguments))
    assert message in str(caught.value)
