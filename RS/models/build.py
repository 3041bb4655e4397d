"""Starts torch.distributed and builds what a run trains: model, optimiser and schedule.

Sharding, LoRA and loading are ``verl.models.build``'s, so that both stages of RULE train the same way, on any number of
ranks, with or without a GPU.
"""

import math
import re
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import LambdaLR

from RS.config import RSConfig
from verl.config.worker import FSDPConfig, LoraConfig, ModelConfig, OptimConfig
from verl.models.build import build_model, load_config, resolve_dtype
from verl.models.fsdp import build_mesh
from verl.models.optim import build_optimizer
from verl.utils.environment import cores, variable, whole_variable
from verl.utils.errors import ConfigError
from verl.utils.memory import keep_freed
from verl.utils.orphans import end_with_parent

SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}
"""learning rate, as a share of the peak, by the share of the steps behind warm-up that is done"""


def start_distributed() -> torch.device:
    """Join torchrun's process group, or make one of this process alone; returns the device of this rank."""
    on_gpu = torch.cuda.is_available()
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    if on_gpu:
        torch.cuda.set_device(whole_variable("LOCAL_RANK", 0))
    if variable("TORCHELASTIC_RUN_ID"):
        end_with_parent()  # torchrun, killed with SIGKILL, would leave its ranks training
    torch.set_num_threads(rank_threads())
    if not on_gpu:
        keep_freed()
    if variable("WORLD_SIZE"):
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def rank_threads() -> int:
    """Threads of this rank: what torch would take, or its share of the cores where torchrun has said 1 for all ranks.

    That is torchrun's word for "nobody said", so a user's own 1 for several ranks counts as such, too.
    """
    here = whole_variable("LOCAL_WORLD_SIZE", 1)
    if here == 1 or variable("OMP_NUM_THREADS") != "1":
        return torch.get_num_threads()
    return max(1, cores() // here)


def model_config(config: RSConfig) -> ModelConfig:
    """The model to train, with its adapters."""
    return ModelConfig(
        model_path=config.model,
        enable_gradient_checkpointing=config.gradient_checkpointing,
        trust_remote_code=config.trust_remote_code,
        lora=LoraConfig(rank=config.lora_rank, alpha=config.lora_alpha, target_modules=config.lora_target),
    )


def fsdp_config(config: RSConfig) -> FSDPConfig:
    """How the model is sharded, and the types that it is kept and computed in."""
    kept = "bf16" if config.optimizer == "adamw_bf16" else None
    return FSDPConfig(fsdp_size=config.fsdp_size, mp_param_dtype=config.precision, torch_dtype=kept)


def build(config: RSConfig, device: torch.device, *, trainable: bool) -> torch.nn.Module:
    """The sharded model of ``config``, to train or (without adapters) as a frozen reference."""
    model = model_config(config)
    if not trainable:
        model = replace(model, lora=LoraConfig(rank=0))
    frozen = "bf16" if resolve_dtype(config.precision) == torch.bfloat16 else "fp32"
    return build_model(
        model,
        fsdp_config(config),
        build_mesh(device.type, config.fsdp_size),
        trainable=trainable,
        padding_free=config.padding_free,
        keep_dtype="fp32" if trainable else frozen,
    )


def steered_layer(config: RSConfig) -> int | None:
    """The layer whose hidden states are part of the loss; None: of no layer are.

    Unless it is set, the one a quarter of the way up: RMU's paper takes 7 of 32 and 15 of 60.

    Raises:
        ConfigError: the model has no such layer.
    """
    if not config.reads_layer:
        return None
    layers = load_config(model_config(config)).get_text_config().num_hidden_layers
    layer = layers // 4 if config.layer is None else config.layer
    if layer >= layers:
        raise ConfigError(f"layer={layer}: the model has {layers} layers, counted from 0; give 0 to {layers - 1}")
    return layer


def build_reinforced(config: RSConfig, device: torch.device) -> torch.nn.Module:
    """whp's reinforced model, frozen.

    Raises:
        ConfigError: its tokens are not those of the model that is trained.
    """
    reinforced = replace(config, model=config.reinforced_model)
    sizes = [load_config(model_config(each)).get_text_config().vocab_size for each in (config, reinforced)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"reinforced_model={config.reinforced_model}: has {sizes[1]} tokens, and model={config.model} {sizes[0]}; "
            "give what further training of this model has made"
        )
    return build(reinforced, device, trainable=False)


def train_layers(module: torch.nn.Module, first: int, last: int) -> None:
    """Freeze all but what lies in these layers.

    Raises:
        ConfigError: nothing is left to train there.
    """
    for name, parameter in module.named_parameters():
        number = re.search(r"\.(\d+)\.", name)
        if number is None or not first <= int(number[1]) <= last:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError(
            f"lora_target: adapts nothing in layers {max(first, 0)} to {last}, which objective=rmu trains; "
            "name modules there, or set layer"
        )


def build_training(
    module: torch.nn.Module, config: RSConfig, training_steps: int
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Optimiser and learning-rate schedule of a run of ``training_steps``."""
    settings = OptimConfig(lr=config.learning_rate, weight_decay=config.weight_decay, strategy=config.optimizer)
    optimizer = build_optimizer(module, settings)
    warmup, shape = config.warmup(training_steps), SHAPES[config.lr_scheduler_type]

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return shape(min(1.0, (step - warmup) / max(1, training_steps - warmup)))

    return optimizer, LambdaLR(optimizer, factor)
