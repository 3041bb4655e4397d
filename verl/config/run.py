"""Settings of a run: sections ``data``, ``algorithm``, ``worker``, ``trainer``, with EasyR1's names and meanings.

The old names that EasyR1 and the RULE release used are in RENAMES. What can only be judged across sections is in
``verl.config.checks.cross``; what needs the files themselves is in ``verl.trainer.preflight``.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..rows.sources import find_sources
from ..settings.path_types import PathText, Sources, TemplateText
from ..utils.errors import ConfigError
from ..utils.ray_address import LOCAL, ray_address
from .worker import MOST_PROCESSES, MOST_REPLAYED, WorkerConfig, not_negative, positive, seed_problems

logger = logging.getLogger(__name__)

RULE_REWARD = "examples/reward_function/rule.py:compute_score"

RENAMES = {
    "trainer.total_episodes": "trainer.total_epochs",
    "worker.actor.ulysses_sequence_parallel_size": "worker.actor.ulysses_size",
    "worker.critic.ulysses_sequence_parallel_size": "worker.critic.ulysses_size",
    "worker.reward.score_function": "worker.reward.reward_function_kwargs.preset",
    "worker.reward.reward_type": None,
    "data.val_prompt_key": "data.prompt_key",
    "data.val_answer_key": "data.answer_key",
    "data.output_result_dir": "trainer.run_dir",
    "data.format_prompt_path": "data.format_prompt",
    "worker.noise_rollout.noise_prompt": "data.extra_prompt",
}
"""Old name to new name; None: the setting went away (the reward file itself says whether it scores batches)."""


@dataclass(frozen=True)
class DataConfig:
    train_files: Sources | list[Sources] = ""
    """training rows: a JSON, JSONL or parquet file, a folder, a hub id, or several; ``data@split`` picks a split"""
    val_files: Sources | list[Sources] | None = ""
    """validation rows, likewise; empty or null: no validation"""
    prompt_key: str = "prompt"
    """column of the prompt"""
    answer_key: str = "answer"
    """column of the ground truth; RULE's files call it ``solution``"""
    image_key: str = "images"
    """vision only: rows with this column are refused"""
    image_dir: PathText | None = None
    """vision only: must stay null"""
    video_key: str = "videos"
    """vision only: rows with this column are refused"""
    video_fps: float = 2.0
    """vision only"""
    min_pixels: int | None = 262144
    """vision only"""
    max_pixels: int | None = 4194304
    """vision only"""
    max_prompt_length: int = 512
    """tokens of the longest prompt"""
    max_response_length: int = 512
    """tokens of the longest response"""
    rollout_batch_size: int = 512
    """PROMPTS of a training step"""
    forget_share: float | None = None
    """share of forget prompts (by the ground truth's tag, or a column ``split``) in every draw of prompts, rounded to
    whole ones; null: as the rows come"""
    mini_rollout_batch_size: int | None = None
    """PROMPTS drawn at a time under online filtering; null: rollout_batch_size"""
    val_batch_size: int = -1
    """PROMPTS of a validation batch; -1: all at once"""
    format_prompt: TemplateText | None = None
    """jinja template around each prompt (``{{ content }}``): a path ending in .jinja, or the text itself"""
    extra_prompt: str | None = None
    """text in front of the training prompts: of all, or of worker.rollout.noise_rollout samples of each group. What the
    engine sees the trainer sees too"""
    mode: str | None = None
    """column that says how a row is put, for models asked as MUSE asks: ``completion``, the text as it is, or ``qa``,
    a question behind the examples of icl_type; null: every row is just its prompt"""
    icl_type: Literal["forget", "retain", "train"] | None = None
    """examples in front of every ``qa`` row: knowmem/<icl_type>_qa_icl.json beside the training file; null: none. The
    RULE release chose them by the row's label, which gives the right reaction away"""
    override_chat_template: TemplateText | None = None
    """jinja chat template instead of the tokenizer's: a path ending in .jinja, or the text itself"""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """further arguments of the chat template, for example ``{enable_thinking: false}``; one that the template does not
    read is an error"""
    shuffle: bool = True
    """a new order of the training rows every epoch"""
    seed: int = 1
    """seed of that order"""
    filter_overlong_prompts: bool = True
    """leave out prompts beyond max_prompt_length; false: such a prompt is an error"""
    filter_overlong_prompts_workers: int = 16
    """processes that measure prompts, used from 20,000 rows on"""

    @property
    def icl_file(self) -> Path | None:
        """Where the examples of ``icl_type`` are."""
        sources = find_sources(self.train_files)
        if not (self.icl_type and sources):
            return None
        first = sources[0].path
        folder = first if first.is_dir() else first.parent
        return folder / "knowmem" / f"{self.icl_type}_qa_icl.json"

    def problems(self) -> list[str]:
        found = positive(self, "max_prompt_length", "max_response_length", "rollout_batch_size")
        found += seed_problems(self.seed)
        if self.extra_prompt and "{}" in self.extra_prompt:
            found.append(
                f"extra_prompt={self.extra_prompt!r}: the RULE release put the target's name, read from "
                "experiment_name, in place of {}; write the name"
            )
        if self.icl_type and not self.mode:
            found.append(f"icl_type={self.icl_type}: acts on rows that are questions by mode; set data.mode=mode")
        if not self.train_files:
            found.append("train_files='': is required; give the path of a JSON or parquet file")
        if self.image_dir is not None:
            found.append(f"image_dir={self.image_dir}: this trainer is for text models; set null")
        if self.forget_share is not None and not 0 < self.forget_share < 1:
            found.append(
                f"forget_share={self.forget_share}: must lie between 0 and 1, or be null; 0.5 is half and half"
            )
        mini = self.mini_rollout_batch_size
        if mini is not None and (mini < 1 or self.rollout_batch_size % mini):
            found.append(
                f"mini_rollout_batch_size={mini}: must divide rollout_batch_size={self.rollout_batch_size}; "
                f"for example {self.rollout_batch_size}"
            )
        return found


