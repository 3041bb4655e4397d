"""Turns a training state (torch.distributed.checkpoint) into a Hugging Face folder, on one machine without a GPU.

    python3 scripts/model_merger.py local_dir=CHECKPOINTS/global_step_N/actor [out=DIR] [lora=adapter] [dtype=bf16]

It reads ``<local_dir>/dcp`` (entry ``model``: the module's state dict, saved by any number of ranks), configuration,
tokenizer and generation config in ``<local_dir>/huggingface``, and for LoRA
``<local_dir>/lora_adapter/adapter_config.json``. Optimiser state is left where it is. The weights must fit into CPU
memory.
"""

import logging
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed.checkpoint as dcp

from verl.config.worker import ModelConfig
from verl.models.build import empty_model, load_config
from verl.models.hf_folder import write_model
from verl.settings.path_types import PathText
from verl.settings.reader import load
from verl.utils.errors import ConfigError, DataError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MergeConfig:
    local_dir: PathText
    """folder of one model in a checkpoint: <save_checkpoint_path>/global_step_N/actor, or critic"""
    out: PathText | None = None
    """the folder to make; null: <local_dir>/merged"""
    lora: Literal["merged", "adapter"] = "merged"
    """LoRA training only: add the adapters to the weights, or write them alone as a PEFT folder"""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """type of the written weights; auto: the one that config.json names. Adapters keep theirs"""
    trust_remote_code: bool = False
    """run code that comes with the model"""

    @property
    def target(self) -> Path:
        return Path(self.out) if self.out else Path(self.local_dir) / "merged"

    @property
    def lora_file(self) -> Path:
        return Path(self.local_dir) / "lora_adapter" / "adapter_config.json"

    def problems(self) -> list[str]:
        needed = [Path(self.local_dir) / "dcp" / ".metadata", Path(self.local_dir) / "huggingface" / "config.json"]
        found = [f"local_dir={self.local_dir}: {path} is missing" for path in needed if not path.is_file()]
        if self.target.exists():
            found.append(f"out={self.target}: exists already; name another folder or remove it")
        if self.lora == "adapter" and not self.lora_file.is_file():
            found.append(f"lora=adapter: there is no {self.lora_file}, so nothing was trained with LoRA; leave it out")
        return found


def read_model_state(folder: Path) -> dict[str, torch.Tensor]:
    """The whole tensors under ``model`` of a distributed checkpoint, by their names in the module."""
    reader = dcp.FileSystemReader(folder)
    tensors = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in reader.read_metadata().state_dict_metadata.items()
        if key.startswith("model.") and isinstance(entry, dcp.TensorStorageMetadata)
    }
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return {key.removeprefix("model."): tensor for key, tensor in tensors.items()}


def build(config: MergeConfig) -> Any:
    """The model with its trained weights: a PreTrainedModel, or a PeftModel around one.

    Raises:
        DataError: the state's names are not this model's.
    """
    source = ModelConfig(str(Path(config.local_dir) / "huggingface"), trust_remote_code=config.trust_remote_code)
    hf_config = load_config(source)
    value_head = hf_config.architectures[0].endswith("ForTokenClassification")
    base = empty_model(hf_config, value_head=value_head, trust_remote_code=config.trust_remote_code)
    model = _with_adapters(base, config.lora_file) if config.lora_file.is_file() else base
    state = read_model_state(Path(config.local_dir) / "dcp")
    unexpected = model.load_state_dict(state, strict=False, assign=True).unexpected_keys
    base.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing or unexpected:
        raise DataError(
            f"{config.local_dir}: the training state is not of this model; without a value: {missing[:5]}, "
            f"without a place: {unexpected[:5]}; check huggingface/config.json and lora_adapter/adapter_config.json"
        )
    return model


def merge(config: MergeConfig) -> Path:
    """Write the folder and return its path. It appears under its name only when it is whole."""
    model = build(config)
    source = Path(config.local_dir) / "huggingface"
    config.target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.target.parent, prefix=".merging-") as beside:
        folder = Path(beside) / config.target.name
        if config.lora == "adapter":
            model.save_pretrained(folder, save_embedding_layers=False)
            skip = (*WEIGHTS, "config.json", "generation_config.json")
        else:
            model = model.merge_and_unload() if config.lora_file.is_file() else model
            model.to(DTYPES.get(config.dtype, model.config.dtype))
            write_model(model, model.state_dict(), folder, max_shard_size="5GB")
            skip = (*WEIGHTS, "config.json")
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*skip), dirs_exist_ok=True)
        folder.rename(config.target)
    return config.target


def _with_adapters(base: Any, lora_file: Path) -> Any:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig.from_peft_type(**LoraConfig.from_json_file(str(lora_file)))
    trained_from, settings.base_model_name_or_path = settings.base_model_name_or_path, None
    model = get_peft_model(base, settings, autocast_adapter_dtype=False)
    settings.base_model_name_or_path = trained_from  # get_peft_model put the checkpoint's own folder here
    return model


def main(argv: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        path = merge(load(MergeConfig, argv))
    except (ConfigError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    logger.info("wrote %s", path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
