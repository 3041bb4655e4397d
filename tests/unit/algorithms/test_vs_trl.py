"""Our advantages, losses and gradients against TRL's own code on random inputs.

TRL's trainers compute both inside methods. They are called here with a stand-in for `self` that holds the settings the
methods read and hands out prepared log-probabilities and rewards, so no model runs and nothing of TRL is copied.
"""

import importlib
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from RS import objectives
from verl.algorithms.advantages import compute_grpo_outcome_advantage, compute_rloo_outcome_advantage
from verl.algorithms.kl import compute_kl
from verl.algorithms.losses import loss_weight, masked_aggregate, policy_loss

pytest.importorskip("trl")

B, T, GROUP = 24, 9, 4
UIDS = [f"prompt-{row // GROUP}" for row in range(B)]  # TRL groups by position, GROUP samples in a row


@pytest.fixture(scope="module")
def trl():
    # Importing TRL's trainers would import vLLM where it is installed: 15 seconds, for a path that is not taken.
    with mock.patch.object(
        importlib.import_module("trl.import_utils"), "is_vllm_available", lambda *args, **kwargs: False
    ):
        from trl.trainer.dpo_trainer import DPOTrainer
        from trl.trainer.grpo_trainer import GRPOTrainer
        from trl.trainer.rloo_trainer import RLOOTrainer
    return SimpleNamespace(dpo=DPOTrainer, grpo=GRPOTrainer, rloo=RLOOTrainer)


@pytest.fixture(params=range(3))
def sample(request):
    """Random log-probabilities far enough apart that every clip acts, ragged masks, one advantage a row."""
    generator = torch.Generator().manual_seed(request.param)
    lengths = torch.randint(1, T + 1, (B,), generator=generator)
    old = -2 * torch.rand(B, T, generator=generator)
    return SimpleNamespace(
        mask=(torch.arange(T) < lengths.unsqueeze(-1)).long(),
        old=old,
        new=old + 0.5 * torch.randn(B, T, generator=generator),
        ref=old + 0.5 * torch.randn(B, T, generator=generator),
        advantages=torch.randn(B, generator=generator),
        weights=torch.rand(B, T, generator=generator) * 2,
    )


def stand_in(log_probs: torch.Tensor, **settings) -> mock.MagicMock:
    """A `self` for TRL's methods: one process, training mode, no extras; the settings of each test on top."""
    trainer = mock.MagicMock()
    args = SimpleNamespace(
        use_bias_correction_kl=False,
        steps_per_generation=1,
        delta=None,
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        per_device_train_batch_size=B,
        gradient_accumulation_steps=1,
        gradient_checkpointing_kwargs=None,
    )
    for name in list(settings):
        if hasattr(args, name):
            setattr(args, name, settings.pop(name))
    defaults = {
        "args": args,
        "beta": 0.0,
        "importance_sampling_level": "token",
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": T,
        "num_generations": GROUP,
        "num_iterations": 1,
        "scale_rewards": "group",
        "multi_objective_aggregation": "sum_then_normalize",
        "normalize_advantages": False,
        "reward_clip_range": None,
        "reward_weights": torch.ones(1),
        "reward_func_names": ["reward"],
        "pad_to_multiple_of": None,
        "mask_truncated_completions": False,
        "environments": None,
        "environment_factories": None,
        "tools": None,
        "_pending_extra_logs": {},
        "_pending_metrics": {},
    }
    for name, value in {**defaults, **settings}.items():
        setattr(trainer, name, value)
    trainer.model.training = True
    trainer.accelerator.device = torch.device("cpu")
    trainer.accelerator.num_processes = 1
    trainer.accelerator.process_index = 0
    trainer.accelerator.gather.side_effect = lambda x: x
    trainer.accelerator.reduce.side_effect = lambda x, reduction: x
    trainer._tokenizer.pad_token_id = 0
    trainer._get_per_token_logps_and_entropies.return_value = (log_probs, torch.zeros_like(log_probs), None)
    return trainer


