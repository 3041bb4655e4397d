"""Turns prompts into token ids, and says where answers end. Training, rollout and evaluation all come through here, so
they see the same text and stop at the same tokens."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any

import jinja2

from .errors import ConfigError, DataError

Prompt = str | list[dict[str, str]]

ASKED, ANSWERED, ASKED_AGAIN = "Qasked", "Aanswered", "Qagain"
"""Contents of the turns that templates are tried with: words that no template writes itself or changes"""


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
    template = _template(tokenizer) or ""
    for name in chat_template_kwargs or ():
        if not re.search(rf"\b{re.escape(name)}\b", template) or name in ("messages", "add_generation_prompt"):
            known = "has none" if not template else "does not read it"
            raise ConfigError(
                f"{key}={dict(chat_template_kwargs)}: {name}: the model's chat template {known}; remove it"
            )


def check_system_prompt(
    tokenizer: Any, system: str | None, key: str, chat_template_kwargs: Mapping[str, Any] | None = None
) -> None:
    """Raise ConfigError for a system message that the chat template refuses or leaves out; ``key`` is its setting."""
    if not system:
        return
    try:
        encode_prompt(tokenizer, ASKED, system, chat_template_kwargs)
    except DataError as error:
        raise ConfigError(
            f"{key}={system!r}: {error}; leave it out, put its words into the prompts, or take a chat template that "
            "has a system role"
        ) from error


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

    Raises:
        DataError: the chat template refuses the roles of these messages, or leaves one of them out.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    if tokenizer.chat_template:
        options = {"add_generation_prompt": True, **(chat_template_kwargs or {})}
        _check_nothing_is_left_out(tokenizer, messages, options)
        return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
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
    """Token ids of a prompt and of its response, which closes with ``turn_end`` so that the model learns to stop.

    Raises:
        DataError: as ``encode_prompt``.
        ConfigError: as ``turn_end``.
    """
    prompt_ids = encode_prompt(tokenizer, prompt, system, chat_template_kwargs)
    return prompt_ids, encode_response(tokenizer, response, chat_template_kwargs)


def encode_response(tokenizer: Any, response: str, chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
    """Token ids of a response as they stand behind its prompt, closed with ``turn_end``; raises as that does."""
    space = "" if tokenizer.chat_template else " "
    response_ids = tokenizer.encode(space + response, add_special_tokens=False)
    return [*response_ids, *turn_end(tokenizer, chat_template_kwargs)]


# ---- where answers end ----------------------------------------------------------------------------------------------
def turn_end(tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
    """Token ids that close an assistant's turn; at the last of them generation stops.

    What the chat template writes behind an answer, up to its first special token (``<end_of_turn>``, ``<|eot_id|>``,
    ``<|im_end|>``). Where it writes none, or where there is no template: EOS.

    Raises:
        ConfigError: neither the template nor the tokenizer has such a token.
    """
    if end := written_end(tokenizer, chat_template_kwargs):
        return end
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"tokenizer {tokenizer.name_or_path}: has no eos_token, and its chat template writes no special token "
            "behind an answer, so nothing says where answers end; set eos_token in its tokenizer_config.json"
        )
    return [tokenizer.eos_token_id]


def written_end(tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
    """``turn_end`` as the chat template writes it; empty where it writes none, or where there is no template."""
    template = _template(tokenizer)
    options = json.dumps(dict(chat_template_kwargs or {}), sort_keys=True)
    return list(_written_end(tokenizer, template, options)) if template else []


def stop_token_ids(tokenizer: Any, model_path: str, chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
    """Every token that ends a response: the chat template's, the tokenizer's EOS, and those that the model's generation
    config lists (its config.json, where there is none)."""
    from transformers import GenerationConfig, PreTrainedConfig

    try:
        listed = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:  # the folder has no generation config
        settings = PreTrainedConfig.get_config_dict(model_path)[0]
        nested = settings.get("text_config") or {}
        listed = nested.get("eos_token_id") if settings.get("eos_token_id") is None else settings["eos_token_id"]
    ends = {*written_end(tokenizer, chat_template_kwargs)[-1:], tokenizer.eos_token_id}
    return sorted({*ends, *(listed if isinstance(listed, list) else [listed])} - {None})


@lru_cache(maxsize=8)
def _written_end(tokenizer: Any, template: str, options: str) -> tuple[int, ...]:
    """See ``written_end``.

    Some templates write the opening of the next turn behind every conversation, some close a turn only where another
    follows, and some close the last one differently. So a conversation that ends with an answer is held against one
    that goes on, and against one that ends with a question.
    """

    def rendered(*contents: str) -> str:
        roles = ("user", "assistant", "user")
        turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
        for system in ([], [{"role": "system", "content": "S"}]):  # a few templates want one
            try:
                return _render(tokenizer, [*system, *turns], json.loads(options))
            except DataError:
                continue
        return ""

    question, answer, more = rendered(ASKED), rendered(ASKED, ANSWERED), rendered(ASKED, ANSWERED, ASKED_AGAIN)
    opening, _, tail = question.rpartition(ASKED)
    behind = answer.rpartition(ANSWERED)[2] if ANSWERED in answer else ""
    goes_on = ANSWERED in more and ASKED_AGAIN in more
    between = more.rpartition(ANSWERED)[2].partition(ASKED_AGAIN)[0] if goes_on else ""
    last, inner = (_encode_behind_answer(tokenizer, text) for text in (behind, between))
    found = _until_special(tokenizer, _common_start(last, inner))
    if not found and (behind != tail or not goes_on):
        found = _until_special(tokenizer, last)
    if not found:
        opened = _common_start(inner[::-1], tokenizer.encode(opening, add_special_tokens=False)[::-1])
        found = _until_special(tokenizer, inner[: len(inner) - len(opened)])
    return tuple(found)


def _encode_behind_answer(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text as they are behind an answer: some tokenizers begin a text with a space of their own."""
    whole, answer = (tokenizer.encode(part, add_special_tokens=False) for part in (ANSWERED + text, ANSWERED))
    if whole[: len(answer)] == answer:
        return whole[len(answer) :]
    return tokenizer.encode(text, add_special_tokens=False)


