"""The training loop. The driver holds the batch; workers generate, score and update (``verl.workers.fsdp_workers``).

A step: collect scored samples (``experience``), take log-probabilities, turn rewards into advantages (``algorithms``),
update. What a checkpoint holds on the ranks is ``verl.models.checkpointing``'s.
"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..algorithms.advantages import compute_advantages, normalize_rewards_by_split
from ..algorithms.kl import AdaptiveKLController, FixedKLController, apply_kl_penalty, compute_kl
from ..algorithms.losses import rollout_mismatch, rollout_weights
from ..algorithms.replay import ReplayBuffer
from ..config.run import PPOConfig
from ..protocol import DataProto
from ..settings.reader import to_dict, to_yaml
from ..single_controller import WorkerGroup, cluster_has_gpus
from ..utils import checkpoint
from ..utils.atomic import write_json, write_text
from ..utils.chat import stop_token_ids
from ..utils.logger import Tracker
from ..utils.provenance import git_revision
from ..workers.fsdp_workers import FSDPWorker
from ..workers.seqlen_balancing import Tokens, balance_dataproto
from .data_loader import PromptLoader, prompt_batch
from .dataset import RLHFDataset
from .dialogues import log_generations
from .experience import ExperienceMaker, TrainingError, add_gold, on_last_token
from .metrics import Timer, batch_metrics, reward_metrics, update_mfu
from .resuming import BEST, contents, differences, resume_folder

logger = logging.getLogger(__name__)

NOT_SENT = {"prompts", "token_level_scores", "token_level_rewards", "reward_baselines", "ref_kl"}
"""batch keys that the driver alone reads"""
ONLY_READ_BY = {"values": "update_critic", "returns": "update_critic", "gold": "update_actor"}
"""the one method of the ranks that reads a key"""


class RayPPOTrainer:
    """Runs one configuration. ``start`` builds the workers, ``fit`` trains, ``close`` ends what was started.

    Args:
        train, val: datasets already read and tokenised; val may be None.
        noisy: all rows of ``train``'s files with ``data.extra_prompt`` in front, under ``noise_rollout``.
        total_steps: training steps of the whole run.
    """

    def __init__(
        self,
        config: PPOConfig,
        tokenizer: Any,
        train: RLHFDataset,
        val: RLHFDataset | None,
        total_steps: int,
        noisy: RLHFDataset | None = None,
    ) -> None:
        self.config, self.tokenizer, self.val, self.noisy = config, tokenizer, val, noisy
        data = config.data
        self.gold = train.gold if config.algorithm.retain_loss != "none" else None
        self.loader = PromptLoader(train, shuffle=data.shuffle, seed=data.seed, forget_share=data.forget_share)
        self.contents = contents(config, train.rows)
        self.total_steps, self.step = total_steps, 0
        algorithm = config.algorithm
        self.kl = FixedKLController(algorithm.kl_coef)
        if algorithm.kl_type == "adaptive":
            self.kl = AdaptiveKLController(algorithm.kl_coef, algorithm.kl_target, algorithm.kl_horizon)
        replay = asdict(algorithm.replay)
        self.replay_cap = replay.pop("cap")
        self.replay = ReplayBuffer(**replay, seed=config.data.seed) if algorithm.replay.ratio else None
        self.best: dict[str, float] = {}
        model = config.worker.actor.model.model_path
        ends = stop_token_ids(tokenizer, model, config.data.chat_template_kwargs)
        self.ends = [] if config.worker.rollout.ignore_eos else ends
        self.workers: WorkerGroup | None = None
        self.tracker: Tracker | None = None

    # ---- the run ----------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start the ranks and the reward process, and go on from a checkpoint where there is one."""
        trainer = self.config.trainer
        with_gpus = cluster_has_gpus(trainer.nnodes)
        logger.info("%d ranks, each on %s", trainer.world_size, "a GPU" if with_gpus else "CPU cores: there is no GPU")
        self.workers = WorkerGroup(
            FSDPWorker,
            self.total_steps,
            nnodes=trainer.nnodes,
            ranks_per_node=trainer.n_gpus_per_node,
            with_gpus=with_gpus,
            config=self.config,
        )
        self.experience = ExperienceMaker(self.config, self.tokenizer, self.workers, self.loader, self.noisy)
        self.workers.all("init_model")
        self.arithmetic = self.workers.all("arithmetic")
        self._resume()
        write_text(trainer.run_folder / "config.yaml", to_yaml(self.config))
        write_text(trainer.run_folder / "git_revision", git_revision() + "\n")
        self.tracker = Tracker(
            ["file", *trainer.logger],
            trainer.run_folder,
            trainer.project_name,
            trainer.experiment_name,
            to_dict(self.config),
            resume_step=self.step or None,
        )

    def close(self) -> None:
        """End the ranks and close the loggers; safe at any moment."""
        if self.tracker:
            self.tracker.close()
        if self.workers:
            self.workers.shutdown()

    def fit(self) -> None:
        """Train until ``total_steps``, validating and saving on the way; DONE is written last."""
        trainer = self.config.trainer
        if self.val and (trainer.val_only or (trainer.val_before_train and self.step == 0)):
            metrics = self.validate()
            self._score_of(metrics)  # a best_key that is none ends the run now, not at the first val_freq
            self.tracker.log(metrics, self.step)
        if trainer.val_only:
            return
        (trainer.run_folder / "DONE").unlink(missing_ok=True)  # of a run that now goes further
        progress = tqdm(total=self.total_steps, initial=self.step, desc="ReBO", unit="step", dynamic_ncols=True)
        with progress as bar, logging_redirect_tqdm():
            while self.step < self.total_steps:
                self.step += 1
                metrics = self.train_step()
                last = self.step == self.total_steps
                saves = last or (trainer.save_freq > 0 and self.step % trainer.save_freq == 0)
                if self.val and trainer.val_freq > 0 and (last or self.step % trainer.val_freq == 0):
                    metrics |= self.validate()
                    if saves:  # the best step must be one that can be loaded
                        self._note_best(metrics)
                if saves:
                    self.save_checkpoint()
                self.tracker.log(metrics, self.step)
                bar.set_postfix_str(progress_line(metrics))
                bar.update()
        write_text(trainer.run_folder / "DONE", f"{self.total_steps}\n")

    def train_step(self) -> dict[str, float]:
        """One step of reinforcement learning; returns its metrics."""
        timer, metrics = Timer(), {}
        batch = self.experience.collect(self.step, timer, metrics)
        if self.gold is not None:
            add_gold(batch, self.gold)
        self._balance(batch)
        if not self.config.exactly_on_policy:
            with timer("old"):
                batch = batch.union(self._on_ranks("compute_log_probs", batch))
        if self.config.reference_pass:
            with timer("ref"):
                batch = batch.union(self._on_ranks(self.config.reference_pass, batch))
        if self.config.use_critic:
            with timer("values"):
                batch = batch.union(self._on_ranks("compute_values", batch))
        with timer("reward"):
            self.experience.add_rewards(batch, self.step, metrics)
        with timer("adv"):
            self._add_advantages(batch, metrics)
        if self.replay is not None:
            with timer("replay"):
                batch = self._with_replay(batch, metrics)
        if self.config.use_critic:
            with timer("update_critic"):
                metrics |= self._shared_out("update_critic", batch)[0]
        if self.step >= self.config.trainer.critic_warmup:
            with timer("update_actor"):
                self._update_actor(batch, metrics)
            metrics |= self._work_done(batch, timer.seconds["update_actor"])
        metrics |= batch_metrics(batch, self.ends)
        return metrics | self.experience.handed_over | timer.metrics(batch, self.workers.world_size)

    def _work_done(self, batch: DataProto, seconds: float) -> dict[str, float]:
        """``perf/computed_tokens``, and ``perf/mfu`` of an update where every rank's device and the model are known."""
        tokens = Tokens.of(batch, share_prompts=self.config.worker.actor.shares_prompts)
        computed = {"perf/computed_tokens": float(tokens.computed())}
        if None in self.arithmetic:
            return computed
        actor, shape = self.config.worker.actor, self.arithmetic[0][0]
        peak = sum(flops for _, flops in self.arithmetic)
        adapters = actor.model.lora.rank > 0
        mfu = update_mfu(tokens, shape, peak, seconds, epochs=actor.ppo_epochs, adapters=adapters)
        return computed | {"perf/mfu": mfu}

    # ---- learning ---------------------------------------------------------------------------------------------------
    def _balance(self, batch: DataProto) -> None:
        """Reorder a batch so that every rank gets as much work."""
        ranks, size = self.config.data_parallel_size, len(batch) // self.config.mini_batches
        balance_dataproto(batch, ranks, size, share_prompts=self.config.worker.actor.shares_prompts)

    def _shared_out(self, method: str, batch: DataProto, **meta_info: Any) -> list[Any]:
        left_out = NOT_SENT | {key for key, reader in ONLY_READ_BY.items() if reader != method}
        data = batch.select([key for key in sorted(batch.batch.keys()) if key not in left_out], [])
        data.meta_info = meta_info
        return self.workers.split(method, data, self.config.worker.actor.ulysses_size)

    def _on_ranks(self, method: str, batch: DataProto) -> DataProto:
        return DataProto.concat(self._shared_out(method, batch))

    def _add_advantages(self, batch: DataProto, metrics: dict[str, float]) -> None:
        """Add ``token_level_rewards``, ``advantages`` and ``returns``, all (B, T)."""
        algorithm, mask_BT = self.config.algorithm, batch.batch["response_mask"]
        rewards_BT = batch.batch["token_level_scores"]
        if algorithm.normalize_by_split:
            scores_B = normalize_rewards_by_split(rewards_BT.sum(-1), batch.non_tensor_batch["split"])
            rewards_BT = on_last_token(scores_B.tolist(), mask_BT)
        if self.config.use_reference and not algorithm.kl_in_loss:
            kl_BT = batch.batch.get("ref_kl", None)
            if kl_BT is None:
                log_probs = (batch.batch["old_log_probs"], batch.batch["ref_log_probs"])
                kl_BT = compute_kl(*log_probs, algorithm.kl_estimator)
            rewards_BT, kl = apply_kl_penalty(rewards_BT, kl_BT, mask_BT, self.kl.kl_coef)
            metrics |= {"actor/reward_kl": kl, "actor/kl_coef": self.kl.kl_coef}
            self.kl.update(kl, len(batch))
        batch.batch["token_level_rewards"] = rewards_BT
        batch.batch["advantages"], batch.batch["returns"] = compute_advantages(
            algorithm.adv_estimator,
            rewards_BT,
            mask_BT,
            uids=batch.non_tensor_batch["uid"],
            values_BT=batch.batch.get("values", None),
            baselines_B=batch.batch.get("reward_baselines", None),
            gamma=algorithm.gamma,
            lam=algorithm.lam,
            normalize_std=algorithm.norm_adv_by_std,
        )

    def _with_replay(self, batch: DataProto, metrics: dict[str, float]) -> DataProto:
        """The batch with replayed groups behind it, and ``loss_weights`` (B, T): 1 for its own rows."""
        groups = len(batch) // self.config.worker.rollout.n
        metrics["replay/collected"] = self.replay.collect(self.step, batch)
        metrics["replay/groups"] = len(self.replay)
        batch.batch["loss_weights"] = torch.ones_like(batch.batch["advantages"])
        replayed = self.replay.sample(self.step, groups)
        if replayed is None:
            return batch
        replayed = replayed.union(self._on_ranks("compute_log_probs", replayed))
        replayed.batch["loss_weights"] = rollout_weights(
            replayed.batch["old_log_probs"],
            replayed.batch["rollout_log_probs"],
            replayed.batch["response_mask"],
            mode="token",
            cap=self.replay_cap,
        )
        if self.gold is not None:  # the prompts of this step bring theirs
            replayed.batch["gold"] = torch.full_like(replayed.batch["responses"], -1)
        metrics["replay/rows"] = len(replayed)
        # The weights above hold the whole correction: to rollout_is and to the mismatch these rows look on-policy.
        replayed.batch["rollout_log_probs"] = replayed.batch["old_log_probs"]
        common = sorted(set(replayed.batch.keys()) & set(batch.batch.keys()))
        both = [part.select(common, ["uid"]) for part in (batch, replayed)]
        joined = DataProto.concat(both)
        self._balance(joined)
        return joined

    def _update_actor(self, batch: DataProto, metrics: dict[str, float]) -> None:
        results = self._shared_out("update_actor", batch, kl_coef=self.kl.kl_coef, step=self.step)
        metrics |= results[0].meta_info["metrics"]
        if self.config.algorithm.kl_in_loss:
            metrics["actor/kl_coef"] = self.kl.kl_coef
            self.kl.update(metrics["actor/kl_loss"], len(batch))
        seen = batch.batch.get("old_log_probs", None)
        if seen is None:
            seen = torch.cat([result.batch["log_probs"] for result in results])
        mismatch = rollout_mismatch(seen, batch.batch["rollout_log_probs"], batch.batch["response_mask"])
        metrics |= {f"rollout/{name}": value for name, value in mismatch.items()}
        if metrics["actor/skipped_steps"] > self.config.trainer.max_nonfinite_steps:
            raise TrainingError(
                f"step {self.step}: {int(metrics['actor/skipped_steps'])} optimiser steps had a non-finite loss or "
                "gradient; lower worker.actor.optim.lr, or go on from an earlier checkpoint"
            )

    # ---- validation -------------------------------------------------------------------------------------------------
    def validate(self) -> dict[str, float]:
        """Mean reward parts over the validation rows, by split; some of the dialogues go to the run's folder."""
        data, config, experience = self.config.data, self.config, self.experience
        size = data.val_batch_size if data.val_batch_size > 0 else len(self.val)
        sampling = {key: config.val_rollout(key) for key in ("n", "temperature", "top_p", "top_k")}
        batches = []
        with experience.sampling(Timer()):
            for start in range(0, len(self.val), size):
                items = [self.val[i] for i in range(start, min(start + size, len(self.val)))]
                samples = experience.generate(prompt_batch(items, "val"), self.step, **sampling)
                batches.append(experience.rewards.start(experience.reward_inputs(samples)))
        scores = [score for batch in batches for score in experience.wait_for(batch, self.step)]
        dialogues = [one for batch in batches for one in batch.inputs]
        if wanted := config.trainer.val_generations_to_log:
            stride = max(1, len(dialogues) // wanted)
            shown = [{**one, "reward": score} for one, score in zip(dialogues, scores, strict=True)]
            log_generations(config.trainer.run_folder, self.step, shown[::stride][:wanted])
        metrics = reward_metrics(scores, [one["split"] for one in dialogues], prefix="val/reward")
        return metrics | experience.handed_over

    def _note_best(self, metrics: dict[str, float]) -> None:
        """Remember the saved step whose validation is best; among equals the latest, which has learnt more."""
        score = self._score_of(metrics)
        if score >= self.best.get("best_val_reward_score", float("-inf")):
            self.best = {"best_global_step": self.step, "best_val_reward_score": score}

    def _score_of(self, metrics: dict[str, float]) -> float:
        """What ``trainer.best_key`` says of a validation."""
        key = self.config.trainer.best_key
        if key not in metrics:
            known = ", ".join(sorted(name for name in metrics if name.startswith("val/")))
            raise TrainingError(f"trainer.best_key={key}: validation gave no such number; it gave {known}")
        return metrics[key]

    # ---- checkpoints ------------------------------------------------------------------------------------------------
    def save_checkpoint(self) -> None:
        """Write ``global_step_N`` beside and rename it, then the tracker; then thin out old ones."""
        trainer = self.config.trainer
        folder = trainer.checkpoint_folder / f"global_step_{self.step}"
        with checkpoint.staging_dir(folder) as partial:
            self.workers.all("save_checkpoint", str(partial.absolute()), trainer.save_model_only)
            self._save_state(partial)
        tracker = {"last_global_step": self.step, "last_actor_path": str((folder / "actor").absolute()), **self.best}
        checkpoint.write_tracker(trainer.checkpoint_folder, tracker)
        best = int(self.best.get("best_global_step", self.step))
        checkpoint.remove_obsolete_ckpt(trainer.checkpoint_folder, self.step, best, trainer.save_limit)

    def _save_state(self, folder: Path) -> None:
        state = {
            "step": self.step,
            "loader": self.loader.state_dict(),
            "kl": self.kl.state_dict(),
            "best": self.best,
            "reward_errors": self.experience.reward_errors,
            "config": to_dict(self.config),
            "contents": self.contents,
        }
        if self.replay is not None:
            stored = self.replay.state_dict()
            state["replay"] = stored["json"]
            tensors = {key: tensor.contiguous() for key, tensor in stored["tensors"].items()}
            save_file(tensors, folder / checkpoint.REPLAY_STATE)
        write_json(folder / checkpoint.TRAINER_STATE, state)

    def _resume(self) -> None:
        """Take over a checkpoint where there is one. What the configuration says now holds; what it may not change
        has been refused before (``resuming``)."""
        folder = resume_folder(self.config.trainer)
        if folder is None:
            return
        state = checkpoint.read_state(folder)
        changed = differences(self.config, state)
        self.workers.all("load_checkpoint", str(folder.absolute()))
        self.step, self.experience.reward_errors = state["step"], state["reward_errors"]
        ours = folder.parent.resolve() == self.config.trainer.checkpoint_folder.resolve()
        if ours and not any(key.startswith(BEST) for key in changed):
            self.best = state["best"]  # another run's best step has no folder here, another measure's is no best
        self.loader.load_state_dict(state["loader"])
        if "algorithm.kl_coef" not in changed:
            self.kl.load_state_dict(state["kl"])
        if self.replay is not None and "replay" in state:
            tensors = load_file(folder / checkpoint.REPLAY_STATE)
            self.replay.load_state_dict({"json": state["replay"], "tensors": tensors})
        logger.info("going on from %s after step %d", folder, self.step)
        if self.step >= self.total_steps:
            logger.info("the run has its %d steps; there is nothing left to train", self.total_steps)


def progress_line(metrics: dict[str, float]) -> str:
    """What the progress bar shows: rewards and refusal rates."""
    shown = {
        "reward": "reward/overall",
        "forget refused": "reward/forget/refusal",
        "boundary refused": "reward/boundary/refusal",
        "kl": "actor/kl_loss",
    }
    return " ".join(f"{label} {metrics[key]:.3f}" for label, key in shown.items() if key in metrics)
