"""Going on from a checkpoint: which one, and what of the settings may differ from the run that wrote it.

A checkpoint holds the configuration of its run and digests of what that run read. What its state is bound to must be as
it was (FIXED, and the data by their content); everything else acts from the next step on. The optimiser's settings and
the schedule are always those of the configuration, see ``verl.models.checkpointing``.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from ..config.checks.inert import idle_keys
from ..rows.files import Row
from ..rows.sources import read_rows
from ..settings.path_types import same_place
from ..utils.checkpoint import REPLAY_STATE, find_latest_ckpt, is_whole, read_state
from ..utils.errors import ConfigError
from ..utils.tokenizer import read_template

if TYPE_CHECKING:
    from ..config.run import PPOConfig, TrainerConfig

ORDER = "the place that the checkpoint has in the data is counted by it"
PROMPTS = "prompts and samples would change in the middle of an epoch"
BATCH = "the optimiser's steps and replayed groups are counted by it"
WEIGHTS = "the checkpoint's weights are of that model"
FIXED = {
    "data.shuffle": ORDER,
    "data.seed": ORDER,
    "data.rollout_batch_size": ORDER,
    "data.mini_rollout_batch_size": ORDER,
    "data.forget_share": ORDER,
    "data.prompt_key": PROMPTS,
    "data.answer_key": PROMPTS,
    "data.mode": PROMPTS,
    "data.extra_prompt": PROMPTS,
    "data.chat_template_kwargs": PROMPTS,
    "data.max_prompt_length": PROMPTS,
    "data.max_response_length": PROMPTS,
    "worker.rollout.noise_rollout": PROMPTS,
    "worker.rollout.seed": "one seed is behind all samples of a run",
    "worker.rollout.n": BATCH,
    "worker.actor.global_batch_size": BATCH,
    "worker.actor.ppo_epochs": BATCH,
    "worker.critic.global_batch_size": BATCH,
    "worker.critic.ppo_epochs": BATCH,
    "worker.actor.model.model_path": WEIGHTS,
    "worker.actor.model.tokenizer_path": WEIGHTS,
    "worker.actor.model.override_config": WEIGHTS,
    "worker.actor.model.lora": WEIGHTS,
    "worker.critic.model.model_path": WEIGHTS,
    "worker.critic.model.override_config": WEIGHTS,
    "worker.critic.model.lora": WEIGHTS,
    "worker.ref.model.model_path": "the KL would be to another model",
    "worker.actor.optim.strategy": "the optimiser's state in the checkpoint is of that kind",
    "worker.critic.optim.strategy": "the optimiser's state in the checkpoint is of that kind",
}
"""Keys, or whole sections, that must be as they were, and why. Keys without effect in the run do not count."""

BEST = ("data.val_files", "trainer.best_key", "worker.reward.reward_function", "worker.rollout.val_override_config")
"""What a validation's score depends on: where it differs, the best step is chosen anew"""

UNSAID = ("trainer.load_checkpoint_path", "trainer.find_last_checkpoint", "trainer.dry_run", "trainer.dry_run_gpu")
"""how to go on, not with what"""


def resume_folder(trainer: "TrainerConfig", *, quiet: bool = True) -> Path | None:
    """The checkpoint that a run goes on from: the one it names, or the last whole one of its own.

    Args:
        quiet: without a warning for each that is passed over; the check of the configuration has given it.
    """
    folder = trainer.load_checkpoint_path
    if folder is None and trainer.find_last_checkpoint:
        folder, _ = find_latest_ckpt(trainer.checkpoint_folder, quiet=quiet)
    return None if folder is None else Path(folder)


def contents(config: "PPOConfig", rows: list[Row]) -> dict[str, str]:
    """Digests of the training rows, and of what makes prompts of them, by the setting that names the file."""
    data, texts = config.data, {"data.train_files": rows}
    for key in ("format_prompt", "override_chat_template"):
        text = getattr(data, key)
        texts[f"data.{key}"] = read_template(text) if text else ""
    texts["data.icl_type"] = read_rows(str(data.icl_file)) if data.icl_file else []
    return {
        key: hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16] for key, value in texts.items()
    }