@dataclass(frozen=True)
class ReplayConfig:
    """Hard-case replay (ReRULE, arXiv 2606.15333): groups that scored low early come back in later steps."""

    ratio: float = 0.0
    """replayed groups for each fresh one; 0: no replay"""
    capacity: int = 256
    """groups kept at most"""
    collect_steps: int = 10
    """first steps, which fill the buffer; replay starts after them"""
    reward_threshold: float = 0.5
    """a group is hard if its mean reward is at most this"""
    cap: float = 2.0
    """largest importance weight of a replayed token"""

    def problems(self) -> list[str]:
        found = positive(self, "capacity", "collect_steps")
        if not 0 <= self.ratio <= MOST_REPLAYED:
            found.append(f"ratio={self.ratio}: must lie in [0, {MOST_REPLAYED}]; 0 is off, 1.0 is usual")
        if self.cap < 1:
            found.append(f"cap={self.cap}: must be at least 1; 2.0 is usual")
        return found


@dataclass(frozen=True)
class AlgorithmConfig:
    adv_estimator: Literal["grpo", "grpo_passk", "gae", "reinforce_plus_plus", "rloo", "remax"] = "grpo"
    """how rewards become advantages; ``gae`` is PPO and trains a critic"""
    gamma: float = 1.0
    """discount a token (gae, reinforce_plus_plus)"""
    lam: float = 1.0
    """lambda of GAE"""
    norm_adv_by_std: bool = True
    """grpo: divide by the group's standard deviation; false with loss_avg_mode=constant is Dr. GRPO"""
    disable_kl: bool = False
    """train without a reference model, and so without a KL, whatever use_kl_loss says"""
    use_kl_loss: bool = False
    """KL as a term of the loss instead of the reward"""
    kl_penalty: Literal["kl", "abs", "mse", "low_var_kl", "full", "kl+", "low_var_kl+"] | None = None
    """estimator of the KL to the reference from the sampled tokens; ``full``: the exact KL over the vocabulary, which
    holds the reference's logits beside the actor's. ``kl+`` and ``low_var_kl+`` have the values of ``kl`` and
    ``low_var_kl`` and, in a loss, the gradient of the KL: that of ``kl`` is 0 in the mean, that of ``low_var_kl`` right
    near the reference only. null: ``low_var_kl+`` in the loss, ``kl`` in the reward"""
    kl_coef: float = 1e-3
    """weight of the KL"""
    kl_type: Literal["fixed", "adaptive"] = "fixed"
    """keep kl_coef, or steer it towards kl_target"""
    kl_horizon: float = 10000.0
    """samples over which an adaptive coefficient reacts"""
    kl_target: float = 0.1
    """KL that an adaptive coefficient aims at"""
    online_filtering: bool = False
    """drop groups whose rewards (their filter_key) are all equal, or have a mean outside (filter_low, filter_high), and
    draw again until the batch is full"""
    filter_key: str = "overall"
    """part of the reward that is filtered on"""
    filter_low: float = 0.01
    """groups at or below are dropped"""
    filter_high: float = 0.99
    """groups at or above are dropped"""
    normalize_by_split: bool = False
    """bring forget and boundary rewards to the same mean and spread before advantages are taken"""
    rollout_is: Literal["off", "token", "sequence_mask"] = "off"
    """correct the mismatch between engine and trainer: weigh tokens by their ratio, or mask sequences that stray"""
    rollout_is_cap: float = 2.0
    """largest weight of a token; a sequence whose mean ratio leaves [1/cap, cap] is masked"""
    retain_loss: Literal["none", "gdr", "klr", "sft"] = "none"
    """added to the policy loss at the gold answers of the batch's boundary prompts, a mean over tokens: their negative
    log-likelihood (gdr; sft is another name of it), or the KL from the reference to the model (klr), which keeps what
    the reference does there: an RS model's refusals, too. A ground truth with several answers has the first"""
    retain_coef: float = 1.0
    """weight of the retain loss"""
    replay: ReplayConfig = field(default_factory=ReplayConfig)

    @property
    def kl_in_loss(self) -> bool:
        return self.use_kl_loss and not self.disable_kl

    @property
    def kl_estimator(self) -> str:
        """``kl_penalty``, or what stands for null."""
        return self.kl_penalty or ("low_var_kl+" if self.kl_in_loss else "kl")

    def problems(self) -> list[str]:
        found = positive(self, "kl_horizon", "kl_target")
        if self.rollout_is_cap <= 1:
            found.append(f"rollout_is_cap={self.rollout_is_cap}: must be greater than 1; 2.0 is usual")
        found += not_negative(self, "kl_coef", "retain_coef")
        if self.retain_loss == "klr" and self.disable_kl:
            found.append(
                "retain_loss=klr: needs the reference, which disable_kl=true leaves out; set disable_kl=false (with "
                "kl_coef=0 there is no other KL), or retain_loss=gdr"
            )
        if not self.filter_low < self.filter_high:
            found.append(f"filter_low={self.filter_low}: must be below filter_high={self.filter_high}")
        if not self.norm_adv_by_std and self.adv_estimator != "grpo":
            found.append(f"norm_adv_by_std=false: acts on grpo only, not on {self.adv_estimator}; set true")
        return found


