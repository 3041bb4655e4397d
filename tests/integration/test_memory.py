"""What dry_run prints as a rank's peak, against the peak that real steps report by the same definition."""

import logging
import re

import pytest
from safetensors.torch import load_file

from tests.conftest import ATLAS_SHAPE, save_tiny_model
from tests.training_kit import arguments, train
from verl.trainer.main import main
from verl.utils.logger.logger import read_metrics

logger = logging.getLogger(__name__)
KV_CACHE_GIB = 1.0
TOLERANCE = 0.2


def save_model(folder, **sizes):
    """A random Llama as a Hugging Face folder, and how many parameters it has."""
    weights = load_file(save_tiny_model(folder, **sizes) / "model.safetensors")
    return folder, sum(tensor.numel() for tensor in weights.values())


def predicted_and_measured(model, folder, capsys, *changes):
    """GiB of a rank: what dry_run says, and the largest and smallest rank's peak after the last step."""
    assert main(arguments(model, folder, "dry", *changes, "trainer.dry_run=true")) == 0
    predicted = float(re.search(r"peak of a step\s+([0-9.]+) GiB", capsys.readouterr().out).group(1))
    train(*arguments(model, folder, "run", *changes, "trainer.save_model_only=true"))
    last = list(read_metrics(folder / "run"))[-1]
    logger.info("predicted %.3f, measured %s", predicted, {key: last[key] for key in last if "peak_memory" in key})
    return predicted, last["perf/peak_memory_gib"], last["perf/peak_memory_least_rank_gib"]


def check(predicted, measured):
    """Within the tolerance, and also without the KV cache, whose fixed size would hide errors in the rest."""
    assert measured == pytest.approx(predicted, rel=TOLERANCE)
    assert measured - KV_CACHE_GIB == pytest.approx(predicted - KV_CACHE_GIB, rel=TOLERANCE)


def test_atlas_needs_what_dry_run_printed_on_every_rank(ray_session, capsys, tmp_path):
    model, parameters = save_model(tmp_path / "model", **ATLAS_SHAPE)
    assert 3.4e6 < parameters < 3.7e6
    changes = ("trainer.n_gpus_per_node=2", "data.max_prompt_length=20", "data.max_response_length=64")
    changes += ("worker.actor.micro_batch_size_per_device_for_update=32", "worker.rollout.n=8", "trainer.max_steps=2")
    predicted, most, least = predicted_and_measured(model, tmp_path, capsys, *changes)
    check(predicted, most)
    check(predicted, least)


def test_a_model_of_100m_parameters_needs_what_dry_run_printed_on_every_rank(ray_session, capsys, tmp_path):
    model, parameters = save_model(
        tmp_path / "model",
        vocab_size=16384,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        initializer_range=0.02,
    )
    assert 0.95e8 < parameters < 1.05e8
    changes = ("trainer.n_gpus_per_node=2", "data.max_prompt_length=20", "data.rollout_batch_size=4")
    changes += ("worker.actor.global_batch_size=4", "trainer.max_steps=2")
    predicted, most, least = predicted_and_measured(model, tmp_path, capsys, *changes)
    check(predicted, most)
    check(predicted, least)