def differences(config: "PPOConfig", state: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What the run that wrote a checkpoint had and this one has, by setting, where they differ.

    Args:
        state: of the checkpoint. One of an earlier version may have no configuration, or fewer settings.
    """
    return {key: (then, now) for key, then, now in _pairs(config, state.get("config", {}), "") if then != now}


def _pairs(section: Any, before: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    for field in dataclasses.fields(section):
        value, key = getattr(section, field.name), prefix + field.name
        if field.name not in before:
            continue
        if dataclasses.is_dataclass(value):
            yield from _pairs(value, before[field.name], f"{key}.")
        else:
            yield key, before[field.name], json.loads(json.dumps(value, default=str))


def changed_settings(config: "PPOConfig") -> list[str]:
    """A line for each setting that differs from the run that is continued: ``key: then -> now``."""
    folder = resume_folder(config.trainer)
    if folder is None:
        return []
    changed = differences(config, read_state(folder))
    return [
        f"going on from {folder} with another {key}: {then} -> {now}"
        for key, (then, now) in changed.items()
        if key not in UNSAID
    ]


def resume_problems(config: "PPOConfig", *, readable: bool) -> list[str]:
    """Why the run cannot go on from its checkpoint, if it has one.

    Args:
        readable: whether the rows and templates are in order, so that they can be compared.
    """
    named, folder = config.trainer.load_checkpoint_path, resume_folder(config.trainer, quiet=False)
    key = f"trainer.load_checkpoint_path={named}" if named else "trainer.find_last_checkpoint=true"
    fix = "null" if named else "false, or another trainer.run_dir"
    if named and (reason := is_whole(named)):
        return [f"{key}: {reason}; give a whole global_step_N folder"]
    if folder is None:
        return []
    weights = folder / "actor" / "huggingface"
    if not (folder / "actor" / "dcp").is_dir():
        return [
            f"{key}: {folder} has no training state (trainer.save_model_only=true), so no run can go on from it; set "
            f"{fix}. Its weights are in {weights}, for worker.actor.model.model_path"
        ]
    try:
        state = read_state(folder)
    except ValueError as error:
        return [f"{key}: {folder}: {error}; set {fix}. Its weights are in {weights}"]
    return [
        f"{problem}; set it back, or begin a run of its own: trainer.run_dir=..., trainer.load_checkpoint_path=null, "
        f"worker.actor.model.model_path={weights}"
        for problem in [
            *_fixed_problems(config, state, folder),
            *_state_problems(config, folder),
            *(_content_problems(config, state, folder) if readable else []),
        ]
    ]


def _fixed_problems(config: "PPOConfig", state: dict[str, Any], folder: Path) -> Iterator[str]:
    idle = idle_keys(config)
    for key, (then, now) in differences(config, state).items():
        reason = next((FIXED[fixed] for fixed in FIXED if _within(key, fixed)), None)
        without_effect = any(_within(key, other) for other in idle) or _no_adapters(config, key)
        if reason and not without_effect and not (key.endswith("_path") and same_place(then, now)):
            yield f"{key}={now}: it was {then} in the run that {folder} goes on, and {reason}"


def _content_problems(config: "PPOConfig", state: dict[str, Any], folder: Path) -> Iterator[str]:
    before = state.get("contents", {})
    now = contents(config, read_rows(config.data.train_files)) if before else {}
    for key, digest in now.items():
        if digest != before.get(key, digest):
            value = attrgetter(key)(config)
            yield f"{key}={value}: its content is not what it was in the run that {folder} goes on, and {PROMPTS}"


def _state_problems(config: "PPOConfig", folder: Path) -> Iterator[str]:
    """What the checkpoint lacks."""
    if config.use_critic and not (folder / "critic" / "dcp").is_dir():
        yield f"algorithm.adv_estimator=gae: {folder} has no critic to go on with"
    needs_reference = config.algorithm.kl_in_loss and config.reference_pass == "compute_ref_log_probs"
    if config.algorithm.replay.ratio and needs_reference and (folder / REPLAY_STATE).is_file():
        with safe_open(folder / REPLAY_STATE, "pt") as stored:
            names = set(stored.keys())
        if names and "ref_log_probs" not in names:
            yield (
                f"algorithm.replay.ratio={config.algorithm.replay.ratio}: the groups stored in {folder} have no "
                "log-probabilities of the reference, and algorithm.use_kl_loss=true needs them"
            )


def check_steps_left(config: "PPOConfig", total_steps: int) -> None:
    """Raise ConfigError where the checkpoint is further than the run is to go."""
    folder = resume_folder(config.trainer)
    step = read_state(folder)["step"] if folder else 0
    if step <= total_steps or config.trainer.val_only:
        return
    trainer = config.trainer
    key = f"max_steps={trainer.max_steps}" if trainer.max_steps else f"total_epochs={trainer.total_epochs}"
    raise ConfigError(
        f"trainer.{key}: means {total_steps} steps, and {folder} is at step {step}; set at least {step}, or give an "
        "earlier checkpoint as trainer.load_checkpoint_path"
    )


def _within(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _no_adapters(config: "PPOConfig", key: str) -> bool:
    """Whether a setting is one of adapters that this run has not; their rank itself has an effect."""
    section, _, name = key.rpartition(".")
    return section.endswith(".lora") and name != "rank" and not attrgetter(section)(config).rank
