"""Part of the GPU check: attention over packed rows, and log-probabilities, against plain arithmetic in fp32."""

from itertools import product

import torch

from tests.gpu.attention_cases import CASES, TOLERANCE, errors, path
from tests.gpu.findings import Noted, found
from verl.models.log_probs import log_probs_and_entropy
from verl.utils.vllm_env import has_accelerator


def log_probs_off(dtype: torch.dtype, device: str) -> dict[str, float]:
    """Relative error of the (on CUDA compiled) log-probabilities, entropies and gradients."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(64, 5000, generator=generator)).to(device, dtype).requires_grad_()
    exact = logits.detach().float().requires_grad_()
    labels = torch.randint(5000, (64,), generator=generator).to(device)
    log_probs, entropy = log_probs_and_entropy(logits, labels, compiled=device == "cuda")
    table = exact.log_softmax(-1)
    expected = table.gather(1, labels[:, None])[:, 0]
    log_probs.sum().backward()
    expected.sum().backward()
    pairs = {
        "output": (log_probs, expected),
        "entropy": (entropy, -(table.exp() * table).sum(-1)),
        "gradient": (logits.grad, exact.grad),
    }
    return {name: ((got.float() - right).norm() / right.norm()).item() for name, (got, right) in pairs.items()}


def main() -> None:
    device = "cuda" if has_accelerator() else "cpu"
    for case, shared in product(CASES, (False, True)):
        with Noted(title := f"attention{', shared prompts' * shared}, {case.name}"):
            note(title, errors(case, device, shared=shared), TOLERANCE[case.dtype], path(case, device))
    for dtype, limit in TOLERANCE.items():
        with Noted(title := f"log-probabilities, {str(dtype).removeprefix('torch.')}"):
            note(title, log_probs_off(dtype, device), limit, "compiled" if device == "cuda" else "as it is")


def note(title: str, off: dict[str, float], limit: float, by: str) -> None:
    found(title, all(value <= limit for value in off.values()), by=by, limit=limit, **off)


if __name__ == "__main__":
    main()
