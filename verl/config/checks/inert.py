"""Finds settings that do nothing in this run, or hardly what their user expects, so that none passes silently.

Settings that would be wrong are ``problems`` of their dataclass.
"""

import dataclasses
from operator import attrgetter
from typing import Any

from ...utils.vllm_env import has_accelerator
from ..run import PPOConfig

ROLES = ("actor", "critic", "ref")
REFERENCE = " ".join(
    f"worker.ref.model.{key}"
    for key in ("tokenizer_path", "override_config", "enable_gradient_checkpointing", "trust_remote_code", "lora")
)
UNTRAINED = "worker.ref.offload.offload_optimizer worker.ref.fsdp.defer_gradient_reduction"
GSPO_CLIP = 0.01
"""a wider clip hardly ever acts on the mean ratio of a sequence; GSPO's paper has 3e-4 and 4e-4"""
VISION = "data.image_key data.video_key data.video_fps data.min_pixels data.max_pixels"


def inert_settings(config: PPOConfig) -> list[str]:
    """One warning for each changed setting without effect: ``key=value: has no effect; reason``; then one for each that
    hardly does what is expected of it."""
    defaults = type(config)()
    idle = [
        f"{key}={_shown(attrgetter(key)(config))}: has no effect; {reason}"
        for acts, keys, reason in _rules(config)
        if not acts
        for key in keys.split()
        if attrgetter(key)(config) != attrgetter(key)(defaults)
    ]
    return idle + _doubtful(config)


def _doubtful(config: PPOConfig) -> list[str]:
    """``key=value: what is unexpected; the fix``."""
    algorithm, actor, found = config.algorithm, config.worker.actor, []
    if algorithm.kl_in_loss and algorithm.kl_penalty == "kl":
        found.append(
            "algorithm.kl_penalty=kl: as a loss its mean gradient is zero, so it holds nothing near the reference; set "
            "kl+ (the same values) or low_var_kl+"
        )
    if actor.loss_type not in ("gspo", "gspo_token"):
        return found
    for key, usual in (("clip_ratio_low", "3e-4"), ("clip_ratio_high", "4e-4")):
        if getattr(actor, key) > GSPO_CLIP:
            found.append(
                f"worker.actor.{key}={getattr(actor, key)}: is a clip range of single tokens; the mean ratio of a "
                f"sequence, which {actor.loss_type} clips, hardly ever leaves it; set {usual}"
            )
    if actor.loss_avg_mode == "token":
        found.append(
            f"worker.actor.loss_avg_mode=token: weighs a sequence by its length, and {actor.loss_type} is made for "
            "sequences that all weigh the same; set seq"
        )
    return found


def idle_keys(config: PPOConfig) -> list[str]:
    """Keys, or whole sections, that have no effect in this run, changed or not."""
    return [key for acts, keys, _ in _rules(config) if not acts for key in keys.split()]


def _rules(config: PPOConfig) -> list[tuple[bool, str, str]]:
    """(do they act?, keys, why not)"""
    algorithm, actor = config.algorithm, config.worker.actor
    estimator, validates = algorithm.adv_estimator, bool(config.data.val_files)
    elsewhere = not config.trainer.is_local  # what the machines of a cluster have is not known yet
    offloads = _for_roles("fsdp.enable_cpu_offload", "offload.offload_params", "offload.offload_optimizer")
    return [
        *(_offload_rule(config, role) for role in ROLES),
        (False, _for_roles("fsdp.use_orig_params"), "FSDP2 always keeps the original parameters"),
        (False, f"{VISION} {_for_roles('model.freeze_vision_tower')}", "this trainer is for text models"),
        (False, f"{REFERENCE} {UNTRAINED}", "the reference is the actor's twin, untrained"),
        (False, "worker.critic.model.tokenizer_path", "the critic reads the actor's tokens"),
        (elsewhere or has_accelerator(), offloads, "there is no accelerator to move memory away from"),
        (actor.model.lora.rank > 0, "worker.rollout.lora_weights", "worker.actor.model.lora.rank=0 trains no adapters"),
        (config.use_critic, "worker.critic trainer.critic_warmup", f"adv_estimator={estimator} trains no critic"),
        (
            config.trainer.critic_warmup > 1 or not config.use_critic,
            "trainer.critic_warmup",
            "the actor is trained from this step on, and steps count from 1",
        ),
        (
            config.use_reference,
            "worker.ref algorithm.use_kl_loss algorithm.kl_penalty algorithm.kl_coef algorithm.kl_type",
            "disable_kl=true trains without a reference",
        ),
        (
            not (config.use_reference and config.worker.reference_is_actor),
            "worker.ref.fsdp worker.ref.offload.offload_params",
            "under LoRA the reference is the actor with its adapters off",
        ),
        *_algorithm_rules(config),
        (
            validates,
            "data.val_batch_size trainer.val_freq trainer.val_generations_to_log trainer.best_key "
            "worker.rollout.val_override_config",
            "data.val_files is empty, so nothing is validated",
        ),
    ]


def _algorithm_rules(config: PPOConfig) -> list[tuple[bool, str, str]]:
    """Those of advantages, KL, filters and losses."""
    algorithm, actor = config.algorithm, config.worker.actor
    estimator = algorithm.adv_estimator
    discounted = estimator in ("gae", "reinforce_plus_plus")
    return [
        (discounted, "algorithm.gamma", f"adv_estimator={estimator} does not discount"),
        (estimator == "gae", "algorithm.lam", f"adv_estimator={estimator} has no lambda"),
        (config.trainer.dry_run, "trainer.dry_run_gpu", "dry_run=false"),
        (algorithm.kl_type == "adaptive", "algorithm.kl_horizon algorithm.kl_target", "kl_type=fixed"),
        (
            algorithm.online_filtering,
            "algorithm.filter_key algorithm.filter_low algorithm.filter_high data.mini_rollout_batch_size "
            "trainer.max_try_make_batch",
            "online_filtering=false",
        ),
        (algorithm.rollout_is != "off", "algorithm.rollout_is_cap", "rollout_is=off"),
        (algorithm.retain_loss != "none", "algorithm.retain_coef", "retain_loss=none"),
        (
            algorithm.replay.ratio > 0,
            "algorithm.replay.capacity algorithm.replay.collect_steps algorithm.replay.reward_threshold "
            "algorithm.replay.cap",
            "replay.ratio=0",
        ),
        (
            actor.loss_type == "sapo",
            "worker.actor.tau_positive worker.actor.tau_negative",
            f"loss_type={actor.loss_type}",
        ),
        (actor.loss_type == "default", "worker.actor.clip_ratio_dual", f"loss_type={actor.loss_type} has no dual clip"),
        (actor.loss_type != "sapo", "worker.actor.clip_ratio_low worker.actor.clip_ratio_high", "loss_type=sapo"),
    ]


def _offload_rule(config: PPOConfig, role: str) -> tuple[bool, str, str]:
    return (
        not (has_accelerator() and getattr(config.worker, role).fsdp.enable_cpu_offload),
        f"worker.{role}.offload.offload_params worker.{role}.offload.offload_optimizer",
        f"worker.{role}.fsdp.enable_cpu_offload=true keeps them in CPU memory at all times",
    )


def _for_roles(*keys: str) -> str:
    return " ".join(f"worker.{role}.{key}" for role in ROLES for key in keys)


def _shown(value: Any) -> str:
    return "(section)" if dataclasses.is_dataclass(value) else str(value)
