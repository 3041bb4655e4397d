"""Round-to-nearest weight quantisation, written back dequantised: what a 4-bit or 8-bit copy of a model knows.

Unlearning that only hides knowledge in small weight changes is undone when the weights are rounded (arXiv 2410.16454).
The folder written holds ordinary tensors of the model's own dtype with rounded values, so every engine on every device
loads it and measures the rounding itself, not a kernel. Left out: activation quantisation and calibrated schemes.
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm.auto import tqdm

from verl.utils.atomic import write_json

from .derived import derived_folder

logger = logging.getLogger(__name__)

GROUP_SIZE = 128
"""Input channels that share one scale at 4 bits, as GPTQ and AWQ checkpoints have it."""


@dataclass(frozen=True)
class QuantizationRecord:
    """What was done to a folder; kept in it as ``quantization.json``."""

    bits: int
    scheme: str
    matrices: int
    weights_share: float
    """Share of the model's parameters that were rounded; embeddings, norms and the output head stay as they are."""
    relative_error: float
    """Frobenius norm of the change over that of the weights, over all rounded matrices."""


def quantize_weight(weight: torch.Tensor, bits: Literal[4, 8]) -> torch.Tensor:
    """A matrix (out, in) rounded to ``bits`` and back, in float32.

    8 bits: symmetric, one scale per output channel (largest magnitude to 127). 4 bits: asymmetric, one scale and zero
    point per output channel and group of 128 input channels (smallest to 0, largest to 15); the last group may be
    shorter.
    """
    weight = weight.detach().float()
    if bits == 8:
        scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
        return (weight / scale).round() * scale
    return torch.cat([_round_group(group, levels=15) for group in weight.split(GROUP_SIZE, dim=1)], dim=1)


def _round_group(group: torch.Tensor, levels: int) -> torch.Tensor:
    # Zero must stay exactly representable, so the range always includes it.
    low = group.amin(dim=1, keepdim=True).clamp_max(0)
    high = group.amax(dim=1, keepdim=True).clamp_min(0)
    scale = (high - low).clamp_min(torch.finfo(torch.float32).tiny) / levels
    zero = (-low / scale).round()
    return ((group / scale).round() + zero).clamp(0, levels).sub(zero) * scale


def write_quantized(model: str | Path, out: str | Path, bits: Literal[4, 8]) -> Path:
    """Write a copy of ``model`` whose linear layers are rounded to ``bits``; a folder already whole is kept.

    Returns:
        ``out``, a Hugging Face folder with the tokenizer and ``quantization.json``.
    """

    def build(folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from verl.models.hf_folder import copy_side_files, write_model

        loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
        record = quantize_model_(loaded, bits)
        write_model(loaded, loaded.state_dict(), folder)
        copy_side_files(str(model), AutoTokenizer.from_pretrained(model), folder)
        write_json(folder / "quantization.json", asdict(record))

    return derived_folder(model, out, {"quantize_bits": bits}, build)


@torch.no_grad()
def quantize_model_(model: Any, bits: Literal[4, 8]) -> QuantizationRecord:
    """Round the linear layers of a model in place, except its output head.

    Raises:
        ValueError: the model has no linear layer (a layout this code does not know), so nothing would be measured.
    """
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    if not layers:
        raise ValueError("the model has no torch.nn.Linear besides its output head; nothing was quantised")
    changed = total = 0.0
    for layer in tqdm(layers, desc=f"rounding to {bits} bits", unit="matrix"):
        rounded = quantize_weight(layer.weight, bits)
        changed += (rounded - layer.weight.float()).square().sum().item()
        total += layer.weight.float().square().sum().item()
        layer.weight.copy_(rounded.to(layer.weight.dtype))
    share = sum(layer.weight.numel() for layer in layers) / sum(p.numel() for p in model.parameters())
    scheme = "symmetric, per channel" if bits == 8 else f"asymmetric, per channel and group of {GROUP_SIZE}"
    logger.info("rounded %d matrices, %.0f %% of the parameters, to %d bits", len(layers), 100 * share, bits)
    return QuantizationRecord(bits, scheme, len(layers), share, (changed / max(total, 1e-30)) ** 0.5)
