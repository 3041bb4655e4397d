"""Writes a model's Hugging Face folder: its weights first and whole, then what lay beside them, as it lay there.

transformers' own ``save_pretrained`` judges settings before it writes a weight, and refuses some that it loads without
a word. A model that was trained must not be lost to a side file, so here nothing but the disk can stop the weights, and
side files are copied, not read and written again. How weights are gathered is ``verl.workers``' business.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

GENERATION = "generation_config.json"
MODEL_FILES = (GENERATION, "*processor*.json", "*.py")
"""what lies beside weights and configuration: generation settings, processors, code"""
TOKENIZER_FILES = ("tokenizer*", "*_tokens*.json", "vocab*", "merges*", "*.model", "*.tiktoken", "tekken.json")
TOKENIZER_FILES += ("chat_template*", "additional_chat_templates/*", "tokenization*.py")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")


def write_model(model: Any, state: Mapping[str, torch.Tensor], folder: Path, *, max_shard_size: str = "50GB") -> None:
    """Write weights and config.json, so that ``from_pretrained`` opens them.

    Args:
        model: the PreTrainedModel that they are of; its own weights may be on the meta device.
        state: by the model's names, all in the type that they are to have.
    """
    from huggingface_hub import save_torch_state_dict
    from transformers.core_model_loading import revert_weight_conversion

    folder.mkdir(parents=True, exist_ok=True)
    left_out = {*(getattr(model, "all_tied_weights_keys", None) or ()), *(model._keys_to_ignore_on_save or ())}
    kept = {name: _whole(tensor) for name, tensor in state.items() if name not in left_out}
    save_torch_state_dict(revert_weight_conversion(model, kept), folder, max_shard_size=max_shard_size)
    config = model.config
    vars(config).pop("transformers_weights", None)  # the original's own name of its weights
    config.architectures = [type(model).__name__]
    config.dtype = str(next(tensor.dtype for tensor in kept.values() if tensor.is_floating_point())).split(".")[1]
    config.to_json_file(folder / "config.json")


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that fills its storage. A gathered one may not, if its rows do not divide over the ranks."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def copy_side_files(source: str, tokenizer: Any, folder: Path, *, generates: bool = True) -> None:
    """Copy what lies beside the weights of ``source``, a folder or hub id, and the files of the tokenizer.

    A chat template that the tokenizer did not come with is written beside.

    Args:
        generates: the model is one that text is generated with, so that its settings for that are wanted.
    """
    patterns = [pattern for pattern in MODEL_FILES if generates or pattern != GENERATION]
    _copy(source, patterns, folder)
    if not _copy(tokenizer.name_or_path, (*TOKENIZER_FILES, *tokenizer.vocab_files_names.values()), folder):
        tokenizer.save_pretrained(folder)  # one that was made here
    template = tokenizer.chat_template
    if isinstance(template, str) and template != _template_in(folder):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _copy(source: str, patterns: Iterable[str], folder: Path) -> list[Path]:
    """The copies of a folder's or hub repository's files that fit."""
    copies = []
    root = _local(source, patterns)
    found = {file for pattern in patterns for file in root.glob(pattern)} if root is not None else set()
    for file in sorted(found):
        if not file.is_file() or file.name.endswith(WEIGHTS):
            continue
        copy = folder / file.relative_to(root)
        copy.parent.mkdir(exist_ok=True)
        try:
            copies.append(shutil.copyfile(file, copy))
        except PermissionError as error:
            logger.warning("%s is not copied to %s: %s", file, folder, error)
    return copies


def _local(source: str, patterns: Iterable[str]) -> Path | None:
    """The folder on this machine that holds the files of ``source``; None, with a warning, where there is none."""
    if not source or Path(source).is_dir():
        return Path(source) if source else None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(source, allow_patterns=list(patterns)))
    except (OSError, HFValidationError) as error:
        logger.warning("what lies beside the weights of %s is not copied: %s", source, error)
        return None


def _template_in(folder: Path) -> Any:
    """The chat template that a tokenizer in this folder comes with."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    return json.loads(settings.read_text(encoding="utf-8")).get("chat_template") if settings.is_file() else None
