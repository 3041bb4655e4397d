"""What dry_run prints as a rank's peak, against the peak that real steps report by the same definition."""

import logging
import re

import pytest
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tests.conftest import make_tokenizer
from tests.training_kit import arguments, run_cli
from verl.utils.logger.logger import read_metrics

logger = logging.getLogger(__name__)
KV_CACHE_GIB = 1.0
TOLERANCE = 0.2


def save_model(folder, **sizes):
    """A random Llama with tied embeddings, as a Hugging Face folder."""
    tokenizer = make_tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, max_position_embeddings=512, **ids, **sizes))
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, sum(parameter.numel() for parameter in model.parameters())


def predicted_and_measured(model, folder, *changes):
    """GiB of a rank: what dry_run says, and the largest and smallest rank's peak after the last step."""
    printed = run_cli(arguments(model, folder, "dry", *changes, "trainer.dry_run=true"))
    predicted = float(re.search(r"peak of a step\s+([0-9.]+) GiB", printed).group(1))
    run_cli(arguments(model, folder, "run", *changes, "trainer.save_model_only=true"))
    last = list(read_metrics(folder / "run"))[-1]
    logger.info("predicted %.3f, measured %s", predicted, {key: last[key] for key in last if "peak_memory" in key})
    return predicted, last["perf/peak_memory_gib"], last["perf/peak_memory_least_rank_gib"]


def check(predicted, measured):
    """Within the tolerance, and also without the KV cache, whose fixed size would hide errors in the rest."""
    assert measured == pytest.approx(predicted, rel=TOLERANCE)
    assert measured - KV_CACHE_GIB == pytest.approx(predicted - KV_CACHE_GIB, rel=TOLERANCE)


def test_atlas_needs_what_dry_run_printed_on_every_rank(tmp_path):
    model, parameters = save_model(
        tmp_path / "model",
        vocab_size=1024,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
    )
    assert 3.4e6 < parameters < 3.7e6
    changes = ("trainer.n_gpus_per_node=2", "data.max_prompt_length=20", "data.max_response_length=64")
    changes += ("worker.actor.micro_batch_size_per_device_for_update=32", "worker.rollout.n=8", "trainer.max_steps=2")
    predicted, most, least = predicted_and_measured(model, tmp_path, *changes)
    check(predicted, most)
    check(predicted, least)


def test_a_model_of_100m_parameters_needs_what_dry_run_printed(tmp_path):
    model, parameters = save_model(
        tmp_path / "model",
        vocab_size=16384,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
    )
    assert 0.95e8 < parameters < 1.05e8
    changes = ("trainer.n_gpus_per_node=1", "data.max_prompt_length=20", "data.rollout_batch_size=4")
    changes += ("worker.actor.global_batch_size=4", "trainer.max_steps=2")
    predicted, most, _ = predicted_and_measured(model, tmp_path, *changes)
    check(predicted, most)
