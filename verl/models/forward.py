"""One forward pass over a micro-batch, packed or padded, giving what the model says at every response token.

Packed samples of one prompt share it (``verl.models.attention``): it is computed once, what it says at its last token
is said to every response, and all their gradients meet in it. A response's last token predicts nothing that is asked
for, so a packed row leaves it out.

Shapes: b samples, L = S + T columns (prompt padded left, response padded right), N response tokens, n of them on this
rank (N without sequence parallelism), V vocabulary, D hidden features.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict

from .attention import Packing, SharedPacking
from .prompts import same_prompts
from .ulysses import SequenceParallel, SharedRow


@dataclass(frozen=True)
class ResponseOutputs:
    """The model's outputs at the response tokens, in row order, and where they belong."""

    logits_nV: torch.Tensor
    """logits that predict each response token; (n, 1) values from a value model; (n, D) hidden states of a layer"""
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
    module: torch.nn.Module,
    batch: TensorDict,
    *,
    padding_free: bool,
    share_prompts: bool = True,
    parallel: SequenceParallel | None = None,
    layer: int | None = None,
) -> ResponseOutputs:
    """Run the model over whole samples and keep its outputs at the response tokens.

    Args:
        batch: ``input_ids``, ``attention_mask`` (b, L) and ``response_mask`` (b, T), true where outputs are wanted.
            Every prompt, what lies before the last T columns, has a token.
        share_prompts: compute a prompt once for all its samples; without ``padding_free`` there is no sharing.
        parallel: the ranks that have the same batch and share the work on it; needs ``padding_free``.
        layer: the outputs are what this layer, from 0, puts out where each response token is predicted.
    """
    mask_bT = batch["response_mask"].bool()
    if padding_free:
        logits_nV, row = _forward_packed(module, batch, share_prompts, parallel, layer)
        return ResponseOutputs(logits_nV, mask_bT, row)
    return ResponseOutputs(_forward_padded(module, batch, layer), mask_bT)


def _predicting(batch: TensorDict) -> torch.Tensor:
    """(b, L) bool: where a response token is predicted, one column before its own."""
    width = batch["response_mask"].shape[1]
    predicts = torch.zeros_like(batch["attention_mask"], dtype=torch.bool)
    predicts[:, -width - 1 : -1] = batch["response_mask"].bool()
    return predicts


def _needed(batch: TensorDict) -> torch.Tensor:
    """(b, L) bool: all tokens but those behind the last one that predicts; a response keeps its first one."""
    width, seen = batch["response_mask"].shape[1], batch["attention_mask"].bool()
    predicts_later = _predicting(batch).flip(1).cumsum(1).flip(1) > 0
    predicts_later[:, : -width + 1 or None] = True
    return seen & predicts_later


def _forward_packed(
    module: torch.nn.Module,
    batch: TensorDict,
    share_prompts: bool,
    parallel: SequenceParallel | None,
    layer: int | None,
) -> tuple[torch.Tensor, SharedRow | None]:
    prompt_b = same_prompts(batch) if share_prompts else None
    if prompt_b is not None and int(prompt_b.max()) + 1 < len(prompt_b):
        ids, keep, packing = _pack_shared(batch, prompt_b, parallel)
    else:
        ids, keep, packing = _pack_whole(batch, parallel)
    row, columns = None, packing.position_ids
    if parallel is not None:
        row = SharedRow(parallel, keep, packing.tokens)
        keep, ids, columns = row.places_here, parallel.mine(ids), parallel.mine(columns)
    inputs = {"input_ids": ids.unsqueeze(0), "position_ids": columns.unsqueeze(0), "packing": packing}
    if layer is not None:
        return _hidden(module, layer, **inputs, logits_to_keep=keep[:1])[0, keep], row
    if _has_value_head(module):
        return module(**inputs, use_cache=False).logits[0][keep], row
    return module(**inputs, logits_to_keep=keep, use_cache=False).logits[0], row


