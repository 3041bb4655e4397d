"""Builds the models that are trained: from a Hugging Face folder to a sharded, optionally LoRA-adapted module.

What FSDP does to a module is ``verl.models.fsdp``'s; what is computed with it is the actor's and the critic's.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from accelerate import init_empty_weights
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from ..config.worker import FSDPConfig, LoraConfig, ModelConfig
from ..utils.errors import ConfigError, DataError, closest
from ..utils.vllm_env import has_accelerator
from .attention import plain_implementation
from .fsdp import materialize, shard
from .loading import HEAD, WeightFiles, all_agree, fill, plain_name, same_names, whole_model
from .model_config import override, readable
from .packable import pack, prove_packed

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
        ConfigError: there is none that can be used; an override of something that it does not have; quantised weights.
    """
    with readable(model.model_path):
        config = AutoConfig.from_pretrained(model.model_path, trust_remote_code=model.trust_remote_code)
    override(config, model.override_config)
    if quantized := getattr(config, "quantization_config", None):
        kind = quantized.get("quant_method") if isinstance(quantized, dict) else quantized.quant_method
        raise ConfigError(
            f"model {model.model_path}: its weights are quantised (quantization_config of config.json: {kind}), which "
            "cannot be trained; give the same model in bf16, fp16 or fp32"
        )
    return config


def check_model(model: ModelConfig, *, value_head: bool = False, engine_adapters: bool = False) -> None:
    """Raise ConfigError for a model that cannot be built, or that its adapters do not fit. No weights are read.

    Args:
        engine_adapters: vLLM is to take the adapters as they are.
    """
    config = load_config(model)
    module = empty_model(config, value_head=value_head, trust_remote_code=model.trust_remote_code)
    if model.lora.rank == 0:
        return
    names = add_lora(module, model).targeted_module_names
    outside = sorted(name for name in names if not re.search(r"\.\d+\.", name))
    if engine_adapters and outside:
        raise ConfigError(
            "worker.rollout.lora_weights=adapter: vLLM takes adapters of the layers only, and "
            f"worker.actor.model.lora.target_modules={model.lora.target_modules} names {', '.join(outside)}; set merged"
        )


def check_token_ids(model: ModelConfig, tokenizer: Any, sequences: Iterable[Sequence[int]]) -> None:
    """Raise DataError for token ids that the model has no embedding for: tokens were added to its tokenizer alone."""
    rows = load_config(model).get_text_config().vocab_size
    highest = max((token for ids in sequences for token in ids), default=0)
    if highest >= rows:
        raise DataError(
            f"model {model.model_path}: its vocabulary has {rows} rows, and the data have token {highest} "
            f"({tokenizer.convert_ids_to_tokens(highest)!r}) of a tokenizer of {len(tokenizer)}; leave that text out, "
            "or give a model whose embeddings were resized to the tokenizer"
        )


def empty_model(config: PretrainedConfig, *, value_head: bool, **options: Any) -> torch.nn.Module:
    """A model on the meta device; with a value head, a scalar a token instead of logits.

    Raises:
        ConfigError: transformers has no such model of this kind.
    """
    auto_class = AutoModelForTokenClassification if value_head else AutoModelForCausalLM
    known = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES if value_head else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if config.model_type not in known and auto_class.__name__ not in (getattr(config, "auto_map", None) or {}):
        what = "value head for it, which adv_estimator=gae needs" if value_head else "language model of it"
        raise ConfigError(f"model {config.name_or_path}: transformers has no {what} (model_type={config.model_type})")
    with init_empty_weights(include_buffers=False):
        return auto_class.from_config(config, **options)


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
    if value_head:
        config.num_labels, config.classifier_dropout = 1, 0.0
    common: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": plain_implementation(config),
        "trust_remote_code": model.trust_remote_code,
    }
    module = empty_model(config, value_head=value_head, **common)
    if padding_free:
        pack(module)
    files = WeightFiles.find(model.model_path)
    if not all_agree(files is not None and same_names(module, files)):  # some machines may lack the weights
        files = None
    module.train(trainable)
    for part in parts_beside_text(module).values():
        part.requires_grad_(False)
    if model.enable_gradient_checkpointing and trainable:
        module.gradient_checkpointing_enable({"use_reentrant": False})
    if adapted:
        module = add_lora(module, model)
    elif not trainable:
        module.requires_grad_(False)
    buffers = dict(module.named_buffers())
    shard(module, fsdp, mesh, resolve_dtype(fsdp.mp_param_dtype))
    materialize(module, buffers, mesh, on_host=fsdp.enable_cpu_offload and mesh.device_type != "cpu")
    source = None
    if not fsdp.enable_rank0_init or torch.distributed.get_rank() == 0:
        # Of its own, since to build a model sets the attention in its configuration, which the sharded one lives by.
        source = _source(model, deepcopy(config), common, value_head=value_head, whole=files is None)
    fill(module, files, source)
    if padding_free:
        prove_packed(module, torch.device(mesh.device_type))
    return module


