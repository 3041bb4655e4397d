"""Loads a tokenizer the way every part of RULE wants it: with a pad token, and a chat template of the user's choice."""

from pathlib import Path
from typing import Any

from .chat import written_end
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
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code, **kwargs)
    except (OSError, ValueError, TypeError, ImportError, StrictDataclassError) as error:
        fix = "; set trust_remote_code=true where you trust it" if "trust_remote_code" in str(error) else ""
        raise ConfigError(
            f"model {model_path}: is neither a folder with a tokenizer nor a model that the hub gives: {error}{fix}"
        ) from error
    if override_chat_template is not None:
        tokenizer.chat_template = read_template(override_chat_template)
    if tokenizer.pad_token_id is None:
        end = written_end(tokenizer)[-1:] if tokenizer.eos_token is None else [tokenizer.eos_token_id]
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end)[0] if end else None
    return tokenizer


def read_template(text_or_path: str) -> str:
    """A jinja template given as text or as a path ending in ``.jinja``; a missing file raises FileNotFoundError."""
    if text_or_path.endswith(".jinja"):
        return Path(text_or_path).read_text(encoding="utf-8-sig")
    return text_or_path


def get_processor(model_path: str, **kwargs: Any) -> None:
    """EasyR1's name for a vision model's processor. RULE trains text models, so there is none."""
