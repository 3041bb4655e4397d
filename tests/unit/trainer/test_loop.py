"""The loop without ranks: what it sends them."""

from types import SimpleNamespace

import pytest
import torch

from verl.protocol import DataProto
from verl.trainer.experience import TrainingError
from verl.trainer.ray_trainer import RayPPOTrainer

EVERY_METHOD = {"input_ids", "response_mask", "old_log_probs", "advantages"}
SKIPPED = "actor/skipped_steps"
OWN = {"prompts", "token_level_scores", "token_level_rewards", "reward_baselines", "ref_kl"}


def test_ranks_are_sent_the_tensors_that_they_read_and_nothing_else():
    trainer, sent = RayPPOTrainer.__new__(RayPPOTrainer), {}
    trainer.config = SimpleNamespace(worker=SimpleNamespace(actor=SimpleNamespace(ulysses_size=1)))
    trainer.workers = SimpleNamespace(split=lambda method, data, _: sent.update({method: data}))
    keys = EVERY_METHOD | OWN | {"values", "returns", "gold"}
    batch = DataProto.from_dict({key: torch.ones(2, 3) for key in keys}, {"uid": ["a", "b"]}, {"step": 1})
    for method in ("compute_log_probs", "update_actor", "update_critic"):
        trainer._shared_out(method, batch, kl_coef=0.1)
        assert sent[method].meta_info == {"kl_coef": 0.1} and not sent[method].non_tensor_batch
    assert set(sent["compute_log_probs"].batch.keys()) == EVERY_METHOD
    assert set(sent["update_actor"].batch.keys()) == EVERY_METHOD | {"gold"}
    assert set(sent["update_critic"].batch.keys()) == EVERY_METHOD | {"values", "returns"}
    assert set(batch.batch.keys()) == keys


def test_a_run_whose_losses_are_not_finite_ends():
    trainer = RayPPOTrainer.__new__(RayPPOTrainer)
    limit, actor = SimpleNamespace(max_nonfinite_steps=1), SimpleNamespace(ulysses_size=1)
    trainer.config = SimpleNamespace(
        worker=SimpleNamespace(actor=actor), algorithm=SimpleNamespace(kl_in_loss=False), trainer=limit
    )
    trainer.kl, trainer.step = SimpleNamespace(kl_coef=0.0), 2
    tensors = {key: torch.zeros(2, 3) for key in ("old_log_probs", "rollout_log_probs")}
    batch = DataProto.from_dict(tensors | {"response_mask": torch.ones(2, 3)})

    def update(skipped):
        result = DataProto.from_dict({"log_probs": torch.zeros(2, 3)}, meta_info={"metrics": {SKIPPED: skipped}})
        trainer.workers = SimpleNamespace(split=lambda method, data, _: [result])
        trainer._update_actor(batch, {})

    update(1.0)
    with pytest.raises(TrainingError, match="step 2: 2 optimiser steps had a non-finite loss or gradient; lower"):
        update(2.0)
