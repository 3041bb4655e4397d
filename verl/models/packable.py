"""Which models may be packed: those where a token sees earlier ones through our attention and in no other way.

Two looks: at configuration and class, before anything is loaded, and at the loaded model. What attention itself refuses
is ``verl.models.attention``'s.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch.distributed.fsdp import FSDPModule
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..utils.errors import ConfigError
from .attention import PACKED, PAD_INSTEAD, Packing, packed_attention

PACKED_LAYERS = {"full_attention", "sliding_attention", "attention"}


def packing_problem(settings: Mapping[str, Any], model_class: type[PreTrainedModel] | None = None) -> str | None:
    """Why a model cannot be packed, as far as is known without its weights, or None.

    Args:
        settings: its config.json.
        model_class: what it is; None for transformers' class of that ``model_type``.
    """
    inner = settings.get("text_config") or settings
    kinds = {*(inner.get("layer_types") or ()), *(inner.get("layers_block_type") or ())}
    if strange := sorted(kinds - PACKED_LAYERS):
        return f"padding_free=true: layers of type {', '.join(strange)} may mix packed samples; {PAD_INSTEAD}"
    if model_class is None and "auto_map" not in settings:
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(settings.get("model_type", ""))
        model_class = getattr(transformers, name) if isinstance(name, str) else None
    if model_class is None:
        return None
    if model_class._is_stateful:
        reason = "carries a state from one packed sample into the next"
    elif not (model_class._supports_attention_backend and model_class._can_set_attn_implementation()):
        reason = "has attention of its own, which would see all packed samples as one"
    else:
        return None
    return f"padding_free=true: {model_class.__name__} {reason}; {PAD_INSTEAD}"


def pack(module: PreTrainedModel) -> None:
    """Let a model, which may be on the meta device, take packed rows.

    Raises:
        ConfigError: it cannot.
    """
    if problem := packing_problem(module.config.to_dict(), type(module)):
        raise ConfigError(problem)
    module.set_attn_implementation(PACKED)


@torch.no_grad()
def prove_packed(module: torch.nn.Module, device: torch.device) -> None:
    """Run two packed samples, the first of them NaN after its embedding: no NaN may reach the second.

    That holds whatever the weights and the arithmetic, since NaN survives a product with zero; only what never meets
    the first sample stays clean. The windows of the model's masks, which packed attention does without, must have been
    told to it as well. A collective: every rank of a sharded module must call it.

    Raises:
        ConfigError: the samples do meet, be it in a convolution, a state, or attention that is not ours; or a window
            is known to masks alone.
    """
    kind = type(module.get_base_model() if hasattr(module, "get_base_model") else module).__name__
    training = module.training
    module.eval()
    with _windows() as (masked, told):
        second = _second_sample(module, device, poison=True)
    if second.isnan().any() and not _second_sample(module, device, poison=False).isnan().any():
        raise ConfigError(f"padding_free=true: {kind} mixes packed samples outside its attention; {PAD_INSTEAD}")
    used = module.config.get_text_config()
    lost = masked - told if set(getattr(used, "layer_types", None) or ()) != {"full_attention"} else None
    if lost:
        raise ConfigError(f"padding_free=true: {kind} puts {', '.join(lost)} into its masks alone; {PAD_INSTEAD}")
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    module.train(training)


def _second_sample(module: torch.nn.Module, device: torch.device, *, poison: bool) -> torch.Tensor:
    """The model's outputs, (4, V), at the second of two packed samples of four tokens each."""
    packing = Packing.of(torch.tensor([4, 4], device=device))

    def spoil(_module: torch.nn.Module, _inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.full_like(embedded[:, :4], torch.nan), embedded[:, 4:]], dim=1)

    hook = module.get_input_embeddings().register_forward_hook(spoil) if poison else None
    ids = torch.zeros(1, 8, dtype=torch.int64, device=device)
    outputs = module(input_ids=ids, position_ids=packing.columns.unsqueeze(0), packing=packing, use_cache=False)
    if hook is not None:
        hook.remove()
    return outputs.logits[0, 4:]


@contextmanager
def _windows() -> Iterator[tuple[set[str], set[str]]]:
    """What a model's masks would hold beside causality, and what its layers tell packed attention, in words."""
    masked: set[str] = set()
    told: set[str] = set()

    def mask(*_: Any, local_size: int | None = None, use_vmap: bool = False, **__: Any) -> None:
        masked.update(["a pattern of its own"] * use_vmap + [f"a window of {local_size}"] * (local_size is not None))

    def attention(*args: Any, **settings: Any) -> tuple[torch.Tensor, None]:
        told.add(f"a window of {settings.get('sliding_window')}")
        return packed_attention(*args, **settings)

    AttentionMaskInterface.register(PACKED, mask)
    AttentionInterface.register(PACKED, attention)
    try:
        yield masked, told
    finally:
        # Without a function for its masks, transformers makes none.
        AttentionMaskInterface._global_mapping.pop(PACKED)
        AttentionInterface.register(PACKED, packed_attention)
