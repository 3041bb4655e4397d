"""The training loop of Rejection Steering: seeded batches, globally weighted losses, a model folder an epoch.

A step is the same whatever the micro-batch size and the number of ranks: losses come as sums, and are divided by the
weight of the whole batch, which every rank knows. Nothing random is carried from one step to the next, so that a run
that was killed goes on as if it had not been (``RS.resuming``).
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from RS import objectives
from RS.config import RSConfig
from RS.losses import Losses
from RS.models.build import (
    build,
    build_reinforced,
    build_training,
    fsdp_config,
    model_config,
    steered_layer,
    train_layers,
)
from RS.models.task_vector import TaskVector
from RS.resuming import STATE, STATES, digest
from RS.utils.batches import SEED_STRIDE, Budget, endless, epoch_batches, my_micro_batches
from RS.utils.data import Example
from verl.models.checkpointing import (
    ADAPTER,
    load_training_state,
    save_adapter,
    save_hf_folder,
    save_training_state,
)
from verl.models.fsdp import clip_grad_norm, held
from verl.settings.reader import to_dict
from verl.utils.atomic import write_json
from verl.utils.checkpoint import (
    PARTIAL,
    TRAINER_STATE,
    read_state,
    remove_obsolete_ckpt,
    staging_dir,
    write_errors,
)
from verl.utils.logger import Tracker
from verl.utils.memory import MemoryMeter

logger = logging.getLogger(__name__)

STATE_S = 60.0
"""seconds of an epoch after which a training state is worth writing"""
STATE_SHARE = 20
"""how many times longer than it takes to write one training goes on before the next"""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


class RSTrainer:
    """Owns the model, its optimiser and the data of a run; needs an initialised process group.

    Args:
        retain: rows of the retain side, or None without a retain loss.
    """

    def __init__(
        self,
        config: RSConfig,
        tokenizer: Any,
        forget: list[Example],
        retain: list[Example] | None,
        device: torch.device,
    ) -> None:
        torch.manual_seed(config.seed)
        self.memory = MemoryMeter(on_gpu=device.type == "cuda")
        self.memory.start(0)
        self.config, self.tokenizer, self.device = config, tokenizer, device
        self.forget, self.retain = forget, retain
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.budget = Budget.of(config.micro_batch_size, device)
        self.steps = config.num_train_epochs * -(-len(forget) // config.batch_size)
        layer = steered_layer(config)
        self.module = build(config, device, trainable=True)
        if config.objective == "rmu":
            train_layers(self.module, layer - 2, layer)
        self.parameters = [param for param in self.module.parameters() if param.requires_grad]
        self.optimizer, self.scheduler = build_training(self.module, config, self.steps)
        self.losses = Losses(config, self.module, tokenizer.pad_token_id, device, layer)
        if config.keeps_original:
            self.losses.original = self.module if config.lora_rank else build(config, device, trainable=False)
        if config.objective == "whp":
            self.losses.reinforced = build_reinforced(config, device)
        is_negated = config.objective == "task_vector"
        self.as_saved = TaskVector(self.module, config.own("alpha")).subtracted if is_negated else nullcontext
        self.reference_log_probs: list[torch.Tensor] = []
        self.skipped = 0
        self.state_written, self.state_took = time.perf_counter(), 0.0

    def fit(self, state: Path | None = None) -> None:
        """Train all epochs and save the model after each.

        Args:
            state: what ``save_state`` wrote, to go on from.

        Raises:
            TrainingError: too many steps had a non-finite loss or gradient.
            OSError: a model or a training state could not be written.
        """
        if self.config.needs_reference:
            self.reference_log_probs = self.score_all()  # by the original weights, which a state replaces
        done = 0 if state is None else self._go_on_from(state)
        loggers = ["file"] if self.rank == 0 else []
        name, settings = self.config.objective, to_dict(self.config)
        tracker = Tracker(loggers, self.config.output_dir, "RS", name, settings, resume_step=done)
        bar = tqdm(total=self.steps, initial=done, desc=f"RS {name}", unit="step", disable=self.rank != 0)
        with bar, closing(tracker):
            for step, (epoch, batch, retain_batch, ends) in islice(enumerate(self._batches(), 1), done, None):
                torch.manual_seed(self.config.seed * SEED_STRIDE + step)  # for dropout, if the model has any
                metrics = self.step(batch, retain_batch)
                bar.update()
                bar.set_postfix(epoch=epoch, loss=f"{metrics['loss']:.4f}", grad=f"{metrics['grad_norm']:.3g}")
                tracker.log({"epoch": epoch, **metrics}, step)
                if ends:
                    self.save(Path(self.config.output_dir) / f"epoch_{epoch}")
                if step < self.steps and self._state_is_due(ends):
                    self.save_state(step)

    def _batches(self) -> Iterator[tuple[int, list[int], list[int], bool]]:
        """Of every step of the run: its epoch, its examples of both sides, and whether the epoch ends with it."""
        retain_stream = endless(len(self.retain), self.config.seed) if self.retain else None
        for epoch in range(1, self.config.num_train_epochs + 1):
            batches = epoch_batches(len(self.forget), self.config.batch_size, self.config.seed, epoch)
            for number, batch in enumerate(batches, 1):
                retain_batch = [next(retain_stream) for _ in batch] if retain_stream else []
                yield epoch, batch, retain_batch, number == len(batches)

    def step(self, batch: list[int], retain_batch: list[int]) -> dict[str, float]:
        """One optimiser step on these examples of the forget and the retain side; metrics, the same on every rank."""
        start = time.perf_counter()
        weight = objectives.weight(self.config.objective, [len(self.forget[index].response) for index in batch])
        losses = torch.zeros(2, device=self.device)
        losses[0] = self._accumulate(batch, self.forget, self._forget_loss, 1 / weight)
        if retain_batch:
            retain_weight = sum(len(self.retain[index].response) for index in retain_batch)
            scale = self.config.retain_weight / retain_weight
            losses[1] = self._accumulate(retain_batch, self.retain, self._retain_loss, scale)
        dist.all_reduce(losses)
        peak = torch.tensor(self.memory.peak_gib(), device=self.device)
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
        learning_rate = self.scheduler.get_last_lr()[0]
        grad_norm = clip_grad_norm(self.parameters, self.config.max_grad_norm)
        loss, forget_loss, retain_loss = torch.cat([losses.sum(dim=0, keepdim=True), losses]).tolist()
        self._update(loss, grad_norm)
        metrics = {"loss": loss, "forget_loss": forget_loss}
        if retain_batch:
            metrics["retain_loss"] = retain_loss
        return metrics | {
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "skipped_steps": self.skipped,
            "perf/peak_memory_gib": peak.item(),
            "seconds": time.perf_counter() - start,
        }

    def _accumulate(
        self, batch: list[int], examples: list[Example], loss_sum: Callable[[list[int]], torch.Tensor], scale: float
    ) -> torch.Tensor:
        """Add the gradient of ``scale`` times this rank's loss sum; returns that product."""
        total = torch.zeros((), device=self.device)
        micros = my_micro_batches(batch, examples, self.rank, self.world, self.budget)
        for micro in held(self.module, fsdp_config(self.config), micros):
            # A rank without an example of its own must still take part in the collectives of the passes.
            loss = loss_sum(micro or batch[:1]) * (scale if micro else 0.0)
            (loss * self.world).backward()  # FSDP averages over ranks; the sums of all ranks must be added
            total += loss.detach()
        return total

    def _update(self, loss: float, grad_norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.optimizer.step()
        else:
            self.skipped += 1
            logger.error("optimiser step skipped: loss %s, gradient norm %s", loss, grad_norm)
        self.scheduler.step()
        self.optimizer.zero_grad()
        if self.skipped > self.config.max_skipped_steps:
            raise TrainingError(
                f"{self.skipped} steps had a non-finite loss or gradient (max_skipped_steps="
                f"{self.config.max_skipped_steps}); lower learning_rate={self.config.learning_rate}"
            )

    def _forget_loss(self, micro: list[int]) -> torch.Tensor:
        scores = [scores_N[micro] for scores_N in self.reference_log_probs]
        return self.losses.forget([self.forget[index] for index in micro], scores)

    def _retain_loss(self, micro: list[int]) -> torch.Tensor:
        return self.losses.retain([self.retain[index] for index in micro])

    @torch.no_grad()
    def score_all(self) -> list[torch.Tensor]:
        """Log-likelihoods (N,) of all responses, and of all rejected ones of pairs, under the model as it is now."""
        self.module.eval()
        everything = list(range(len(self.forget)))
        scores = torch.zeros(1 + self.config.has_pairs, len(everything), device=self.device)
        micros = my_micro_batches(everything, self.forget, self.rank, self.world, self.budget)
        for micro in tqdm(micros, desc="reference", unit="batch", disable=self.rank != 0):
            parts = self.losses.sequence_scores([self.forget[index] for index in micro or [0]])
            if micro:
                scores[:, micro] = torch.stack(parts)
        dist.all_reduce(scores)
        self.module.train()
        return list(scores)

    def save(self, folder: Path) -> None:
        """Write the model (adapters merged, and in a PEFT folder beside) as a Hugging Face folder, or nothing."""
        with self._filled(folder) as partial, self.as_saved():
            save_hf_folder(self.module, partial, self.tokenizer, model_config(self.config))
            save_adapter(self.module, partial / ADAPTER)

    def save_state(self, step: int) -> None:
        """Write what a killed run goes on from behind ``step``; the state before goes when this one is whole."""
        begun = time.perf_counter()
        states = Path(self.config.output_dir) / STATES
        with self._filled(states / STATE.format(step)) as partial:
            save_training_state(self, partial / "dcp")
            if self.rank == 0:
                entries = {"step": step, "examples": digest(self.forget, self.retain)}
                write_json(partial / TRAINER_STATE, entries)
        if self.rank == 0:
            remove_obsolete_ckpt(states, step, step, save_limit=1, directory_format=STATE)
        self.state_written = time.perf_counter()
        self.state_took = self.state_written - begun

    def _state_is_due(self, epoch_ends: bool) -> bool:
        """At an epoch's end, and within one where a kill would cost much more than a state does. Rank 0's clock counts.

        When a state is written changes no result. That of an optimiser without moments is none: torch would make them.
        """
        longest = max(STATE_S, STATE_SHARE * self.state_took)
        due = torch.tensor(epoch_ends or time.perf_counter() - self.state_written > longest, device=self.device)
        dist.broadcast(due, 0)
        return bool(due) and bool(self.optimizer.state)

    def _go_on_from(self, state: Path) -> int:
        """Take over a training state; returns the steps that were made."""
        load_training_state(self, state / "dcp")
        step = read_state(state)["step"]
        logger.info("going on from %s after step %d of %d", state, step, self.steps)
        return step

    @contextmanager
    def _filled(self, folder: Path) -> Iterator[Path]:
        """A folder for all ranks to fill, which then takes its name. A collective."""
        beside = nullcontext(folder.with_name(folder.name + PARTIAL))
        with write_errors(folder), staging_dir(folder) if self.rank == 0 else beside as partial:
            dist.barrier()  # rank 0 has made it
            yield partial
        dist.barrier()