def trl_loss(trainer_class, sample, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    log_probs = sample.new.clone().requires_grad_()
    inputs = {
        "prompt_ids": torch.zeros(B, 1, dtype=torch.long),
        "prompt_mask": torch.ones(B, 1, dtype=torch.long),
        "completion_ids": torch.zeros(B, T, dtype=torch.long),
        "completion_mask": sample.mask,
        "advantages": sample.advantages,
        "old_per_token_logps": sample.old,
        "old_logps": (sample.old * sample.mask).sum(-1),
        "ref_per_token_logps": sample.ref,
        "num_items_in_batch": sample.mask.sum(),
        "importance_sampling_ratio": sample.weights,
    }
    loss = trainer_class._compute_loss(stand_in(log_probs, **settings), None, inputs)
    loss.backward()
    return loss.detach(), log_probs.grad


def our_loss(sample, mode: str, kl_coef: float = 0.0, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    log_probs = sample.new.clone().requires_grad_()
    advantages = sample.advantages.unsqueeze(-1).expand(B, T)
    loss, _ = policy_loss(
        log_probs, sample.old, advantages, sample.mask, loss_avg_mode=mode, constant_length=T, **settings
    )
    kl = masked_aggregate(compute_kl(log_probs, sample.ref, "low_var_kl"), sample.mask, mode, constant_length=T)
    mean = (loss + kl_coef * kl) / loss_weight(sample.mask, mode)
    mean.backward()
    return mean.detach(), log_probs.grad


NO_DUAL = {"clip_ratio_dual": 1e6}
CASES = {
    "grpo": ("seq", {"loss_type": "grpo"}, {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, **NO_DUAL}),
    "dr_grpo": ("constant", {"loss_type": "dr_grpo"}, {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, **NO_DUAL}),
    "dapo_clip_higher": (
        "token",
        {"loss_type": "dapo", "epsilon_high": 0.28},
        {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, **NO_DUAL},
    ),
    "gspo": (
        "seq",
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04},
        {"loss_type": "gspo", "clip_ratio_low": 0.03, "clip_ratio_high": 0.04, **NO_DUAL},
    ),
    "cispo": (  # TRL's bound is the ratio itself, and it has no lower one
        "token",
        {"loss_type": "cispo", "epsilon_high": 1.5},
        {"loss_type": "cispo", "clip_ratio_low": 1.0, "clip_ratio_high": 0.5},
    ),
    "sapo": ("seq", {"loss_type": "sapo"}, {"loss_type": "sapo", "tau_positive": 1.0, "tau_negative": 1.05}),
    "kl_in_the_loss": (
        "token",
        {"loss_type": "dapo", "beta": 0.3},
        {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "kl_coef": 0.3, **NO_DUAL},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient(trl, sample, case):
    mode, theirs, ours = CASES[case]
    loss, gradient = trl_loss(trl.grpo, sample, **{"epsilon_low": 0.2, "epsilon_high": 0.2, **theirs})
    our, our_gradient = our_loss(sample, mode, **ours)
    assert our.item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-5)
    assert torch.allclose(our_gradient, gradient, rtol=1e-5, atol=1e-6)
    assert gradient.abs().max() > 1e-3


def test_rollout_correction_weighs_tokens(trl, sample):
    loss, gradient = trl_loss(
        trl.grpo, sample, loss_type="dapo", epsilon_low=0.2, epsilon_high=0.2, use_vllm=True,
        vllm_importance_sampling_correction=True,
    )  # fmt: skip
    our, our_gradient = our_loss(
        sample, "token", clip_ratio_low=0.2, clip_ratio_high=0.2, weights_BT=sample.weights, **NO_DUAL
    )
    assert our.item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-5)
    assert torch.allclose(our_gradient, gradient, rtol=1e-5, atol=1e-6)


def test_rloo_on_policy_gradient(trl, sample):
    """RLOO in TRL takes the ratio of whole sequences; on-policy its gradient is -A for every token, ours too."""
    sample.new = sample.old.clone()
    _, gradient = trl_loss(trl.rloo, sample, epsilon_low=0.2, epsilon_high=0.2)
    _, ours = our_loss(sample, "constant", **NO_DUAL)
    assert torch.allclose(ours * T, gradient, rtol=1e-5, atol=1e-6)


def trl_advantages(trainer_class, rewards: torch.Tensor, **settings) -> torch.Tensor:
    trainer = stand_in(torch.zeros(B, 1), **settings)
    tokens, texts = [[1]] * B, ["x"] * B
    generated = {
        "GRPOTrainer": (tokens, tokens, None, texts, None, {}, None, None),
        "RLOOTrainer": (tokens, tokens, texts),
    }
    trainer._generate.return_value = generated[trainer_class.__name__]
    trainer._calculate_rewards.return_value = rewards.unsqueeze(-1)
    out = trainer_class._generate_and_score_completions(trainer, [{"prompt": "x"} for _ in range(B)])
    return out["advantages"]


@pytest.mark.parametrize("seed", range(3))
def test_advantages(trl, seed):
    rewards = torch.rand(B, generator=torch.Generator().manual_seed(seed))
    rewards[:GROUP] = 0.5  # a group without any spread
    column, mask = rewards.unsqueeze(-1), torch.ones(B, 1)
    theirs = {
        "grpo": trl_advantages(trl.grpo, rewards),
        "dr_grpo": trl_advantages(trl.grpo, rewards, scale_rewards="none"),
        "rloo": trl_advantages(trl.rloo, rewards),
    }
    ours = {  # TRL adds 1e-4 to the deviation where EasyR1, and so our default, adds 1e-6
        "grpo": compute_grpo_outcome_advantage(column, mask, UIDS, eps=1e-4),
        "dr_grpo": compute_grpo_outcome_advantage(column, mask, UIDS, normalize_std=False),
        "rloo": compute_rloo_outcome_advantage(column, mask, UIDS),
    }
    for name, expected in theirs.items():
        assert torch.allclose(ours[name][0].squeeze(-1), expected, atol=1e-5), name
        assert expected.abs().max() > 0.1


def test_dpo(trl, sample):
    """Rows are (prompt token, T response tokens), first half chosen, second half rejected. AltPO is 2 / beta of it."""
    theirs = (sample.new * sample.mask).requires_grad_()
    statistics = {name: torch.zeros(B, T) for name in ("entropy", "mean_logits")}
    outputs = SimpleNamespace(log_probs=theirs, is_top1=torch.zeros(B, T, dtype=torch.bool), **statistics)
    reference = (sample.ref * sample.mask).sum(-1).chunk(2)
    settings = {"beta": 0.3, "ld_alpha": None, "precompute_ref_logps": True, "f_divergence_type": "reverse_kl"}
    settings |= {"loss_types": ["sigmoid"], "loss_weights": [1.0], "use_weighting": False, "_tp_size": 1}
    trainer = stand_in(theirs, **settings)
    trainer.accelerator.gather_for_metrics.side_effect = lambda x: x
    inputs = {
        "input_ids": torch.zeros(B, 1 + T, dtype=torch.long),
        "attention_mask": torch.ones(B, 1 + T, dtype=torch.long),
        "completion_mask": torch.cat([torch.zeros(B, 1, dtype=torch.long), sample.mask], dim=1),
        "ref_chosen_logps": reference[0],
        "ref_rejected_logps": reference[1],
    }
    loss = trl.dpo._compute_loss(trainer, lambda **_: outputs, inputs, False)
    loss.backward()
    ours = (sample.new * sample.mask).requires_grad_()
    mean = objectives.dpo(*ours.chunk(2), *reference, beta=0.3) / (B // 2)
    mean.backward()
    assert mean.item() == pytest.approx(loss.item(), rel=1e-6)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    scaled = objectives.altpo(*ours.chunk(2), *reference, beta=0.3) / (B // 2)
    assert scaled.item() == pytest.approx(2 / 0.3 * loss.item(), rel=1e-6)
