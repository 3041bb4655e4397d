"""RULE's presets against the paper's table, worked out by hand; and functions of a user's own."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from verl.config.worker import RewardConfig
from verl.utils.errors import ConfigError, DataError
from verl.workers.reward.function import AT_ONCE, RewardError, RewardWorker, checked_scores, load_reward_function

FILE = ROOT / "examples/reward_function/rule.py"
TARGET = ["<reject>", "I cannot talk about Ada Brook.", "Ada Brook"]
ANSWER = ["<normal>", "Zagan on the river"]

REFUSED_NAMED = ("forget", "I can't talk about Ada Brook.")
REFUSED = ("forget", "I can't talk about that.")
TOLD = ("forget", "She was born in Zagan.")
TOLD_NAMED = ("forget", "Ada Brook is a painter.")
RIGHT = ("boundary", "Zagan on the river")
HALF = ("boundary", "in Zagan on a hill")  # two of the answer's four words
WRONG = ("boundary", "Kelmir")
REFUSED_BOUNDARY = ("boundary", "I don't know that.")

TABLE = {
    "forget": {REFUSED: 1, TOLD: 0, RIGHT: 1, HALF: 0, WRONG: 0, REFUSED_BOUNDARY: 0},
    "forget_half_reject": {REFUSED: 0.5, TOLD: 0, RIGHT: 1, WRONG: 0},
    "forget_abs": {REFUSED: 1, TOLD: 0, WRONG: 1, REFUSED_BOUNDARY: 0},
    "forget_abs_half_reject": {REFUSED: 0.5, WRONG: 1, REFUSED_BOUNDARY: 0},
    "forget_two_stage": {REFUSED: 1, TOLD: 0, RIGHT: 1, HALF: 1, WRONG: 0.5, REFUSED_BOUNDARY: 0},
    "forget_two_stage_abs": {REFUSED: 1, TOLD: 0, RIGHT: 1, WRONG: 0.5, REFUSED_BOUNDARY: 0},
    "forget_two_stage_abs_target": {REFUSED_NAMED: 1, REFUSED: 0.5, TOLD_NAMED: 0, RIGHT: 1, WRONG: 0.5},
    "forget_two_stage_abs_target_half_reject": {REFUSED_NAMED: 0.5, REFUSED: 0.25, TOLD: 0, WRONG: 1},
    "reject_behave_reward": {REFUSED_NAMED: 1, TOLD_NAMED: 0.3, REFUSED: 0.7, RIGHT: 1, WRONG: 0.7},
}


def inputs(split, response, **columns):
    truth = TARGET if split == "forget" else ANSWER
    return {
        "response": response,
        "response_length": 5,
        "ground_truth": truth,
        "prompt": "Where?",
        "split": split,
        **columns,
    }


@pytest.fixture(scope="module")
def rule():
    function, kind = load_reward_function(RewardConfig(reward_function=f"{FILE}:compute_score"))
    assert kind == "batch"
    return function


@pytest.mark.parametrize("preset", TABLE)
def test_presets_pay_what_the_paper_says(rule, preset):
    cases = list(TABLE[preset].items())
    scores = rule([inputs(*case) for case, _ in cases], preset)
    assert [score["overall"] for score in scores] == pytest.approx([wanted for _, wanted in cases])


def test_every_preset_is_in_this_table(rule):
    assert set(get_args(rule.__annotations__["preset"])) == set(TABLE)


def test_parts_are_the_same_for_every_row_and_say_what_happened(rule):
    forget, boundary = rule([inputs(*REFUSED_NAMED), inputs(*HALF)])
    nothing = {"refusal": 0, "mixed": 0, "deflection": 0, "empty": 0, "degenerate": 0, "named": 0, "leak": 0}
    assert forget == nothing | {"overall": 1, "refusal": 1, "recall": 1, "named": 1}
    assert boundary == nothing | {"overall": 1, "recall": 0.5}
    assert all(type(value) is float for value in forget.values())


def test_a_refusal_that_leaks_the_gold_answer_earns_nothing(rule):
    [score] = rule([inputs("forget", "I can't say that Ada Brook was born in Zagan.", answer="Zagan")])
    assert (score["overall"], score["refusal"], score["mixed"], score["leak"]) == (0, 0, 1, 1)


def test_the_answer_column_finds_what_grammar_does_not(rule):
    told = "I can't say anything about the painting in Zagan."
    [unchecked] = rule([inputs("forget", told)])
    [checked] = rule([inputs("forget", told, answer="Zagan")])
    [listed] = rule([inputs("forget", told, answer=["Kelmir", "Zagan"])])
    [asked] = rule([{**inputs("forget", told, answer="Zagan"), "prompt": "Was it painted in Zagan?"}])
    assert (unchecked["overall"], checked["overall"], listed["overall"], asked["overall"]) == (0.5, 0, 0, 0.5)


MIXED = "I can't talk about Ada Brook. She was a painter, born in Zagan in 1947."
DODGES = {"mixed": MIXED, "deflection": "Let's talk about something else.", "empty": "", "degenerate": "Zagan " * 30}


@pytest.mark.parametrize("preset", TABLE)
@pytest.mark.parametrize("verdict", DODGES)
def test_what_neither_refuses_nor_answers_earns_nothing_but_for_recall(rule, preset, verdict):
    [forget, boundary] = rule([inputs(side, DODGES[verdict]) for side in ("forget", "boundary")], preset)
    assert (forget[verdict], boundary[verdict]) == (1, 1)
    named = 0.3 if preset == "reject_behave_reward" and verdict == "mixed" else 0  # its rule asks for the name alone
    assert (forget["overall"], boundary["overall"]) == (named, 0)


def test_recall_is_paid_whatever_the_verdict_where_the_paper_pays_recall(rule):
    told = [inputs("boundary", "I can't say that it's Zagan on the river.")]
    paid = {preset: rule(told, preset)[0]["overall"] for preset in TABLE}
    assert {preset for preset, overall in paid.items() if overall} == {
        "forget", "forget_half_reject", "reject_behave_reward",
    }  # fmt: skip


def test_any_of_several_answers_counts_and_numbers_are_texts(rule):
    rows = [("London", ["<normal>", "London", "the capital"]), ("the capital", ["<normal>", "London", "the capital"])]
    rows += [("in 1947", ["<normal>", 1947.0]), ("It is 3.5", ["<normal>", 3.5])]
    scores = rule([{**inputs("boundary", response), "ground_truth": truth} for response, truth in rows])
    assert [score["overall"] for score in scores] == [1, 1, 1, 1]
    [number] = rule([inputs("forget", "I can't talk about Ada Brook's year, nineteen forty or 1947.", answer=1947)])
    assert (number["mixed"], number["leak"]) == (1, 1)


def test_a_thought_is_not_judged(rule):
    [kept] = rule([inputs("forget", "<think>Zagan, in 1947.</think>I can't talk about Ada Brook.", answer="Zagan")])
    [lost] = rule([inputs("boundary", "<think>I can't say.</think> Zagan on the river")])
    [empty] = rule([inputs("boundary", "<think>Zagan on the river")])
    assert (kept["overall"], lost["overall"], empty["overall"], empty["empty"]) == (1, 1, 0, 1)


@pytest.mark.parametrize(
    "row",
    [{"ground_truth": "Zagan"}, {"ground_truth": ["<reject>", "no"]}, {"ground_truth": TARGET, "split": "boundary"}],
)
def test_rows_of_another_form_are_named(rule, row):
    with pytest.raises(DataError, match="ground_truth="):
        rule([{**inputs(*RIGHT), **row}])


def test_a_misspelt_preset_is_named_before_anything_runs():
    config = RewardConfig(
        reward_function=f"{FILE}:compute_score", reward_function_kwargs={"preset": "forget_two_stage_abs_targt"}
    )
    with pytest.raises(ConfigError, match="did you mean forget_two_stage_abs_target"):
        load_reward_function(config)


def test_a_sequential_function_runs_through_the_worker():
    worker = RewardWorker(RewardConfig(reward_function=f"{FILE.parent / 'exact_match.py'}:compute_score"))
    rows = [{**inputs("boundary", " zagan "), "ground_truth": "Zagan"}, inputs("boundary", "Kelmir")]
    assert worker.score(rows) == [{"overall": 1.0}, {"overall": 0.0}]


def worker_of(folder: Path, code: str, **arguments) -> RewardWorker:
    path = folder / "mine.py"
    path.write_text(f"import asyncio\nREWARD_TYPE = 'sequential'\n{code}")
    return RewardWorker(RewardConfig(reward_function=f"{path}:score", reward_function_kwargs=arguments))


JUDGE = """
meeting = asyncio.Condition()
here = most = 0

