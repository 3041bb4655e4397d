"""What the benchmark counts, and what the golden numbers let pass."""

import pytest

from benchmarks.loads import LOADS, Load, chat, make_tokenizer
from tests.golden import KEPT, LARGEST, STEPS, apart, expected

SHAPE = {"vocab_size": 5, "hidden_size": 4, "intermediate_size": 3, "num_hidden_layers": 1}


def test_a_prompt_counts_with_each_of_its_samples_or_once():
    rule = LOADS["rule"]
    assert (rule.generated, rule.trained, rule.shared) == (16 * 8 * 12, 16 * 8 * 50, 16 * (38 + 8 * 11))


def test_operations_of_an_update_are_those_that_were_counted_by_hand():
    """2 groups of 3 samples, 4 + 2 tokens. Weights: 16 + 8 + 8 + 16 (attention), 36 (MLP), 20 (head).

    Pairs of tokens: 36 a sample; where a prompt is computed once, 16 of it and 2 x 6 of each answer.
    """
    load = Load(SHAPE, 2, 3, 4, 2, "fp32", trl_micro=1)
    assert load.update_flops(shared=False) == 3 * (2 * 104 * 36 + 4 * 4 * 6 * 36)
    assert load.update_flops(shared=True) == 3 * (2 * 104 * 14 + 4 * 4 * 2 * (16 + 3 * 5))


def test_a_prompt_has_as_many_tokens_as_its_words_and_three_marks():
    tokenizer = make_tokenizer(64)
    ids = tokenizer.apply_chat_template(chat("w0 w58 w7"), add_generation_prompt=True)["input_ids"]
    assert ids == [1, 5, 63, 12, 3, 2]
    assert tokenizer.decode(ids[1:4]) == "w0 w58 w7"


@pytest.mark.parametrize("key", KEPT)
def test_golden_numbers_take_rounding_and_no_change(key):
    wanted = expected()
    assert [set(row) for row in wanted] == [set(KEPT)] * STEPS
    largest = max(abs(row[key]) for row in wanted)
    for change, passes in ((LARGEST / 2, True), (2 * LARGEST, False)):
        measured = [*wanted[:-1], wanted[-1] | {key: wanted[-1][key] + change * largest}]
        far = apart(measured, wanted)
        assert (far[key] <= LARGEST) == passes
        assert all(share == 0 for name, share in far.items() if name != key)
