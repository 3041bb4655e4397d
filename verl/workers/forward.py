"""One forward pass over a micro-batch, packed or padded, giving what the model says at every response token.

Shapes: b samples, L = S + T columns (prompt padded left, response padded right), N response tokens, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tensordict import TensorDict

from ..utils.attention import Packing


@dataclass(frozen=True)
class ResponseOutputs:
    """The model's outputs at the N response tokens, in row order, and where they belong."""

    logits_NV: torch.Tensor
    """logits that predict each response token; (N, 1) values from a value model"""
    mask_bT: torch.Tensor
    """(b, T) bool with N true entries"""

    def scatter(self, values_N: torch.Tensor) -> torch.Tensor:
        """(N,) values as (b, T), zeros elsewhere."""
        spread = values_N.new_zeros(self.mask_bT.shape)
        return spread.masked_scatter(self.mask_bT, values_N)


def forward_responses(module: torch.nn.Module, batch: TensorDict, *, padding_free: bool) -> ResponseOutputs:
    """Run the model over whole samples and keep its outputs at the response tokens.

    Args:
        batch: ``input_ids``, ``attention_mask``, ``position_ids`` (b, L) and ``response_mask`` (b, T).
    """
    seen = batch["attention_mask"].bool()
    mask_bT = batch["response_mask"].bool()
    width = seen.shape[1]
    predicts = torch.zeros_like(seen)  # a token is predicted one column before its own
    predicts[:, width - mask_bT.shape[1] - 1 : width - 1] = mask_bT
    run = _forward_packed if padding_free else _forward_padded
    return ResponseOutputs(run(module, batch, seen, predicts), mask_bT)


def _forward_packed(
    module: torch.nn.Module, batch: TensorDict, seen: torch.Tensor, predicts: torch.Tensor
) -> torch.Tensor:
    packing = Packing.of(seen.sum(dim=1))
    keep = predicts[seen].nonzero().squeeze(1)
    inputs = {"input_ids": batch["input_ids"][seen].unsqueeze(0), "position_ids": packing.columns.unsqueeze(0)}
    if _has_value_head(module):
        return module(**inputs, packing=packing, use_cache=False).logits[0][keep]
    return module(**inputs, packing=packing, logits_to_keep=keep, use_cache=False).logits[0]


def _forward_padded(
    module: torch.nn.Module, batch: TensorDict, seen: torch.Tensor, predicts: torch.Tensor
) -> torch.Tensor:
    used = seen.any(dim=0).nonzero()
    columns = slice(int(used[0]), int(used[-1]) + 1)
    inputs = {key: batch[key][:, columns] for key in ("input_ids", "attention_mask", "position_ids")}
    return module(**inputs, use_cache=False).logits[predicts[:, columns]]


def _has_value_head(module: torch.nn.Module) -> bool:
    return hasattr(module, "score")


def log_probs_of(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """(N,) log-probability of each label, in fp32."""
    return -F.cross_entropy(logits_NV.float(), labels_N, reduction="none")
