"""One forward pass over a micro-batch, packed or padded, giving what the model says at every response token.

Shapes: b samples, L = S + T columns (prompt padded left, response padded right), N response tokens, n of them on this
rank (N without sequence parallelism), V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tensordict import TensorDict

from .attention import Packing
from .ulysses import SequenceParallel, SharedRow


@dataclass(frozen=True)
class ResponseOutputs:
    """The model's outputs at the response tokens, in row order, and where they belong."""

    logits_nV: torch.Tensor
    """logits that predict each response token; (n, 1) values from a value model"""
    mask_bT: torch.Tensor
    """(b, T) bool with N true entries"""
    row: SharedRow | None = None
    """under sequence parallelism"""

    def pick(self, values_bT: torch.Tensor) -> torch.Tensor:
        """(n,) values of (b, T) that belong to the logits."""
        values_N = values_bT[self.mask_bT]
        return values_N if self.row is None else values_N[self.row.here]

    def scatter(self, values_n: torch.Tensor) -> torch.Tensor:
        """This rank's (n,) values, and under sequence parallelism the other ranks', as (b, T), zeros elsewhere."""
        values_N = values_n if self.row is None else self.row.whole(values_n)
        spread = values_N.new_zeros(self.mask_bT.shape)
        return spread.masked_scatter(self.mask_bT, values_N)


def forward_responses(
    module: torch.nn.Module, batch: TensorDict, *, padding_free: bool, parallel: SequenceParallel | None = None
) -> ResponseOutputs:
    """Run the model over whole samples and keep its outputs at the response tokens.

    Args:
        batch: ``input_ids``, ``attention_mask`` (b, L) and ``response_mask`` (b, T).
        parallel: the ranks that have the same batch and share the work on it; needs ``padding_free``.
    """
    seen = batch["attention_mask"].bool()
    mask_bT = batch["response_mask"].bool()
    width = seen.shape[1]
    predicts = torch.zeros_like(seen)  # a token is predicted one column before its own
    predicts[:, width - mask_bT.shape[1] - 1 : width - 1] = mask_bT
    if padding_free:
        logits_nV, row = _forward_packed(module, batch, seen, predicts, parallel)
        return ResponseOutputs(logits_nV, mask_bT, row)
    return ResponseOutputs(_forward_padded(module, batch, seen, predicts), mask_bT)


def _forward_packed(
    module: torch.nn.Module,
    batch: TensorDict,
    seen: torch.Tensor,
    predicts: torch.Tensor,
    parallel: SequenceParallel | None,
) -> tuple[torch.Tensor, SharedRow | None]:
    lengths, ids = seen.sum(dim=1), batch["input_ids"][seen]
    keep, row = predicts[seen].nonzero().squeeze(1), None
    if parallel is not None:
        missing = parallel.missing(len(ids))
        lengths = torch.cat([lengths, lengths.new_tensor([missing] if missing else [])])  # a sequence of its own
        ids = F.pad(ids, (0, missing))
        row = SharedRow(parallel, keep, len(ids))
        keep = row.places_here
    packing = Packing.of(lengths, parallel)
    columns = packing.columns
    if parallel is not None:
        ids, columns = parallel.mine(ids), parallel.mine(columns)
    inputs = {"input_ids": ids.unsqueeze(0), "position_ids": columns.unsqueeze(0)}
    if _has_value_head(module):
        return module(**inputs, packing=packing, use_cache=False).logits[0][keep], row
    return module(**inputs, packing=packing, logits_to_keep=keep, use_cache=False).logits[0], row


def _forward_padded(
    module: torch.nn.Module, batch: TensorDict, seen: torch.Tensor, predicts: torch.Tensor
) -> torch.Tensor:
    # All padding goes to the right, where no real token can see it: neither attention nor a layer that carries a state
    # needs a mask then, and positions count from zero.
    order = seen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(seen.sum(dim=1).max())]
    # A pad token may have been added to the tokenizer alone, and have no embedding.
    ids = batch["input_ids"].masked_fill(~seen, 0)
    ids, predicts = ids.gather(1, order), predicts.gather(1, order)
    return module(input_ids=ids, use_cache=False).logits[predicts]


def _has_value_head(module: torch.nn.Module) -> bool:
    return hasattr(module, "score")
