"""The training loop of Rejection Steering: seeded batches, globally weighted losses, a model folder an epoch.

A step is the same whatever the micro-batch size and the number of ranks: losses come as sums, and are divided by the
weight of the whole batch, which every rank knows. There is no resuming: a run takes minutes, and an unfinished one
starts again.
"""

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from RS import objectives
from RS.config import RSConfig
from RS.models.build import build, build_training, model_config
from RS.utils.batches import Budget, Sequence, collate, endless, epoch_batches, my_micro_batches
from RS.utils.data import Example
from verl.models.build import as_reference
from verl.models.checkpointing import ADAPTER, save_adapter, save_hf_folder
from verl.models.forward import ResponseOutputs, forward_responses
from verl.models.fsdp import clip_grad_norm
from verl.models.log_probs import log_probs_and_entropy
from verl.settings.reader import to_dict
from verl.utils.checkpoint import PARTIAL, staging_dir, write_errors
from verl.utils.logger import Tracker

logger = logging.getLogger(__name__)


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
        self.config, self.tokenizer, self.device = config, tokenizer, device
        self.forget, self.retain = forget, retain
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.budget = Budget.of(config.micro_batch_size, device)
        self.steps = config.num_train_epochs * -(-len(forget) // config.batch_size)
        self.module = build(config, device, trainable=True)
        self.parameters = [param for param in self.module.parameters() if param.requires_grad]
        self.optimizer, self.scheduler = build_training(self.module, config, self.steps)
        self.reference = None
        if config.retain_loss == "klr":
            self.reference = self.module if config.lora_rank else build(config, device, trainable=False)
        self.reference_log_probs: list[torch.Tensor] = []
        self.skipped = 0

    def fit(self) -> None:
        """Train all epochs and save the model after each.

        Raises:
            TrainingError: too many steps had a non-finite loss or gradient.
            OSError: a model could not be written.
        """
        if self.config.needs_reference:
            self.reference_log_probs = self.score_all()
        retain_stream = endless(len(self.retain), self.config.seed) if self.retain else None
        loggers = ["file"] if self.rank == 0 else []
        tracker = Tracker(loggers, self.config.output_dir, "RS", self.config.objective, to_dict(self.config))
        bar = tqdm(total=self.steps, desc=f"RS {self.config.objective}", unit="step", disable=self.rank != 0)
        step = 0
        for epoch in range(1, self.config.num_train_epochs + 1):
            for batch in epoch_batches(len(self.forget), self.config.batch_size, self.config.seed, epoch):
                retain_batch = [next(retain_stream) for _ in batch] if retain_stream else []
                metrics = self.step(batch, retain_batch)
                step += 1
                bar.update()
                bar.set_postfix(epoch=epoch, loss=f"{metrics['loss']:.4f}", grad=f"{metrics['grad_norm']:.3g}")
                tracker.log({"epoch": epoch, **metrics}, step)
            self.save(Path(self.config.output_dir) / f"epoch_{epoch}")
        bar.close()
        tracker.close()

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
            "seconds": time.perf_counter() - start,
        }

    def _accumulate(
        self, batch: list[int], examples: list[Example], loss_sum: Callable[[list[int]], torch.Tensor], scale: float
    ) -> torch.Tensor:
        """Add the gradient of ``scale`` times this rank's loss sum; returns that product."""
        total = torch.zeros((), device=self.device)
        for micro in my_micro_batches(batch, examples, self.rank, self.world, self.budget):
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
        config, examples = self.config, [self.forget[index] for index in micro]
        if config.objective == "dpo":
            chosen_bT, rejected_bT = self._of_pairs(examples)
            chosen_b, rejected_b = (reference[micro] for reference in self.reference_log_probs)
            return objectives.dpo(chosen_bT, rejected_bT, chosen_b, rejected_b, config.beta)
        log_probs_bT = self._log_probs(_sequences(examples))
        if config.objective == "npo":
            return objectives.npo(log_probs_bT, self.reference_log_probs[0][micro], config.beta)
        if config.objective == "simnpo":
            lengths_b = torch.tensor([len(example.response) for example in examples], device=self.device)
            return objectives.simnpo(log_probs_bT, lengths_b, config.beta, config.gamma)
        return {"rejection": objectives.rejection, "ga": objectives.gradient_ascent}[config.objective](log_probs_bT)

    def _retain_loss(self, micro: list[int]) -> torch.Tensor:
        sequences = _sequences([self.retain[index] for index in micro])
        if self.config.retain_loss == "gdr":
            return objectives.rejection(self._log_probs(sequences))
        batch = collate(sequences, self.tokenizer.pad_token_id, self.device)
        with as_reference(self.reference):
            reference_NV = self._forward(self.reference, batch).logits_nV
        return objectives.kl_to_reference(self._forward(self.module, batch).logits_nV, reference_NV)

    def _of_pairs(self, examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """(b, T) of the chosen and of the rejected responses, computed side by side behind their common prompts."""
        pairs = zip(_sequences(examples), _sequences(examples, rejected=True), strict=True)
        log_probs_2bT = self._log_probs([sequence for pair in pairs for sequence in pair])
        return log_probs_2bT[0::2], log_probs_2bT[1::2]

    def _log_probs(self, sequences: list[Sequence]) -> torch.Tensor:
        """(b, T) log-probability of every response token, zeros in the padding."""
        batch = collate(sequences, self.tokenizer.pad_token_id, self.device)
        outputs = self._forward(self.module, batch)
        return outputs.scatter(log_probs_and_entropy(outputs.logits_nV, outputs.pick(batch["responses"]))[0])

    def _forward(self, module: torch.nn.Module, batch: dict[str, torch.Tensor]) -> ResponseOutputs:
        return forward_responses(module, batch, padding_free=self.config.padding_free)

    @torch.no_grad()
    def score_all(self) -> list[torch.Tensor]:
        """Log-likelihoods (N,) of all responses, and for dpo of all rejected ones, under the model as it is now."""
        self.module.eval()
        everything = list(range(len(self.forget)))
        scores = torch.zeros(1 + (self.config.objective == "dpo"), len(everything), device=self.device)
        micros = my_micro_batches(everything, self.forget, self.rank, self.world, self.budget)
        for micro in tqdm(micros, desc="reference", unit="batch", disable=self.rank != 0):
            examples = [self.forget[index] for index in micro or [0]]
            parts = self._of_pairs(examples) if len(scores) == 2 else [self._log_probs(_sequences(examples))]
            if micro:
                scores[:, micro] = torch.stack([part.sum(dim=1) for part in parts])
        dist.all_reduce(scores)
        self.module.train()
        return list(scores)

    def save(self, folder: Path) -> None:
        """Write the model (adapters merged, and in a PEFT folder beside) as a Hugging Face folder, or nothing."""
        beside = nullcontext(folder.with_name(folder.name + PARTIAL))
        with write_errors(folder), staging_dir(folder) if self.rank == 0 else beside as partial:
            save_hf_folder(self.module, partial, self.tokenizer, model_config(self.config))
            save_adapter(self.module, partial / ADAPTER)
        dist.barrier()


def _sequences(examples: list[Example], *, rejected: bool = False) -> list[Sequence]:
    """Prompts with their responses, or with their rejected ones."""
    return [(example.prompt, example.rejected if rejected else example.response) for example in examples]
