"""What sequences begin with is computed once, and every log-probability is that of the sequence alone."""

import numpy as np
import pytest
import torch

from tests.conftest import tiny_llama
from tests.unit.models.test_packing import EXPERTS, LINEAR, PACKABLE, model_of
from verl.eval import shared_prefixes
from verl.eval.likelihood import next_token_log_probs, token_log_probs, token_statistics
from verl.eval.shared_prefixes import Node, has_plain_cache, prefix_tree

pytestmark = pytest.mark.usefixtures("one_thread")

SHOTS = [5, 9, 7, 8, 6, 11, 12]
QUESTIONS = [SHOTS + ask for ask in ([20, 21, 22, 23], [30, 31, 32, 33], [40, 41, 42])]
CHOICES = [QUESTIONS[number] + end for number, end in [(1, [3]), (0, [4, 3]), (2, [6]), (0, [5]), (1, [8, 9, 3, 4])]]
SEQUENCES = [*CHOICES, CHOICES[1], QUESTIONS[2], [40, 3], [7, 9, 9, 2, 14, 3]]
"""Several choices a question, one of them twice, one that is the beginning of another, and two that share nothing."""


@pytest.fixture
def short(monkeypatch):
    """Beginnings of three tokens count."""
    monkeypatch.setattr(shared_prefixes, "SHORTEST", 3)


def shape(nodes: list[Node]) -> list:
    return sorted((node.start, node.stop, sorted(node.members), shape(node.children)) for node in nodes)


def test_the_tree_holds_what_is_shared_once(short):
    leaf = lambda start, number: (start, len(SEQUENCES[number]), [number], [])  # noqa: E731
    ended = (11, 13, [1, 5], [])
    questions = [
        (7, 10, [2, 6], [leaf(10, 2)]),
        (7, 11, [0, 4], [leaf(11, 0), leaf(11, 4)]),
        (7, 11, [1, 3, 5], [leaf(11, 3), ended]),
    ]
    assert shape(prefix_tree(SEQUENCES)) == sorted([leaf(0, 7), leaf(0, 8), (0, 7, [0, 1, 2, 3, 4, 5, 6], questions)])
    assert shape(prefix_tree([[1], [1, 2], [1, 2, 3]])) == [(0, 1, [0], []), (0, 2, [1], []), (0, 3, [2], [])]
    assert prefix_tree([]) == []


def alone(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


MODELS = {name: PACKABLE[name] for name in ("Mistral", "Gemma2", "GPT2")} | {"Qwen3Next": LINEAR | EXPERTS}


@pytest.mark.parametrize(("name", "budget"), [("Llama", 16384), *((name, 30) for name in ("Llama", *MODELS))])
def test_every_model_gives_what_it_gives_a_sequence_alone(name, budget, short):
    """Windows of three tokens (Mistral, Gemma 2), a cap on attention scores, and a model that carries a state."""
    model = tiny_llama(initializer_range=0.3).eval() if name == "Llama" else model_of(name, MODELS[name])
    sequences = [[token % 40 for token in sequence] for sequence in SEQUENCES]
    tables = [alone(model, ids) for ids in sequences]
    chosen = [
        table[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
        for table, ids in zip(tables, sequences, strict=True)
    ]
    close = {"atol": 1e-5, "rtol": 1e-5}
    for values, expected in zip(token_log_probs(model, sequences, token_budget=budget, desc="t"), chosen, strict=True):
        np.testing.assert_allclose(values, expected, **close)
    counts = [1 + number % 3 for number in range(len(sequences))]
    last = token_log_probs(model, sequences, counts, token_budget=budget, desc="t")
    for values, expected, count in zip(last, chosen, counts, strict=True):
        np.testing.assert_allclose(values, expected[-count:], **close)
    following = next_token_log_probs(model, sequences, [8, 9], token_budget=budget, desc="t")
    np.testing.assert_allclose(following, [table[-1, [8, 9]].numpy() for table in tables], **close)
    moments = token_statistics(model, sequences, token_budget=budget, desc="t")[1]
    np.testing.assert_allclose(moments.mean, (tables[1].exp() * tables[1]).sum(-1)[:-1].numpy(), **close)


def test_tokens_and_logits_are_computed_no_more_than_once(short):
    model, seen = tiny_llama().eval(), []
    plain = model.forward

    def forward(**arguments):
        output = plain(**arguments)
        seen.append((arguments["input_ids"].numel(), output.logits.shape[:2].numel()))
        return output

    model.forward = forward
    model.forward.__wrapped__ = plain
    next_token_log_probs(model, [SHOTS + [20], SHOTS + [21], SHOTS + [22, 23]], [3], desc="t")
    assert seen == [(6, 6), (7, 1)] or seen == [(7, 1), (6, 6)]


def test_what_carries_more_than_keys_and_values_is_told_apart():
    assert has_plain_cache(tiny_llama()) and has_plain_cache(model_of("Gemma2", PACKABLE["Gemma2"]))
    assert not has_plain_cache(model_of("Qwen3Next", MODELS["Qwen3Next"]))
    lfm2 = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    assert not has_plain_cache(model_of("Lfm2", lfm2))
    assert not has_plain_cache(model_of("Mamba", {"state_size": 4, "head_dim": None}))
    own = type("Own", (type(tiny_llama()),), {"__module__": "modeling_own"})
    assert not has_plain_cache(own(tiny_llama().config))
