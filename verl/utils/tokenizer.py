"""Loads a tokenizer the way every part of RULE wants it: with a pad token, and a chat template of the user's choice."""

from pathlib import Path
from typing import Any

from .errors import ConfigError


def get_tokenizer(
    model_path: str, override_chat_template: str | None = None, trust_remote_code: bool = False, **kwargs: Any
) -> Any:
    """The tokenizer of a model folder or hub id.

    Args:
        override_chat_template: a jinja template, or the path of a file that holds one.

    Raises:
        ConfigError: there is no tokenizer under this name, neither here nor on the hub.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code, **kwargs)
    except OSError as error:
        raise ConfigError(
            f"model {model_path}: is neither a folder with a tokenizer nor a model that the hub gives: {error}"
        ) from error
    if override_chat_template is not None:
        tokenizer.chat_template = read_template(override_chat_template)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_template(text_or_path: str) -> str:
    """A jinja template given as text or as a path ending in ``.jinja``; a missing file raises FileNotFoundError."""
    if text_or_path.endswith(".jinja"):
        return Path(text_or_path).read_text(encoding="utf-8")
    return text_or_path


def get_processor(model_path: str, **kwargs: Any) -> None:
    """EasyR1's name for a vision model's processor. RULE trains text models, so there is none."""
