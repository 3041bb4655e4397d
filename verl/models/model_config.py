"""What a model's configuration says of its language model, which some keep nested in a part (Gemma 3, Llama 4).

Only transformers' own classes read it here, so no weights are needed and no code that comes with a model runs.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import ConfigError, closest

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def decoder_settings(config: "PretrainedConfig") -> dict[str, Any]:
    """The entries of the language model's part, defaults included, under Llama's names where the model has others."""
    inner = config.get_text_config()
    return inner.to_dict() | {name: getattr(inner, own) for name, own in inner.attribute_map.items()}


def max_positions(config: "PretrainedConfig") -> int | None:
    """Tokens of the longest sequence that a model is made for; None where it names no limit."""
    return decoder_settings(config).get("max_position_embeddings")


def read_decoder_settings(file: Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``decoder_settings`` of a config.json; what it says itself where transformers knows no such model.

    Raises:
        ConfigError: it is no JSON object, or its values are none that this kind of model can have.
    """
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file}: is no JSON ({error}); copy it again") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{file}: is no JSON object; copy it again")
    kind = settings.get("model_type")
    if kind is None or not _is_known(kind):
        settings |= dict(overrides or {})
        return settings | (settings.get("text_config") or {})
    from transformers import CONFIG_MAPPING

    with readable(str(file.parent)):
        config = CONFIG_MAPPING[kind].from_dict(settings)
    override(config, overrides or {})
    return decoder_settings(config)


def _is_known(kind: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return kind in CONFIG_MAPPING_NAMES


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Makes what transformers raises over a configuration a ConfigError that names the model."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (ValueError, TypeError, OSError, StrictDataclassError) as error:
        if isinstance(error, ConfigError):
            raise
        fix = "give the folder or hub id of a model that this transformers knows, or correct its config.json"
        if "trust_remote_code" in str(error):
            fix = "set trust_remote_code=true where you trust the code that comes with it"
        raise ConfigError(
            f"model {path}: its config.json cannot be used ({' '.join(str(error).split())}); {fix}"
        ) from error


def override(config: "PretrainedConfig", entries: Mapping[str, Any]) -> None:
    """Replace entries; those of the language model's part are found there, and a part can be given as a mapping.

    Raises:
        ConfigError: an entry that this configuration does not have, and so would ignore.
    """
    for key, value in entries.items():
        owner = next((part for part in (config, config.get_text_config()) if hasattr(part, key)), None)
        if owner is None:
            known = config.to_dict() | config.get_text_config().to_dict()
            near = closest(key, known)
            hint = f"did you mean {near}?" if near else f"it has {', '.join(sorted(known))}"
            raise ConfigError(f"model.override_config.{key}={value}: {type(config).__name__} has no such entry; {hint}")
        if isinstance(value, Mapping) and hasattr(getattr(owner, key), "to_dict"):
            override(getattr(owner, key), value)
        else:
            setattr(owner, key, value)


def engine_overrides(config: "PretrainedConfig", entries: Mapping[str, Any]) -> dict[str, Any]:
    """The same entries where vLLM looks for them: those of the language model's part under that part's name."""
    inner = config.get_text_config()
    part = next((name for name in config.sub_configs if getattr(config, name, None) is inner), None)
    nested = {key: value for key, value in entries.items() if not hasattr(config, key)}
    outer = {key: value for key, value in entries.items() if key not in nested}
    return outer | ({part: {**outer.get(part, {}), **nested}} if nested else {})
