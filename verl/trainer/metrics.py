"""Numbers of a training step: rewards by split, lengths, advantages, times and throughput.

What each means is in docs/architecture.md.
"""

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from ..estimate.flops import ModelShape, training_flops
from ..protocol import DataProto
from ..workers.seqlen_balancing import Tokens


def reward_metrics(
    parts: Sequence[dict[str, float]], splits: Sequence[str], prefix: str = "reward"
) -> dict[str, float]:
    """Mean of every part of the reward, over all samples and over each split (``reward/forget/refusal``).

    A part's mean is over the samples that have it: after a tolerated reward error some have ``overall`` only.
    """
    groups: dict[str, list[dict[str, float]]] = defaultdict(list)
    for part, split in zip(parts, splits, strict=True):
        groups[""].append(part)
        if split:
            groups[f"{split}/"].append(part)
    return {
        f"{prefix}/{split}{name}": float(np.mean([sample[name] for sample in samples if name in sample]))
        for split, samples in groups.items()
        for name in {name: None for sample in samples for name in sample}
    }


def group_metrics(parts: Sequence[dict[str, float]], uids: Sequence[str]) -> dict[str, float]:
    """The share of groups whose rewards are all equal, from which a group's own mean teaches nothing.

    Nothing where every group is a single sample.
    """
    groups: dict[str, set[float]] = defaultdict(set)
    for part, uid in zip(parts, uids, strict=True):
        groups[uid].add(part["overall"])
    if len(groups) == len(uids):
        return {}
    return {"rollout/zero_variance_groups": float(np.mean([len(rewards) == 1 for rewards in groups.values()]))}


def batch_metrics(batch: DataProto, ends: Collection[int]) -> dict[str, float]:
    """Lengths in tokens, the share of responses that were cut off, and the spread of the advantages.

    Args:
        ends: the tokens that end a response. One that closes with another was cut off, wherever.
    """
    mask = batch.batch["response_mask"].bool()
    lengths = mask.sum(dim=1).float()
    last = batch.batch["responses"].gather(1, mask.sum(dim=1, keepdim=True).clamp(min=1) - 1)
    ended = torch.isin(last, torch.tensor(sorted(ends), dtype=last.dtype)).squeeze(1)
    prompts = batch.batch["attention_mask"].sum(dim=1).float() - lengths
    advantages = batch.batch["advantages"][mask]
    return {
        "response_length/mean": lengths.mean().item(),
        "response_length/max": lengths.max().item(),
        "response_length/clip_ratio": (~ended).float().mean().item(),
        "prompt_length/mean": prompts.mean().item(),
        "advantages/mean": advantages.mean().item(),
        "advantages/max": advantages.max().item(),
        "advantages/min": advantages.min().item(),
    }


def update_mfu(
    tokens: Tokens, shape: ModelShape, peak_flops: float, seconds: float, *, epochs: int, adapters: bool
) -> float:
    """Share of the GPUs' bf16 peak that an update reached: PaLM's operations (``estimate.flops``) over its time.

    Args:
        tokens: what the batch's rows cost. A shared prompt counts once.
        peak_flops: operations a second of all ranks together.
        adapters: only LoRA's are trained, so that no gradient of the weights is taken: a third of the operations less.
    """
    operations = training_flops(shape, tokens.computed(), tokens.pairs()) * (2 / 3 if adapters else 1)
    return epochs * operations / seconds / peak_flops


class Timer:
    """Seconds of each named phase of a step, and the tokens that were sampled in it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.generated = 0
        self.started = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    def metrics(self, batch: DataProto, ranks: int) -> dict[str, float]:
        """``timing_s/<phase>``, the step's time, and tokens a second: trained on by a rank, sampled by all."""
        step = time.perf_counter() - self.started
        tokens = int(batch.batch["attention_mask"].sum())
        phases = {f"timing_s/{phase}": seconds for phase, seconds in self.seconds.items()}
        return phases | {
            "perf/time_per_step": step,
            "perf/total_num_tokens": float(tokens),
            "perf/throughput": tokens / step / ranks,
            "perf/gen_tokens_per_s": self.generated / max(self.seconds.get("gen", 0.0), 1e-9),
        }
