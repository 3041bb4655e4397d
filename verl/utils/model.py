"""Builds the models that are trained: from a Hugging Face folder to a sharded, optionally LoRA-adapted module.

What FSDP does to a module is ``verl.utils.fsdp``'s; what is computed with it is the actor's and the critic's.
"""

from typing import Any

import torch
from accelerate import init_empty_weights
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification, PretrainedConfig

from ..workers.config import FSDPConfig, ModelConfig
from .attention import PACKED
from .errors import ConfigError, closest
from .fsdp import load_full_state, shard
from .vllm_env import has_accelerator

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def fast_bf16() -> bool:
    """True where bf16 arithmetic is quicker than fp32: CUDA from Ampere on, CPUs with AMX or AVX512-BF16."""
    if has_accelerator():
        return torch.cuda.get_device_capability()[0] >= 8
    return cpu_has_bf16()


def cpu_has_bf16() -> bool:
    """True where this CPU multiplies in bf16: two to eight times as fast as in fp32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def resolve_dtype(name: str) -> torch.dtype:
    """The torch type of ``bf16``, ``fp16``, ``fp32``, or of ``auto``: bf16 where it is fast."""
    if name == "auto":
        return torch.bfloat16 if fast_bf16() else torch.float32
    return DTYPES[name]


def load_config(model: ModelConfig) -> PretrainedConfig:
    """The model's configuration with ``override_config`` applied.

    Raises:
        ConfigError: an override of something that this configuration does not have, and so would ignore.
    """
    config = AutoConfig.from_pretrained(model.model_path, trust_remote_code=model.trust_remote_code)
    for key, value in model.override_config.items():
        if not hasattr(config, key):
            near = closest(key, config.to_dict())
            hint = f"did you mean {near}?" if near else f"it has {', '.join(sorted(config.to_dict()))}"
            raise ConfigError(f"model.override_config.{key}={value}: {type(config).__name__} has no such entry; {hint}")
        setattr(config, key, value)
    return config


def build_model(
    model: ModelConfig,
    fsdp: FSDPConfig,
    mesh: DeviceMesh,
    *,
    trainable: bool,
    padding_free: bool,
    value_head: bool = False,
    keep_dtype: str = "fp32",
) -> torch.nn.Module:
    """A sharded model with its weights loaded.

    Args:
        mesh: one dimension (shard) or two (replicate, shard).
        value_head: a scalar per token instead of logits, its head starting at zero.
        keep_dtype: type the sharded weights are kept in, unless ``fsdp.torch_dtype`` says otherwise.
    """
    config = load_config(model)
    dtype = resolve_dtype(fsdp.torch_dtype or keep_dtype)
    auto_class = AutoModelForCausalLM
    if value_head:
        auto_class = AutoModelForTokenClassification
        config.num_labels, config.classifier_dropout = 1, 0.0
    common: dict[str, Any] = {
        "config": config,
        "dtype": dtype,
        "attn_implementation": PACKED if padding_free else "sdpa",
        "trust_remote_code": model.trust_remote_code,
    }
    with init_empty_weights(include_buffers=False):
        module = auto_class.from_config(**common)
    module.train(trainable)
    if model.enable_gradient_checkpointing and trainable:
        module.gradient_checkpointing_enable({"use_reentrant": False})
    if model.lora.rank > 0 and trainable:
        module = _add_lora(module, model)
    elif not trainable:
        module.requires_grad_(False)
    buffers = dict(module.named_buffers())
    shard(module, fsdp, mesh, resolve_dtype(fsdp.mp_param_dtype))
    source = None
    if not fsdp.enable_rank0_init or torch.distributed.get_rank() == 0:
        source = _load_source(auto_class, model, common, value_head)
    load_full_state(module, source, buffers, from_rank0=fsdp.enable_rank0_init)
    return module


def _load_source(auto_class: Any, model: ModelConfig, common: dict[str, Any], value_head: bool) -> dict[str, Any]:
    """All weights on CPU, with the names of the module they go into."""
    whole = auto_class.from_pretrained(model.model_path, **common)
    if value_head:
        torch.nn.init.zeros_(whole.score.weight)
        torch.nn.init.zeros_(whole.score.bias)
    if model.lora.rank > 0:
        whole = _add_lora(whole, model)
    return whole.state_dict()


def _add_lora(module: torch.nn.Module, model: ModelConfig) -> torch.nn.Module:
    from peft import LoraConfig, TaskType, get_peft_model

    def names(value: str | list[str] | None) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) and "," in value else value

    value_head = hasattr(module, "score")
    settings = LoraConfig(
        r=model.lora.rank,
        lora_alpha=model.lora.alpha,
        target_modules=names(model.lora.target_modules),
        exclude_modules=names(model.lora.exclude_modules),
        task_type=None if value_head else TaskType.CAUSAL_LM,
    )
    if model.enable_gradient_checkpointing:
        module.enable_input_require_grads()
    adapted = get_peft_model(module, settings, autocast_adapter_dtype=False)
    if value_head:  # zeros, which PEFT freezes: no adapter could learn behind them
        module.score.requires_grad_(True)
    return adapted