def _common_start(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [first for first, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]


def _until_special(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """The ids up to the first that no ordinary text has; none where all of them are text."""
    # Blanks are added tokens of some vocabularies (Gemma's runs of newlines), and no ends.
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if str(token).replace("▁", " ").strip()}
    unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id}
    special = {*tokenizer.all_special_ids, *added} - unknown
    place = next((place for place, token in enumerate(ids) if token in special), None)
    return [] if place is None else list(ids[: place + 1])


def _template(tokenizer: Any) -> str | None:
    """The template in force: some tokenizers bring several."""
    return tokenizer.get_chat_template() if tokenizer.chat_template else None


def _render(tokenizer: Any, messages: list[dict[str, str]], options: Mapping[str, Any]) -> str:
    """The text of a conversation.

    Raises:
        ConfigError: the template is no jinja.
        DataError: the template refuses the conversation.
    """
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            f"override_chat_template: line {error.lineno} of the chat template is no jinja: {error.message}; correct it"
        ) from error
    except jinja2.TemplateError as error:
        raise DataError(
            f"the model's chat template refuses messages of the roles {_roles(messages)} ({error})"
        ) from error


def _check_nothing_is_left_out(tokenizer: Any, messages: list[dict[str, str]], options: Mapping[str, Any]) -> None:
    """Raise DataError for a message that the template does not write; the model's earlier answers it may shorten."""
    text = _render(tokenizer, messages, options)
    for number, message in enumerate(messages):
        content = message["content"]
        if message["role"] == "assistant" or (message["role"] == "user" and content.strip() in text):
            continue
        changed = {**message, "content": content + ASKED}  # it may write the words in another way
        if _render(tokenizer, [*messages[:number], changed, *messages[number + 1 :]], options) == text:
            raise DataError(
                f"the model's chat template leaves the {message['role']} message out of the roles {_roles(messages)}"
            )


def _roles(messages: Iterable[Mapping[str, str]]) -> str:
    return ", ".join(message["role"] for message in messages)
