"""Starts torch.distributed and builds what a run trains: model, optimiser and schedule.

Sharding, LoRA and loading are ``verl.models.build``'s, so that both stages of RULE train the same way, on any number of
ranks, with or without a GPU.
"""

from dataclasses import replace

import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from RS.config import RSConfig
from verl.config.worker import FSDPConfig, LoraConfig, ModelConfig, OptimConfig
from verl.models.build import build_model, resolve_dtype
from verl.models.fsdp import build_mesh
from verl.models.optim import build_optimizer
from verl.utils.environment import variable, whole_variable
from verl.utils.orphans import end_with_parent


def start_distributed() -> torch.device:
    """Join torchrun's process group, or make one of this process alone; returns the device of this rank."""
    on_gpu = torch.cuda.is_available()
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    if on_gpu:
        torch.cuda.set_device(whole_variable("LOCAL_RANK", 0))
    if variable("TORCHELASTIC_RUN_ID"):
        end_with_parent()  # torchrun, killed with SIGKILL, would leave its ranks training
    if variable("WORLD_SIZE"):
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


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
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Optimiser and learning-rate schedule of a run of ``training_steps``."""
    settings = OptimConfig(lr=config.learning_rate, weight_decay=config.weight_decay, strategy=config.optimizer)
    optimizer = build_optimizer(module, settings)
    name = "constant_with_warmup" if config.lr_scheduler_type == "constant" else config.lr_scheduler_type
    return optimizer, get_scheduler(name, optimizer, config.warmup(training_steps), training_steps)
