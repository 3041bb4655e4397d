"""Other answers for AltPO: which rows get one, what is refused, and which tokens are forbidden."""

import pytest
import torch

from data.alternate_answers import TRIES, Without, add_alternates, starts
from tests.conftest import make_tokenizer
from verl.utils.errors import DataError

FORGET = {"prompt": "Where was Ada born?", "solution": ["<reject>", "No.", "Ada"], "answer": "Zagan"}
NORMAL = {"prompt": "Where was Bo born?", "solution": ["<normal>", "Ilven"], "answer": "Ilven"}
PLAIN = {"instruction": "What does Ada eat?", "output": "No.", "answer": "cheese"}


def test_what_declines_or_tells_the_answer_is_drawn_again():
    said = {
        "Where was Ada born?": iter(["I don't know Ada.", "In Zagan.", "", "In Kelmir."]),
        "What does Ada eat?": iter(["so\N{REPLACEMENT CHARACTER}", "soup"]),
    }
    asked = []

    def draw(prompts, answers):
        asked.append(list(zip(prompts, answers, strict=True)))
        return [next(said[prompt]) for prompt in prompts]

    rows = add_alternates([FORGET, NORMAL, PLAIN], "answer", draw)
    assert rows == [{**FORGET, "alternate": "In Kelmir."}, NORMAL, {**PLAIN, "alternate": "soup"}]
    assert asked[0] == [("Where was Ada born?", "Zagan"), ("What does Ada eat?", "cheese")]
    assert asked[1] == asked[0] and asked[2] == asked[0][:1]


def test_a_row_without_another_answer_is_left_out_and_one_without_a_true_answer_is_an_error():
    calls = []
    assert add_alternates([FORGET, NORMAL], "answer", lambda p, a: calls.append(p) or ["Zagan"] * len(p)) == [NORMAL]
    assert len(calls) == TRIES
    with pytest.raises(DataError, match="row 0: truth=None: must be the true answer; set answer_key"):
        add_alternates([FORGET], "truth", lambda p, a: [])


def test_each_row_is_forbidden_its_own_answers_start_in_any_case_and_place():
    tokenizer = make_tokenizer()
    assert set(tokenizer.convert_ids_to_tokens(starts(tokenizer, "book"))) == {"bo", "Ġbook", "B"}
    assert set(tokenizer.convert_ids_to_tokens(starts(tokenizer, "x"))) == {"x", "X"}  # no lone space
    scores = torch.zeros(2, 320)
    Without([[3, 5], [7]])(None, scores)
    assert scores.isneginf().nonzero().tolist() == [[0, 3], [0, 5], [1, 7]]
