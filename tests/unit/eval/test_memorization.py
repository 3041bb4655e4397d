"""Extraction strength and exact memorisation of a model that predicts the next letter of the alphabet, by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from verl.eval import main
from verl.eval.config import EvalConfig
from verl.eval.likelihood import LikelihoodModel, greedy_hits, load_model
from verl.eval.rwku.memorization import extraction_strength
from verl.utils.errors import DataError

LETTERS = SimpleNamespace(
    chat_template=None, bos_token_id=1, encode=lambda text, add_special_tokens: [ord(letter) for letter in text]
)


class Successor(torch.nn.Module):
    """Behind x comes x + 1."""

    config = LlamaConfig(vocab_size=128, max_position_embeddings=64)
    device = torch.device("cpu")

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=torch.nn.functional.one_hot((input_ids + 1) % 128, 128).float())


@pytest.mark.parametrize(
    ("hits", "strength"), [("1111", 1), ("0111", 0.75), ("1101", 0.25), ("1110", 0), ("0000", 0), ("1", 1), ("0", 0)]
)
def test_extraction_strength_by_hand(hits, strength):
    """Of 0111 the first token must be given, of 1101 the first three; of 1110 all four."""
    assert extraction_strength(np.array([hit == "1" for hit in hits])) == strength


@pytest.fixture
def part(tmp_path):
    """Its function from a scorer to rows and means, over two probes and one passage."""
    rows = [[{"query": "Who?", "answer": "abd"}], [{"query": "Who?", "answer": ["xyy", "abc"]}], [{"text": "abcba"}]]
    for name, probes in zip(("forget_level1", "forget_level2", "forget_mia"), rows, strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(probes))

    def measure(scorer, **settings):
        config = EvalConfig("m", "atlas", str(tmp_path), "o", parts=["memorization"], **settings)
        [chosen] = main.select_parts(config)
        found = chosen.run(tmp_path, scorer)
        return found, {name: np.mean(values) for name, values in chosen.score(found).columns.items()}

    return measure


def test_answers_and_passages_by_hand(part):
    """Behind "Who?" the answers are " abd" (only b is predicted) and " abc" (b and c, the rest of it); of the passage,
    which comes behind BOS, only b and c."""
    rows, means = part(LikelihoodModel(Successor(), LETTERS))
    assert [(row["tokens"], row["es"], row["em"]) for row in rows] == [(4, 0, 0.25), (4, 0.5, 0.5), (5, 0, 0.4)]
    assert means == {"answers_es": 25, "answers_em": 37.5, "passages_es": 0, "passages_em": pytest.approx(40)}


def test_rwku_measures_it_unasked_and_atlas_on_request():
    suites = {suite: main.select_parts(EvalConfig("m", suite, "d", "o")) for suite in ("rwku", "atlas")}
    assert {suite: "memorization" in [part.name for part in parts] for suite, parts in suites.items()} == {
        "rwku": True,
        "atlas": False,
    }


def test_a_prompt_carries_what_the_model_is_asked_behind(part, monkeypatch):
    seen, forward = [], Successor.forward

    def noted(self, input_ids, use_cache):
        seen.append(input_ids)
        return forward(self, input_ids, use_cache)

    monkeypatch.setattr(Successor, "forward", noted)
    part(LikelihoodModel(Successor(), LETTERS), system_prompt="No")
    texts = ["".join(map(chr, row)).strip("\0") for batch in seen for row in batch.tolist()]
    assert sorted(texts) == ["\x01No\n\nWho? abc", "\x01No\n\nWho? abd", "\x01No\n\nWho? xyy", "\x01abcba"]


def test_hits_are_those_of_each_sequence_alone(tiny_model):
    """Over a model with a cache and shared beginnings, against its own logits."""
    model = load_model(str(tiny_model), dtype="float32")
    generator = np.random.default_rng(0)
    prompt = generator.integers(7, 300, size=20).tolist()
    sequences = [prompt + generator.integers(7, 300, size=length).tolist() for length in (4, 9)]
    with torch.no_grad():
        for ids in sequences:  # so that some tokens are hit
            ids[22] = int(model(torch.tensor([ids[:22]])).logits[0, -1].argmax())
        likeliest = [model(torch.tensor([ids])).logits[0].argmax(-1) for ids in sequences]
    found = greedy_hits(model, sequences, [4, 9], desc="t")
    for ids, best, hits in zip(sequences, likeliest, found, strict=True):
        assert hits.tolist() == (best[19:-1] == torch.tensor(ids[20:])).tolist()
        assert hits.any()


def test_a_model_that_diverged_has_no_likeliest_token():
    broken = Successor()
    broken.forward = lambda input_ids, use_cache: SimpleNamespace(logits=torch.full((*input_ids.shape, 128), torch.nan))
    with pytest.raises(DataError, match="sequence 0 are not finite"):
        greedy_hits(broken, [[1, 2, 3]], [2], desc="t")
