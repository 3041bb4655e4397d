"""What the dry run says of a configuration's memory and time, from the files that it names."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.model_config import read_decoder_settings
from ..rows.values import as_prompt, transcript
from .estimate import estimate
from .flops import ModelShape
from .hardware import Hardware
from .micro_batches import is_open, lines_of, with_micro_batches

if TYPE_CHECKING:
    from ..config.run import PPOConfig

CHARACTERS_PER_TOKEN = 4


def describe(config: "PPOConfig", rows: list[Mapping[str, Any]]) -> list[str]:
    """The estimate on this machine, or on ``trainer.dry_run_gpu``, as lines; or the reason why there is none."""
    worker = config.worker
    models = {role: worker.model_of(role) for role in ("actor", "ref", "critic")}
    try:
        shapes = {role: _shape(model.model_path, model.override_config) for role, model in models.items()}
        lengths = [len(transcript(as_prompt(row[config.data.prompt_key]))) for row in rows]
        # Chat markup, about; a template of one's own is not looked at.
        prompt = 8 + sum(lengths) // max(1, len(lengths)) // CHARACTERS_PER_TOKEN
        wanted = config.trainer.dry_run_gpu
        hardware = Hardware.named(wanted) if wanted else Hardware.here(worker.actor.fsdp.mp_param_dtype)
        chosen = with_micro_batches(config, shapes, hardware.memory)
        lines = [*(lines_of(chosen) if is_open(config) else []), *estimate(chosen, shapes, hardware, prompt).lines()]
        if not wanted and not config.trainer.is_local:
            lines.append("hardware               this machine's: the cluster's is not known; see trainer.dry_run_gpu")
        return lines
    except (ValueError, OSError) as error:
        sizes = lines_of(with_micro_batches(config, None, None)) if is_open(config) else []
        return [*sizes, f"memory and time        no estimate: {error}"]


def _shape(path: str, override: Mapping[str, Any]) -> ModelShape:
    file = Path(path) / "config.json"
    if not file.is_file():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(path, "config.json")
        if not isinstance(cached, str):
            raise ValueError(f"{path} is not on this machine yet")
        file = Path(cached)
    return ModelShape.of(read_decoder_settings(file, override))
