"""The loop without ranks: what it sends them."""

from types import SimpleNamespace

import torch

from verl.protocol import DataProto
from verl.trainer.ray_trainer import RayPPOTrainer

EVERY_METHOD = {"input_ids", "response_mask", "old_log_probs", "advantages"}
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
