"""Builds the models that are trained: from a Hugging Face folder to a sharded, optionally LoRA-adapted module.

What FSDP does to a module is ``verl.utils.fsdp``'s; what is computed with it is the actor's and the critic's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from accelerate import init_empty_weights
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification, PretrainedConfig

from ..workers.config import FSDPConfig, ModelConfig
from .attention import plain_implementation
from .errors import ConfigError, closest
from .fsdp import materialize, shard
from .loading import HEAD, WeightFiles, all_agree, fill, same_names, whole_model
from .packable import pack, prove_packed
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
        keep_dtype: type the sharded weights are kept in, unless ``fsdp.torch_dtype`` says otherwise; under LoRA that of
            the arithmetic, since they are frozen, and fp32 for the adapters.
    """
    config = load_config(model)
    adapted = trainable and model.lora.rank > 0
    dtype = resolve_dtype(fsdp.torch_dtype or (fsdp.mp_param_dtype if adapted else keep_dtype))
    auto_class = AutoModelForCausalLM
    if value_head:
        auto_class = AutoModelForTokenClassification
        config.num_labels, config.classifier_dropout = 1, 0.0
    common: dict[str, Any] = {
        "config": config,
        "dtype": dtype,
        "attn_implementation": plain_implementation(config),
        "trust_remote_code": model.trust_remote_code,
    }
    with init_empty_weights(include_buffers=False):
        module = auto_class.from_config(**common)
    if padding_free:
        pack(module)
    files = WeightFiles.find(model.model_path)
    if not all_agree(files is not None and same_names(module, files)):  # some machines may lack the weights
        files = None
    module.train(trainable)
    if model.enable_gradient_checkpointing and trainable:
        module.gradient_checkpointing_enable({"use_reentrant": False})
    if adapted:
        module = add_lora(module, model)
    elif not trainable:
        module.requires_grad_(False)
    buffers = dict(module.named_buffers())
    shard(module, fsdp, mesh, resolve_dtype(fsdp.mp_param_dtype))
    materialize(module, buffers, on_host=fsdp.enable_cpu_offload and mesh.device_type != "cpu")
    source = None
    if not fsdp.enable_rank0_init or torch.distributed.get_rank() == 0:
        source = _source(auto_class, model, common, whole=files is None)
    fill(module, files, source)
    if padding_free:
        prove_packed(module, torch.device(mesh.device_type))
    return module


def _source(auto_class: Any, model: ModelConfig, common: dict[str, Any], *, whole: bool) -> dict[str, torch.Tensor]:
    """All weights, or value head and adapters only, on the CPU, with the names of the module they go into."""
    # Of its own, since to build a model sets the attention in its configuration, which the sharded one lives by.
    common = {**common, "config": deepcopy(common["config"])}
    if whole:
        module = whole_model(auto_class, model.model_path, common)
    else:
        with init_empty_weights(include_buffers=False):
            module = auto_class.from_config(**common)
        _without_memory(module)
    if hasattr(module, "score"):
        for name, param in module.score.named_parameters():
            module.score.register_parameter(name, torch.nn.Parameter(torch.zeros(param.shape, dtype=param.dtype)))
    if model.lora.rank > 0:
        module = add_lora(module, model)
    return {
        name: tensor for name, tensor in module.state_dict().items() if whole or ".lora_" in name or HEAD.search(name)
    }


def _without_memory(module: torch.nn.Module) -> None:
    """Let a model on the meta device pass for one on the CPU, where PEFT then starts its adapters."""
    for part in module.modules():
        for name, param in part._parameters.items():
            if param is not None:
                part._parameters[name] = torch.nn.Parameter(torch.zeros((), dtype=param.dtype).expand(param.shape))


def add_lora(module: torch.nn.Module, model: ModelConfig) -> torch.nn.Module:
    """The module with adapters, which alone are trained.

    Raises:
        ConfigError: an adapter of a weight that two modules share.
    """
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
    adapted = get_peft_model(module, settings)  # which makes the adapters fp32
    adapted.peft_config["default"].base_model_name_or_path = model.model_path
    tied = {name.split(".")[-2] for pair in (module.all_tied_weights_keys or {}).items() for name in pair}
    if shared := tied & {name.rpartition(".")[2] for name in adapted.targeted_module_names}:
        raise ConfigError(
            f"lora.target_modules={model.lora.target_modules}: {', '.join(sorted(tied))} share a weight, so an adapter "
            f"of one of them could not be merged; leave out {', '.join(sorted(shared))}"
        )
    if value_head:  # zeros, which PEFT freezes: no adapter could learn behind them
        module.score.to(torch.float32).requires_grad_(True)
    return adapted


@contextmanager
def as_reference(module: torch.nn.Module) -> Iterator[None]:
    """Run a module as the model that it was before training: without gradients, dropout and LoRA adapters.

    peft's own way to switch adapters off takes ``requires_grad`` from them, which FSDP must not see change.
    """
    training, adapted = module.training, [part for part in module.modules() if hasattr(part, "lora_A")]
    module.eval()
    for part in adapted:
        part._disable_adapters = True
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)
        for part in adapted:
            part._disable_adapters = False
