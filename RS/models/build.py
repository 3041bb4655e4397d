"""Starts torch.distributed and builds what a run trains: model, optimiser and schedule.

Sharding, LoRA and loading are ``verl.models.build``'s, so that both stages of RULE train the same way, on any number of
ranks, with or without a GPU.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import LambdaLR

from RS.config import RSConfig
from verl.config.worker import FSDPConfig, LoraConfig, ModelConfig, OptimConfig
from verl.models.build import build_model, resolve_dtype
from verl.models.fsdp import build_mesh
from verl.models.optim import build_optimizer
from verl.utils.environment import cores, variable, whole_variable
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


def build(config: RSConfig, device: torch.device, *, trainable: bool) -> torch.nn.Module:
    """The sharded model of ``config``, to train or (without adapters) as a frozen reference."""
    model = model_config(config)
    if not trainable:
        model = replace(model, lora=LoraConfig(rank=0))
    kept = "bf16" if config.optimizer == "adamw_bf16" else None
    fsdp = FSDPConfig(fsdp_size=config.fsdp_size, mp_param_dtype=config.precision, torch_dtype=kept)
    frozen = "bf16" if resolve_dtype(config.precision) == torch.bfloat16 else "fp32"
    return build_model(
        model,
        fsdp,
        build_mesh(device.type, config.fsdp_size),
        trainable=trainable,
        padding_free=config.padding_free,
        keep_dtype="fp32" if trainable else frozen,
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