@dataclass(frozen=True)
class TrainerConfig:
    total_epochs: int = 15
    """passes over the training rows"""
    max_steps: int | None = None
    """training steps; wins over total_epochs"""
    project_name: str = "easy_r1"
    """first part of the run's folder, and the loggers' project"""
    experiment_name: str = "demo"
    """second part of the run's folder"""
    run_dir: PathText | None = None
    """the run's folder; null: log/<project_name>/<experiment_name>"""
    logger: list[str] = field(default_factory=lambda: ["console", "wandb"])
    """console, file, tensorboard, wandb, mlflow, swanlab; ``file`` (metrics.jsonl) is always on"""
    nnodes: int = 1
    """machines"""
    n_gpus_per_node: int = 8
    """ranks of a machine: its GPUs, or worker processes where there is none"""
    max_try_make_batch: int = 20
    """draws of online filtering for one batch; -1: no limit"""
    critic_warmup: int = 0
    """step from which on the actor is trained, too; the steps before it train the critic alone (EasyR1's meaning)"""
    val_freq: int = -1
    """steps between validations; -1: never"""
    val_before_train: bool = True
    """validate before the first step"""
    val_only: bool = False
    """validate and stop"""
    val_generations_to_log: int = 0
    """dialogues of each validation kept in the run's folder"""
    save_freq: int = -1
    """steps between checkpoints; -1: only the last step"""
    save_limit: int = -1
    """checkpoints kept besides the best; -1: all"""
    save_model_only: bool = False
    """write the Hugging Face folder without the training state (such a run cannot be resumed)"""
    save_checkpoint_path: PathText | None = None
    """where checkpoints go; null: <run_dir>/checkpoints"""
    load_checkpoint_path: PathText | None = None
    """checkpoint (a global_step_N folder) to go on from"""
    find_last_checkpoint: bool = True
    """go on from the last whole checkpoint in save_checkpoint_path"""
    best_key: str = "val/reward/overall"
    """validation metric that the best of the saved checkpoints is chosen by (higher is better)"""
    max_nonfinite_steps: int = 3
    """optimiser steps with a non-finite loss or gradient (each is skipped) that end the run"""
    tolerate_reward_errors: bool = False
    """score a batch 0 and go on when the reward function raises, instead of ending the run"""
    ray_timeline: PathText | None = None
    """file for Ray's timeline (chrome://tracing)"""
    dry_run: bool = False
    """print the resolved configuration, the step arithmetic and every problem, and stop before Ray starts"""

    dry_run_gpu: str | None = None
    """GPU that the dry run's estimate is for, as name:GB (``H100:80``); null: what this machine has"""

    @property
    def world_size(self) -> int:
        return self.nnodes * self.n_gpus_per_node

    @property
    def is_local(self) -> bool:
        """True where the run starts Ray on this machine, which is then all it has; else it joins a cluster."""
        return ray_address(self.nnodes) == LOCAL

    @property
    def run_folder(self) -> Path:
        return Path(self.run_dir) if self.run_dir else Path("log") / self.project_name / self.experiment_name

    @property
    def checkpoint_folder(self) -> Path:
        return Path(self.save_checkpoint_path) if self.save_checkpoint_path else self.run_folder / "checkpoints"

    def problems(self) -> list[str]:
        found = positive(self, "total_epochs", "nnodes", "n_gpus_per_node")
        found += not_negative(self, "critic_warmup", "val_generations_to_log", "max_nonfinite_steps")
        if self.n_gpus_per_node > MOST_PROCESSES:
            found.append(f"n_gpus_per_node={self.n_gpus_per_node}: each is a process; set at most {MOST_PROCESSES}")
        if self.max_steps is not None and self.max_steps < 1:
            found.append(f"max_steps={self.max_steps}: must be at least 1, or null")
        if self.max_try_make_batch == 0:
            found.append("max_try_make_batch=0: must be at least 1, or -1 for no limit")
        if self.project_name == "" or self.experiment_name == "":
            found.append("experiment_name: project_name and experiment_name must not be empty")
        return found


