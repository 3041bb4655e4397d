"""Turns prompts into token ids. Training, rollout and evaluation all come through here, so they see the same text."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import ConfigError

Prompt = str | list[dict[str, str]]


def few_shot(shots: Sequence[Mapping[str, str]], question: str, *, as_chat: bool) -> Prompt:
    """A question behind worked examples, as MUSE asks: one text in its "Question:/Answer:" form, or earlier exchanges.

    Args:
        shots: each with ``question`` and ``answer``.
    """
    if as_chat:
        turns = [
            {"role": role, "content": shot[key]}
            for shot in shots
            for role, key in (("user", "question"), ("assistant", "answer"))
        ]
        return [*turns, {"role": "user", "content": question}]
    asked = [f"Question: {shot['question']}\nAnswer: {shot['answer']}\n\n" for shot in shots]
    return "".join(asked) + f"Question: {question}\nAnswer: "


def check_template_kwargs(tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None, key: str) -> None:
    """Raise ConfigError for an argument that the chat template does not read; ``key`` is the setting's name."""
    template = tokenizer.chat_template or ""
    for name in chat_template_kwargs or ():
        if not re.search(rf"\b{re.escape(name)}\b", template) or name in ("messages", "add_generation_prompt"):
            known = "has none" if not template else "does not read it"
            raise ConfigError(
                f"{key}={dict(chat_template_kwargs)}: {name}: the model's chat template {known}; remove it"
            )


def encode_prompt(
    tokenizer: Any,
    prompt: Prompt,
    system: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a prompt, ready for the model to answer.

    With a chat template: the conversation and the generation prompt. Without one (a base model): the BOS token if the
    tokenizer has one, then the text.

    Args:
        prompt: the user's words, or a list of ``{"role", "content"}`` messages.
        system: a system message put before the conversation.
        chat_template_kwargs: further arguments of the chat template, for example ``enable_thinking``.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False, **(chat_template_kwargs or {})
        )
    text = "\n\n".join(message["content"] for message in messages)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return bos + tokenizer.encode(text, add_special_tokens=False)


def encode_example(
    tokenizer: Any,
    prompt: Prompt,
    response: str,
    system: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of its response, the response ending in EOS so that the model learns to stop."""
    space = "" if tokenizer.chat_template else " "
    response_ids = tokenizer.encode(space + response, add_special_tokens=False)
    return encode_prompt(tokenizer, prompt, system, chat_template_kwargs), [*response_ids, tokenizer.eos_token_id]
