"""A role's checkpoint: its sharded training state, and a Hugging Face folder that anything can open.

``dcp/`` is torch.distributed.checkpoint's, so that a run can resume on another number of ranks. Folder names, trackers
and what is kept are ``verl.utils.checkpoint``'s.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from ..config.worker import ModelConfig
from ..utils.atomic import write_json
from ..utils.chat import turn_end
from .build import empty_model, load_config
from .export import adapter_tensors, exported_tensors
from .hf_folder import copy_side_files, write_model
from .loading import stored_dtype

logger = logging.getLogger(__name__)

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
        save_training_state(role.stepper, folder / "dcp")


def save_adapter(module: torch.nn.Module, folder: Path) -> None:
    """Write the adapters as they were trained, as a PEFT folder; nothing where there are none. A collective."""
    if not hasattr(module, "peft_config"):
        return
    adapters = adapter_tensors(module, torch.float32)
    if dist.get_rank() == 0:
        module.peft_config["default"].save_pretrained(folder)
        save_file(adapters, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    dist.barrier()


def load_role(role: Any, folder: Path) -> None:
    """Take over the training state in ``folder/dcp``, in place. A collective."""
    load_training_state(role.stepper, folder / "dcp")


def save_training_state(trained: Any, folder: Path) -> None:
    """Write weights, the optimiser's moments and how far the schedule is, in shards. A collective.

    Args:
        trained: whatever has ``module``, ``optimizer``, ``scheduler`` and ``skipped``.
    """
    dcp.save(_training_state(trained), checkpoint_id=folder)


def load_training_state(trained: Any, folder: Path) -> None:
    """Take over what ``save_training_state`` wrote, on any number of ranks. A collective.

    What a step does (learning rate, weight decay, betas) is not of the state: the optimiser and the schedule as they
    were built hold.
    """
    state, scheduler = _training_state(trained), trained.scheduler
    groups = state["optim"].pop("param_groups")
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        trained.module,
        trained.optimizer,
        model_state_dict=state["model"],
        optim_state_dict={**state["optim"], "param_groups": groups},
    )
    scheduler.last_epoch = state["scheduler"]["last_epoch"] - 1
    scheduler.step()
    trained.skipped = state["skipped"]


def _training_state(trained: Any) -> dict[str, Any]:
    model, optim = get_state_dict(trained.module, trained.optimizer)
    scheduler = {"last_epoch": trained.scheduler.last_epoch}
    return {"model": model, "optim": optim, "scheduler": scheduler, "skipped": trained.skipped}


def save_hf_folder(module: torch.nn.Module, folder: Path, tokenizer: Any, model: ModelConfig) -> None:
    """Gather the weights and write them on rank 0, in the type that the original model was stored in; LoRA adapters are
    merged in fp32 before.

    The configuration is the one that the module was built with, ``override_config`` included; what else lies beside the
    original's weights is copied.
    """
    config = load_config(model)
    dtype = stored_dtype(model.model_path, config)
    keep = dist.get_rank() == 0
    state = {}
    for name, tensor in exported_tensors(module, dtype):
        if keep:
            state[name] = tensor.cpu()
    if keep:
        value_head = hasattr(module, "score")
        if value_head:
            config.num_labels = 1
        shell = empty_model(config, value_head=value_head, dtype=dtype, trust_remote_code=model.trust_remote_code)
        write_model(shell, state, folder)
        copy_side_files(model.model_path, tokenizer, folder, generates=not value_head)
        if not value_head:
            _note_turn_end(folder, tokenizer)
    dist.barrier()


def _note_turn_end(folder: Path, tokenizer: Any) -> None:
    """Let ``generate`` stop where the model has learned to: at the chat template's end of a turn, too."""
    path = folder / "generation_config.json"
    try:
        settings = dict(json.loads((path if path.is_file() else folder / "config.json").read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:  # a model that was trained is not lost for it
        logger.warning("%s cannot be read (%s), so generate may not stop where this model's answers end", path, error)
        return
    if not path.is_file():  # what generate would take from config.json, and no longer does once this file is there
        tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
        settings = {name: settings[name] for name in tokens if settings.get(name) is not None}
    listed = settings.get("eos_token_id")
    listed = listed if isinstance(listed, list) else [listed] * (listed is not None)
    if (end := turn_end(tokenizer)[-1]) not in listed:
        write_json(path, {**settings, "eos_token_id": [*listed, end]})