def parts_beside_text(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Name to module of what no text reaches in a model that has its language model as a part, such as vision towers.

    Nothing there gets a gradient, so it is neither trained nor adapted.
    """
    if module.config.get_text_config() is module.config:
        return {}
    used = [module.get_decoder(), module.get_input_embeddings(), module.get_output_embeddings()]
    inside = {part for top in used if top is not None for part in top.modules()}
    return {name: part for name, part in module.named_modules() if inside.isdisjoint(part.modules())}


def _source(
    model: ModelConfig, config: PretrainedConfig, common: dict[str, Any], *, value_head: bool, whole: bool
) -> dict[str, torch.Tensor]:
    """All weights, or value head and adapters only, on the CPU, with the names of the module they go into."""
    if whole:
        auto_class = AutoModelForTokenClassification if value_head else AutoModelForCausalLM
        module = whole_model(auto_class, model.model_path, {"config": config, **common})
    else:
        module = empty_model(config, value_head=value_head, **common)
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
        ConfigError: names that fit no module, a module that cannot be adapted, an adapter of a weight that two share.
    """
    from peft import LoraConfig as PeftConfig
    from peft import TaskType, get_peft_model

    targets, excluded = (_module_names(module, model.lora, key) for key in ("target_modules", "exclude_modules"))
    if beside := parts_beside_text(module):
        excluded = [*_fitting(module, excluded), *beside]
    value_head = hasattr(module, "score")
    settings = PeftConfig(
        r=model.lora.rank,
        lora_alpha=model.lora.alpha,
        target_modules=targets,
        exclude_modules=excluded,
        task_type=None if value_head else TaskType.CAUSAL_LM,
    )
    if model.enable_gradient_checkpointing:
        module.enable_input_require_grads()
    plain = {name for name, _ in module.named_parameters()}
    try:
        adapted = get_peft_model(module, settings)  # which makes the adapters fp32
    except ValueError as error:
        kind = re.match(r"Target module (\w+)", str(error))
        reason = f"a {kind[1]} takes no adapter" if kind else str(error)
        raise ConfigError(
            f"lora.target_modules={model.lora.target_modules}: {reason}; {_adaptable(module)}, or all-linear"
        ) from error
    adapted.peft_config["default"].base_model_name_or_path = model.model_path
    tied = {name.split(".")[-2] for pair in (module.all_tied_weights_keys or {}).items() for name in pair}
    if shared := tied & {name.rpartition(".")[2] for name in adapted.targeted_module_names}:
        raise ConfigError(
            f"lora.target_modules={model.lora.target_modules}: {', '.join(sorted(tied))} share a weight, so an adapter "
            f"of one of them could not be merged; leave out {', '.join(sorted(shared))}"
        )
    kept = {plain_name(name) for name, _ in adapted.named_parameters() if ".lora_" not in name}
    if odd := sorted(plain ^ kept):
        raise ConfigError(
            f"lora.target_modules={model.lora.target_modules}: adapters of {', '.join(odd[:3])} could not be merged; "
            "leave these modules out"
        )
    if value_head:  # zeros, which PEFT freezes: no adapter could learn behind them
        module.score.to(torch.float32).requires_grad_(True)
    return adapted


def _module_names(module: torch.nn.Module, lora: LoraConfig, key: str) -> Any:
    """A setting as peft takes it: names, or a regular expression for whole names, which a single name is to peft.

    Raises:
        ConfigError: a name or an expression that fits no module.
    """
    value = getattr(lora, key)
    if not value or value in ("all-linear", ["all-linear"]):
        return "all-linear" if value else None
    given = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    is_pattern = isinstance(value, str) and not all(re.fullmatch(r"[\w.-]+", name) for name in given)
    try:
        lost = [
            name for name in ([value] if is_pattern else given) if not _fitting(module, value if is_pattern else [name])
        ]
    except re.error as error:
        hint = _adaptable(module)
        raise ConfigError(f"lora.{key}={value}: is no regular expression ({error}); {hint}") from error
    if lost and is_pattern:
        raise ConfigError(f"lora.{key}={value}: fits the whole name of no module; {_adaptable(module)}")
    if lost:
        known = {part for name, _ in module.named_modules() for part in name.split(".")}
        near = closest(lost[0], {"all-linear", *known})
        hint = f"did you mean {near}?" if near else _adaptable(module)
        raise ConfigError(f"lora.{key}={value}: the model has no module {lost[0]}; {hint}")
    return value if is_pattern else given


def _fitting(module: torch.nn.Module, names: str | list[str] | None) -> list[str]:
    """Whole names of the modules that a regular expression fits, or that end in one of some names: peft's reading."""
    known = [name for name, _ in module.named_modules() if name]
    if isinstance(names, str):
        return [name for name in known if re.fullmatch(names, name)]
    return [name for name in known if any(f".{name}".endswith(f".{end}") for end in names or ())]


def _adaptable(module: torch.nn.Module) -> str:
    """The modules that adapters are for, in words: linear layers, Conv1D ones, embeddings and the head."""
    found = {name.rpartition(".")[2] for name, part in module.named_modules() if hasattr(part, "weight")}
    return f"name some of {', '.join(sorted(name for name in found if 'norm' not in name and 'ln_' not in name))}"


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