def _hidden(module: torch.nn.Module, layer: int, **inputs: Any) -> torch.Tensor:
    """(rows, columns, D) that a layer puts out.

    By a hook, since packed attention refuses what else a model is asked for, and transformers' own hooks go by class,
    which sharding changes.
    """
    found = []
    model = module.get_base_model() if hasattr(module, "get_base_model") else module
    layers = model.config.get_text_config().num_hidden_layers
    stack = next(
        part for part in model.get_decoder().modules() if isinstance(part, torch.nn.ModuleList) and len(part) == layers
    )
    hook = stack[layer].register_forward_hook(lambda _layer, _inputs, output: found.append(output))
    try:
        module(**inputs, use_cache=False)
    finally:
        hook.remove()
    return found[0] if isinstance(found[0], torch.Tensor) else found[0][0]


def _pack_whole(batch: TensorDict, parallel: SequenceParallel | None) -> tuple[torch.Tensor, torch.Tensor, Packing]:
    """Samples end to end: (T,) ids, the (N,) places that predict the response tokens, and the packing."""
    seen = _needed(batch)
    ids, missing = batch["input_ids"][seen], 0 if parallel is None else parallel.missing(int(seen.sum()))
    extra = [missing] if missing else []  # a sequence of its own
    lengths = torch.cat([seen.sum(dim=1), seen.new_tensor(extra, dtype=torch.int64)])
    keep = _predicting(batch)[seen].nonzero().squeeze(1)
    return F.pad(ids, (0, missing)), keep, Packing.of(lengths, parallel)


def _pack_shared(
    batch: TensorDict, prompt_b: torch.Tensor, parallel: SequenceParallel | None
) -> tuple[torch.Tensor, torch.Tensor, SharedPacking]:
    """The same with all prompts, each once, in front of all responses."""
    width = batch["response_mask"].shape[1]
    ids, seen = batch["input_ids"], _needed(batch)
    behind = seen[:, -width:]
    first_p = prompt_b.new_zeros(int(prompt_b.max()) + 1).scatter(
        0, prompt_b, torch.arange(len(ids), device=ids.device)
    )
    prompts = Packing.of(seen[first_p, :-width].sum(dim=1))
    row = torch.cat([ids[first_p, :-width][seen[first_p, :-width]], ids[:, -width:][behind]])
    lengths, owner = behind.sum(dim=1), prompt_b
    if parallel is not None and (missing := parallel.missing(len(row))):
        # Padding goes behind some prompt as a response that nobody asks about.
        row, lengths, owner = F.pad(row, (0, missing)), F.pad(lengths, (0, 1), value=missing), F.pad(owner, (0, 1))
    # A response's first token is predicted by its prompt's last, any other by the one before it.
    last_b = (prompts.starts + prompts.lengths - 1)[prompt_b]
    place_bT = prompts.tokens - 1 + behind.flatten().cumsum(0).view_as(behind)
    before_bT = torch.cat([last_b[:, None], place_bT[:, :-1]], dim=1)
    keep = before_bT[batch["response_mask"].bool()]
    return row, keep, SharedPacking(prompts, Packing.of(lengths), owner, parallel)


def _forward_padded(module: torch.nn.Module, batch: TensorDict, layer: int | None) -> torch.Tensor:
    # All padding goes to the right, where no real token can see it: neither attention nor a layer that carries a state
    # needs a mask then, and positions count from zero.
    seen = batch["attention_mask"].bool()
    order = seen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(seen.sum(dim=1).max())]
    # A pad token may have been added to the tokenizer alone, and have no embedding.
    ids = batch["input_ids"].masked_fill(~seen, 0)
    ids, predicts = ids.gather(1, order), _predicting(batch).gather(1, order)
    if layer is not None:
        return _hidden(module, layer, input_ids=ids)[predicts]
    return module(input_ids=ids, use_cache=False).logits[predicts]


def _has_value_head(module: torch.nn.Module) -> bool:
    return hasattr(module, "score")