@dataclass(frozen=True)
class PPOConfig:
    data: DataConfig = field(default_factory=DataConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    @property
    def use_reference(self) -> bool:
        return not self.algorithm.disable_kl

    @property
    def use_critic(self) -> bool:
        return self.algorithm.adv_estimator == "gae"

    @property
    def reference_pass(self) -> str | None:
        """The workers' method that prepares a step's KL; None where there is none, or the update takes the exact KL."""
        if self.algorithm.disable_kl or self.exact_kl_in_loss:
            return None
        return "compute_ref_kl" if self.algorithm.kl_estimator == "full" else "compute_ref_log_probs"

    @property
    def exact_kl_in_loss(self) -> bool:
        return self.algorithm.kl_in_loss and self.algorithm.kl_estimator == "full"

    @property
    def reference_in_update(self) -> bool:
        """True where the actor's update runs the reference beside the actor, since it needs its whole distributions."""
        return self.exact_kl_in_loss or self.algorithm.retain_loss == "klr"

    @property
    def mini_batches(self) -> int:
        """Optimiser steps of one pass over a rollout batch."""
        return self.data.rollout_batch_size // self.worker.actor.global_batch_size

    @property
    def exactly_on_policy(self) -> bool:
        """True where the policy that is updated is the one that sampled: its old log-probabilities need no pass."""
        one_update = self.worker.actor.ppo_epochs == 1 and self.mini_batches == 1
        kl_needs_none = self.algorithm.use_kl_loss or self.algorithm.disable_kl
        return one_update and kl_needs_none and not self.algorithm.replay.ratio

    @property
    def data_parallel_size(self) -> int:
        """Shares that a batch is cut into: ranks divided by the ranks that work on the same samples."""
        return self.trainer.world_size // self.worker.actor.ulysses_size

    @property
    def rollout_replicas(self) -> int:
        """Engines: ranks divided by the ranks that share one."""
        return self.trainer.world_size // self.worker.rollout.tensor_parallel_size

    def val_rollout(self, key: str) -> Any:
        """A sampling setting as validation sees it."""
        own = getattr(self.worker.rollout.val_override_config, key)
        return getattr(self.worker.rollout, key) if own is None else own


def migrate(raw: dict[str, Any]) -> None:
    """Move the settings that one file or command line gives under an old name, with a warning that names the new.

    Raises:
        ConfigError: RULE's ``worker.noise_rollout``, which had samples of another model; ours are the policy's own.
    """
    for old, new in RENAMES.items():
        value = _pop(raw, old)
        if value is None:
            continue
        if new is None:
            logger.warning("%s=%s has no effect any more: the reward file's REWARD_TYPE decides.", old, value)
            continue
        if old == "worker.reward.score_function" and ".py" in str(value):
            new = "worker.reward.reward_function"
        logger.warning("%s is now called %s; using %s=%s.", old, new, new, value)
        _put(raw, new, value)
    if noise := _pop(raw, "worker.noise_rollout"):
        raise ConfigError(
            f"worker.noise_rollout={noise}: is now worker.rollout.noise_rollout, the number of a prompt's "
            "worker.rollout.n samples (noise_ratio x n, or 0 where it was not enabled) that see data.extra_prompt"
        )


def _pop(raw: dict[str, Any], dotted: str) -> Any:
    *sections, key = dotted.split(".")
    for section in sections:
        raw = raw.get(section)
        if not isinstance(raw, dict):
            return None
    return raw.pop(key, None)


def _put(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        if raw.setdefault(section, {}) == "":  # nothing is in it
            raw[section] = {}
        raw = raw[section]
        if not isinstance(raw, dict):  # which is a problem of its own
            return
    raw.setdefault(key, value)
