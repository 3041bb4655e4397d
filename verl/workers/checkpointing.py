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
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, GenerationConfig

from ..utils.model import load_config
from .config import ModelConfig
from .sharding_manager.fsdp_vllm import exported_tensors

LORA_CONFIG = "lora_config.json"


def save_role(role: Any, folder: Path, tokenizer: Any, model: ModelConfig, *, model_only: bool) -> None:
    """Write ``folder/huggingface`` and, unless ``model_only``, ``folder/dcp``. A collective.

    Args:
        model: what the role was built from.
    """
    save_hf_folder(role.module, folder / "huggingface", tokenizer, model)
    if not model_only:
        dcp.save(_training_state(role), checkpoint_id=folder / "dcp")
        if dist.get_rank() == 0 and hasattr(role.module, "peft_config"):
            role.module.peft_config["default"].save_pretrained(folder)
            (folder / "adapter_config.json").rename(folder / LORA_CONFIG)  # the folder itself is no adapter


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
    """Gather the weights (LoRA merged) and write them on rank 0, in the type that the original model was stored in.

    The configuration is the one that the module was built with, ``override_config`` included.
    """
    config = load_config(model)
    dtype = config.dtype or torch.bfloat16
    keep = dist.get_rank() == 0
    state = {}
    for name, tensor in exported_tensors(module):
        if keep:
            state[name] = tensor.to("cpu", dtype)
    if keep:
        value_head = hasattr(module, "score")
        auto_class = AutoModelForTokenClassification if value_head else AutoModelForCausalLM
        if value_head:
            config.num_labels = 1
        with init_empty_weights(include_buffers=False):
            shell = auto_class.from_config(config, dtype=dtype, trust_remote_code=model.trust_remote_code)
        for tied in getattr(shell, "all_tied_weights_keys", {}):
            state.pop(tied, None)
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
