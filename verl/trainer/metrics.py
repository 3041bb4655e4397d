"""Numbers of a training step: rewards by split, lengths, advantages, times and throughput."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ..protocol import DataProto


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


def batch_metrics(batch: DataProto, max_response_length: int) -> dict[str, float]:
    """Lengths in tokens, the share of responses that were cut off, and the spread of the advantages."""
    mask = batch.batch["response_mask"].bool()
    lengths = mask.sum(dim=1).float()
    prompts = batch.batch["attention_mask"].sum(dim=1).float() - lengths
    advantages = batch.batch["advantages"][mask]
    return {
        "response_length/mean": lengths.mean().item(),
        "response_length/max": lengths.max().item(),
        "response_length/clip_ratio": (lengths >= max_response_length).float().mean().item(),
        "prompt_length/mean": prompts.mean().item(),
        "advantages/mean": advantages.mean().item(),
        "advantages/max": advantages.max().item(),
        "advantages/min": advantages.min().item(),
    }


class Timer:
    """Seconds of each named phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.started = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    def metrics(self, batch: DataProto, ranks: int) -> dict[str, float]:
        """``timing_s/<phase>``, the step's time, and tokens a second."""
        step = time.perf_counter() - self.started
        tokens = int(batch.batch["attention_mask"].sum())
        responses = int(batch.batch["response_mask"].sum())
        phases = {f"timing_s/{phase}": seconds for phase, seconds in self.seconds.items()}
        return phases | {
            "perf/time_per_step": step,
            "perf/total_num_tokens": float(tokens),
            "perf/throughput": tokens / step / ranks,
            "perf/gen_tokens_per_s": responses / max(self.seconds.get("gen", 0.0), 1e-9),
        }
