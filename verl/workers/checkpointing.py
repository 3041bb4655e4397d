"""A role's checkpoint: its sharded training state, and a Hugging Face folder that anything can open.

``dcp/`` is torch.distributed.checkpoint's, so that a run can resume on another number of ranks. Folder names, trackers
and what is kept are ``verl.utils.checkpoint``'s.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, GenerationConfig

from ..utils.model import load_config
from .config import ModelConfig
from .sharding_manager.export import adapter_tensors, exported_tensors

ADAPTER = "lora_adapter"


def save_role(role: Any, folder: Path, tokenizer: Any, model: ModelConfig, *, model_only: bool) -> None:
    """Write ``folder/huggingface``, under LoRA ``folder/lora_adapter`` and, unless ``model_only``, ``folder/dcp``.

    A collective.

    Args:
        model: what the role was built from.
    """
    save_hf_folder(role.module, folder / "huggingface", tokenizer, model)
    save_adapter(role.module, folder / ADAPTER)
    if not model_only:
        dcp.save(_training_state(role), checkpoint_id=folder / "dcp")


def save_adapter(module: torch.nn.Module, folder: Path) -> None:
    """Write the adapters as they were trained, as a PEFT folder; nothing where there are none. A collective."""
    if not hasattr(module, "peft_config"):
        return
    adapters = adapter_tensors(module)
    if dist.get_rank() == 0:
        module.peft_config["default"].save_pretrained(folder)
        save_file(adapters, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    dist.barrier()


def load_role(role: Any, folder: Path) -> None:
    """Take over the training state in ``folder/dcp``, in place. A collective."""
    state = _training_state(role)
    dcp.load(state, checkpoint_id=folder / "dcp")
    set_state_dict(
        role.module, role.stepper.optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"]
    )
    # Functions are not stored, but LambdaLR asks for their place.
    role.stepper.scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": [None]})
    role.stepper.skipped = state["skipped"]


def _training_state(role: Any) -> dict[str, Any]:
    model, optim = get_state_dict(role.module, role.stepper.optimizer)
    scheduler = {k: v for k, v in role.stepper.scheduler.state_dict().items() if k != "lr_lambdas"}
    return {"model": model, "optim": optim, "scheduler": scheduler, "skipped": role.stepper.skipped}


def save_hf_folder(module: torch.nn.Module, folder: Path, tokenizer: Any, model: ModelConfig) -> None:
    """Gather the weights and write them on rank 0, in the type that the original model was stored in; LoRA adapters are
    merged in fp32 before.

    The configuration is the one that the module was built with, ``override_config`` included.
    """
    config = load_config(model)
    dtype = config.dtype or torch.bfloat16
    keep = dist.get_rank() == 0
    state = {}
    for name, tensor in exported_tensors(module, dtype):
        if keep:
            state[name] = tensor.cpu()
    if keep:
        value_head = hasattr(module, "score")
        auto_class = AutoModelForTokenClassification if value_head else AutoModelForCausalLM
        if value_head:
            config.num_labels = 1
        with init_empty_weights(include_buffers=False):
            shell = auto_class.from_config(config, dtype=dtype, trust_remote_code=model.trust_remote_code)
        shell.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
        if not value_head:
            _copy_generation_config(model.model_path, folder)
    dist.barrier()


def _copy_generation_config(model_path: str, folder: Path) -> None:
    try:
        GenerationConfig.from_pretrained(model_path).save_pretrained(folder)
    except OSError:  # the original has none, so neither has the copy
        return