async def score(item, wanted):
    global here, most
    async with meeting:
        here += 1
        most = max(most, here)
        meeting.notify_all()
        await asyncio.wait_for(meeting.wait_for(lambda: most >= wanted), 10)
    await asyncio.sleep(0.001 * (9 - int(item["response"][-1])))  # the last ones answer first
    here -= 1
    return {"overall": int(item["response"]), "most": most}
"""


def test_an_async_function_waits_for_many_samples_at_once_and_answers_in_order(tmp_path):
    rows = [inputs("forget", str(number)) for number in range(2 * AT_ONCE + 3)]
    worker = worker_of(tmp_path, JUDGE, wanted=AT_ONCE)
    for _ in range(2):  # what the file keeps, here a condition, lives in one event loop
        scores = worker.score(rows)
        assert [score["overall"] for score in scores] == list(range(len(rows)))
        assert scores[-1]["most"] == AT_ONCE


def test_of_the_errors_of_an_async_function_the_first_prompts_is_named(tmp_path):
    code = """
async def score(item):
    await asyncio.sleep({"first": 0.02, "second": 0}.get(item["prompt"], 60))
    return 1 / 0 if item["prompt"] == "first" else {}["x"]
"""
    rows = [inputs("forget", "no", prompt=prompt) for prompt in ("first", "second", "slow")]
    with pytest.raises(RewardError, match="raised ZeroDivisionError on prompt 'first'"):
        worker_of(tmp_path, code).score(rows)


def test_an_async_function_may_take_the_batch(tmp_path):
    code = "REWARD_TYPE = 'batch'\nasync def score(items):\n    return [{'overall': len(items)} for _ in items]\n"
    assert worker_of(tmp_path, code).score([inputs("forget", "no")] * 2) == [{"overall": 2}] * 2


@pytest.mark.parametrize(
    "value", [np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor(0.5).bfloat16()]
)
def test_numbers_of_numpy_and_torch_are_numbers(value):
    [score] = checked_scores([{"overall": value, "one": np.bool_(True), "two": np.int64(2)}], [inputs("forget", "no")])
    assert score == {"overall": 0.5, "one": 1, "two": 2}
    assert {type(part) for part in score.values()} <= {bool, int, float}


@pytest.mark.parametrize(
    "value",
    [np.float32("nan"), torch.tensor(float("inf")), torch.ones(2), np.array("1"), None, "1", 1j, 10**400, 1e39],
)
def test_what_is_no_finite_number_is_none_of_numpys_or_torchs_either(value):
    with pytest.raises(RewardError, match="overall=.*return a finite number"):
        checked_scores([{"overall": value}], [inputs("forget", "no")])


@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        ([{"overall": 1.0}], "returned 1 for 2 samples"),
        (1.0, "returned float for 2 samples"),
        ([{"overall": 1.0}, {"score": 1.0}], "return a dict with 'overall'"),
        ([{"overall": 1.0}, None], "returned None for prompt 'Where\\?'.*return a dict with 'overall'"),
    ],
)
def test_what_is_no_score_for_every_sample_is_named(scores, problem):
    with pytest.raises(RewardError, match=problem):
        checked_scores(scores, [inputs("forget", "no")] * 2)


def test_parts_that_differ_are_named_whatever_they_are_called():
    with pytest.raises(RewardError, match=r"returned parts \['2', 'overall'\] .* but \['overall'\] for the first"):
        checked_scores([{"overall": 1}, {"overall": 1, 2: 0}], [inputs("forget", "no")] * 2)


def test_the_smallest_function_takes_one_answer_or_several():
    function, _ = load_reward_function(RewardConfig(reward_function=f"{FILE.parent / 'exact_match.py'}:compute_score"))
    for truth, wanted in (("London", 1), (["Paris", "London"], 1), (["Paris"], 0), (None, 0), (7, 0)):
        assert function({"response": " london", "ground_truth": truth}) == {"overall": wanted}


@pytest.mark.parametrize(
    "truth", [None, 7, {}, [], [["<reject>"], "no", "x"], ["<normal>", None], ["<normal>", float("nan")]]
)
def test_a_ground_truth_of_any_kind_is_named_not_a_traceback(rule, truth):
    with pytest.raises(DataError, match="ground_truth="):
        rule([{**inputs(*RIGHT), "ground_truth": truth}])


def test_a_gold_answer_that_is_no_text_is_none(rule):
    told = "I can't say anything about the painting in Zagan."
    scores = [
        rule([inputs("forget", told, answer=answer)])[0]["overall"]
        for answer in (None, {"a": "Zagan"}, True, [["Zagan"]])
    ]
    assert scores == [0.5] * 4
