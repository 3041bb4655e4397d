"""Seconds of log-probabilities with entropies, and of their gradient: whole logits at once, and in chunks.

``python3 benchmarks/log_probs.py``, on this machine's CPU, the best of four. "Whole" is torch's cross-entropy over all
logits in fp32, and a second softmax for the entropy.
"""

import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from verl.models.log_probs import log_probs_and_entropy
from verl.settings.cli import show_help

SIZES = ((16384, 1024, torch.float32), (2048, 16384, torch.float32), (512, 128256, torch.bfloat16))


def whole(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        log_p = logits.float().log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
    return -F.cross_entropy(logits.float(), labels, reduction="none"), entropy


def main() -> None:
    show_help(sys.argv[1:], __doc__)
    print(f"{'tokens':>8}{'words':>8}  {'':10}{'forward s':>10}{'backward s':>11}")
    for tokens, words, dtype in SIZES:
        logits = (3 * torch.randn(tokens, words)).to(dtype).requires_grad_()
        labels = torch.randint(words, (tokens,))
        for name, function in (("whole", whole), ("in chunks", log_probs_and_entropy)):
            forward, backward = [], []
            for _ in range(4):
                start = time.perf_counter()
                values, _ = function(logits, labels)
                middle = time.perf_counter()
                values.sum().backward()
                forward.append(middle - start)
                backward.append(time.perf_counter() - middle)
            print(f"{tokens:8}{words:8}  {name:10}{min(forward):10.3f}{min(backward):11.3f}")


if __name__ == "__main__":
    main()
