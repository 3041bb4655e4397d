"""Algorithms and ways to spread the work, several in each run, train the RS model of Atlas: the reward rises.

GRPO as it is shipped is ``test_golden``'s; REINFORCE++ differs in its advantages alone, which unit tests compute.
"""

import pytest
import torch
from safetensors.torch import load_file

from scripts.model_merger import MergeConfig, merge
from tests.training_kit import train
from verl.utils.logger.logger import read_metrics

ACTOR, REF, CRITIC = "worker.actor", "worker.ref", "worker.critic"
PPO = [
    "algorithm.adv_estimator=gae",
    f"{CRITIC}.global_batch_size=16",
    f"{CRITIC}.fsdp.mp_param_dtype=fp32",
    f"{CRITIC}.optim.lr=1e-3",
    f"{CRITIC}.micro_batch_size_per_device_for_update=64",
    f"{CRITIC}.ulysses_size=2",
    f"{CRITIC}.model.lora.rank=8",
]
OFFLOAD = [f"{role}.fsdp.enable_cpu_offload=true" for role in (ACTOR, REF)]
OFFLOAD += [f"{ACTOR}.offload.offload_params=true", f"{ACTOR}.offload.offload_optimizer=true"]
TWO_RANKS = "trainer.n_gpus_per_node=2"

VARIANTS = {
    "rloo_gspo_two_mini_batches_replay_offload_bf16_klr": [
        "algorithm.adv_estimator=rloo",
        f"{ACTOR}.loss_type=gspo",
        f"{ACTOR}.loss_avg_mode=seq",
        f"{ACTOR}.global_batch_size=8",
        f"{ACTOR}.ppo_epochs=2",
        "algorithm.replay.ratio=0.5",
        "algorithm.replay.collect_steps=2",
        "algorithm.retain_loss=klr",
        "algorithm.retain_coef=0.01",  # the reference still refuses where the reward must rise
        *OFFLOAD,
        f"{ACTOR}.optim.strategy=adamw_bf16",
        f"{ACTOR}.fsdp.mp_reduce_dtype=bf16",
        f"{REF}.fsdp.torch_dtype=bf16",
        TWO_RANKS,
    ],
    "dr_grpo_sapo_online_filtering_by_split_lora_adapter_tensor_parallel": [
        "algorithm.norm_adv_by_std=false",
        "algorithm.online_filtering=true",
        "algorithm.normalize_by_split=true",
        "trainer.max_try_make_batch=40",
        f"{ACTOR}.loss_avg_mode=constant",
        f"{ACTOR}.loss_type=sapo",
        f"{ACTOR}.model.lora.rank=8",
        f"{ACTOR}.model.lora.alpha=32",
        f"{ACTOR}.model.lora.exclude_modules=[down_proj]",
        f"{ACTOR}.optim.lr=6e-3",
        "worker.rollout.tensor_parallel_size=2",
        TWO_RANKS,
    ],
    "ppo_hsdp_ulysses_critic_adapters": [
        *PPO,
        "trainer.critic_warmup=2",
        f"{ACTOR}.optim.lr=4e-4",
        f"{ACTOR}.fsdp.fsdp_size=1",
        f"{ACTOR}.ulysses_size=2",
        TWO_RANKS,
    ],
    "remax_adaptive_exact_kl_cispo_noise_padded_lora_merged_gdr": [
        "algorithm.adv_estimator=remax",
        "algorithm.kl_penalty=full",
        "algorithm.use_kl_loss=false",
        "algorithm.kl_type=adaptive",
        f"{ACTOR}.loss_type=cispo",
        "algorithm.rollout_is=token",
        "data.extra_prompt=Think first.",
        "worker.rollout.noise_rollout=2",
        "algorithm.retain_loss=gdr",
        "algorithm.retain_coef=0.1",
        f"{ACTOR}.model.lora.rank=8",
        "worker.rollout.lora_weights=merged",
        f"{ACTOR}.optim.lr=3e-3",
        f"{ACTOR}.padding_free=false",
        f"{ACTOR}.dynamic_batching=false",
    ],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_reward_rises(name, ray_session, atlas_target, atlas_rs_model, tmp_path):
    target = atlas_target / "rl_rejection_with_fb_neighbor_target"
    train(
        "config=examples/grpo_rj_rl.yaml,examples/atlas.yaml",
        f"worker.actor.model.model_path={atlas_rs_model}",
        f"data.train_files={target}.json",
        f"data.val_files={target}_val.json",
        f"trainer.run_dir={tmp_path}",
        "trainer.max_steps=6",
        "trainer.val_freq=6",
        "trainer.n_gpus_per_node=1",
        *VARIANTS[name],
    )
    rows = read_metrics(tmp_path)
    before, after = rows[0]["val/reward/overall"], rows[-1]["val/reward/overall"]
    assert rows[-1]["step"] == 6
    assert after > before + 0.03, f"validation reward went from {before} to {after}"
    trained = rows[2:] if "critic" in name else rows[1:]
    assert all(row["actor/grad_norm"] > 0 for row in trained)
    assert all(row["rollout/mean_abs_diff"] < 1e-2 for row in trained)
    assert [row["perf/weight_syncs"] for row in rows] == [1, 1, 1, 1, 1, 1, 2]  # and validation before and after
    if "_lora_" in name:
        check_the_merger(tmp_path / "checkpoints" / "global_step_6" / "actor", excluded="adapter" in name)
    if name.endswith(("_klr", "_gdr")):
        assert all(row["actor/retain_loss"] > 0 for row in trained)
    if "replay" in name:
        assert rows[-1]["replay/rows"] == 8 * 8
    if name == "ppo_hsdp_ulysses_critic_adapters":
        check_the_merger(tmp_path / "checkpoints" / "global_step_6" / "critic")
        assert rows[-1]["critic/vf_loss"] < rows[1]["critic/vf_loss"]
        assert "actor/pg_loss" not in rows[1]  # critic_warmup


def check_the_merger(actor, excluded=False):
    """What scripts/model_merger.py makes of the training state is what the trainer wrote."""
    merged = merge(MergeConfig(str(actor)))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (actor / "huggingface", merged))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-6), name
    adapter = merge(MergeConfig(str(actor), out=str(actor / "adapter"), lora="adapter"))
    names = load_file(adapter / "adapter_model.safetensors").keys()
    assert all("lora_" in name for name in names)
    assert any("down_proj" in name for name in names) == (not excluded)
