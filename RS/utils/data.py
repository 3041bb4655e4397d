"""From rows to token ids: which columns are prompt and response, and what happens to those that are too long.

Row formats, told apart by their columns:

- ``instruction`` (and ``input``, ``system``, ``history``), ``output``: alpaca, RULE's ``reject_target.json``
- ``messages``: a conversation that ends with the assistant's turn
- ``prompt``, ``solution``: RULE's RL rows; ``<reject>`` rows are the forget side, ``<normal>`` rows the retain side
- ``prompt``, ``response`` with two entries: RWKU's preference pairs, preferred first (dpo, altpo)
- ``text``: plain text (RWKU's ``positive.json``, MUSE's ``raw/``), trained on without a chat template, in pieces of
  ``cutoff_len`` tokens

Batching is ``RS.utils.batches``'.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from RS.config import RSConfig
from verl.rows.files import Row
from verl.rows.sources import read_rows, warn_once
from verl.rows.values import MAX_LISTED, SPLIT_OF_TAG, as_messages, as_prompt, as_text, is_number, rule_problem, shown
from verl.utils.chat import Prompt, encode_example
from verl.utils.errors import DataError

logger = logging.getLogger(__name__)

Side = Literal["forget", "retain"]


@dataclass(frozen=True)
class TextExample:
    """What is trained on, in words. ``prompt`` None: plain text."""

    prompt: Prompt | None
    response: str
    rejected: str | None = None
    where: str = ""
    """its files and row, for messages"""


@dataclass(frozen=True)
class Example:
    """The same in token ids; the responses close with the end of a turn unless they were cut."""

    prompt: list[int]
    response: list[int]
    rejected: list[int] | None = None


@dataclass
class Counts:
    """What became of the rows of one side."""

    rows: int = 0
    """rows of this side"""
    truncated: int = 0
    """examples whose response was cut at cutoff_len"""
    dropped: int = 0
    """rows whose prompt leaves no room for a response"""
    examples: int = 0
    response_tokens: int = 0


def read_side(config: RSConfig, side: Side) -> tuple[list[TextExample], list[str]]:
    """The examples of ``config.data`` or ``config.retain_data``, and what is wrong with its rows, a line each.

    Raises:
        DataError: a source that does not exist, cannot be read, or holds no rows.
    """
    rows = read_rows(config.data if side == "forget" else config.retain_data)
    examples, problems, read = [], [], set()
    for number, row in enumerate(rows):
        try:
            example, columns = _parse(row, side, config)
        except DataError as error:
            problems.append(f"{rows.where(number)}: {error}")
        else:
            examples += [] if example is None else [replace(example, where=rows.where(number))]
            read |= columns
    if len(problems) > MAX_LISTED:
        problems[MAX_LISTED:] = [f"{len(problems) - MAX_LISTED} more rows have problems"]
    if not examples and not problems:
        tag = "<reject>" if side == "forget" else "<normal>"
        problems.append(f"none of its {len(rows)} RL rows is tagged {tag}; give a file that has such rows")
    if not problems and (unread := sorted({column for row in rows for column in row} - read)):
        name = f"data={config.data}" if side == "forget" else f"retain_data={config.retain_data}"
        warn_once(f"{name}: its columns {', '.join(unread)} are not trained on")
    return examples, problems


def _parse(row: Row, side: Side, config: RSConfig) -> tuple[TextExample | None, set[str]]:
    """The example in a row, or None if the row belongs to the other side; and the columns that were read."""
    key = config.response_key if side == "forget" else None
    if side == "forget" and config.pushes_down and key is None and row.get("text") is None:
        raise DataError(
            f"objective={config.objective} would unlearn the refusals of this row; name the column of what "
            "must be forgotten, for example response_key=answer"
        )
    pair = row.get("response")
    is_pair = isinstance(pair, list) and len(pair) == 2
    if side == "forget" and config.objective == "altpo" and key is None and not is_pair:
        raise DataError(
            "objective=altpo would prefer the refusal of this row, which is dpo; name the column of another answer: "
            "response_key=alternate (data/alternate_answers.py writes it)"
        )
    form = next((form for form in _FORMS if row.get(form) is not None), None)
    if form is None:
        raise DataError(f"has columns {', '.join(row) or 'none'}; needs instruction, messages, prompt or text")
    example, columns = _FORMS[form](row, side, key)
    if example is None or side == "retain" or not config.has_pairs:
        return example, columns
    if is_pair:
        return replace(example, rejected=_text({"response": pair[1]}, "response")), columns | {"response"}
    rejected_key = config.own("rejected_key")
    return replace(example, rejected=_answer(row, rejected_key)), columns | {rejected_key}


_Parsed = tuple[TextExample | None, set[str]]


def _of_messages(row: Row, side: Side, key: str | None) -> _Parsed:
    messages = _named(as_messages, row, "messages")
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise DataError("messages: must end with the assistant's turn, which holds a text, behind at least one message")
    key = key or "messages"
    response = messages[-1]["content"] if key == "messages" else _text(row, key)
    return TextExample(messages[:-1], response), {"messages", key}


def _of_solution(row: Row, side: Side, key: str | None) -> _Parsed:
    solution, columns = row["solution"], {"prompt", "solution"}
    if problem := rule_problem(solution):
        raise DataError(f"solution{problem}")
    if (SPLIT_OF_TAG[solution[0]] == "forget") != (side == "forget"):
        return None, columns
    response = _answer(row, key) if key else as_text(solution[1])
    return TextExample(_named(as_prompt, row, "prompt"), response), columns | {key}


def _of_instruction(row: Row, side: Side, key: str | None) -> _Parsed:
    """Alpaca's: ``input`` goes below the instruction, ``system`` and ``history`` (pairs of texts) before it."""
    question = _text(row, "instruction")
    if row.get("input") not in (None, ""):
        question = f"{question}\n{_named(as_text, row, 'input')}"
    before = [{"role": "system", "content": _named(as_text, row, "system")}] if row.get("system") else []
    for pair in _pairs(row.get("history") or []):
        before += [{"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True)]
    prompt = [*before, {"role": "user", "content": question}] if before else question
    columns = {"instruction", "input", "system", "history", key or "output"}
    return TextExample(prompt, _text(row, key or "output")), columns


def _pairs(history: Any) -> list[list[str]]:
    well_formed = isinstance(history, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in history
    )
    if not well_formed:
        raise DataError(f"history={shown(history)}: must be a list of [question, answer]")
    return history


def _of_prompt(row: Row, side: Side, key: str | None) -> _Parsed:
    response = row.get(key or "response")
    if key is None and isinstance(response, list) and len(response) == 2:
        response = response[0]
    return (
        TextExample(_named(as_prompt, row, "prompt"), _text({**row, (key or "response"): response}, key or "response")),
        {"prompt", key or "response"},
    )


def _of_text(row: Row, side: Side, key: str | None) -> _Parsed:
    return TextExample(None, _text(row, "text")), {"text"}


_FORMS: dict[str, Callable[[Row, Side, str | None], _Parsed]] = {
    "messages": _of_messages,
    "solution": _of_solution,
    "instruction": _of_instruction,
    "prompt": _of_prompt,
    "text": _of_text,
}
"""The column that tells a format from those below it, and what reads its rows."""


def _named(read: Callable[[Any], Any], row: Row, key: str) -> Any:
    try:
        return read(row.get(key))
    except DataError as error:
        raise DataError(f"{key} {error}") from error


def _answer(row: Row, key: str) -> str:
    """A column's text; of several accepted answers, as RL rows may have them, the first."""
    value = row.get(key)
    return _text({**row, key: value[0]} if isinstance(value, list) and value else row, key)


def _text(row: Row, key: str) -> str:
    """A column's text or number, which may not be blank."""
    value = row.get(key)
    if not (isinstance(value, str) and value.strip() or is_number(value)):
        raise DataError(f"{key}={shown(value)}: must be text; it has columns {', '.join(row)}")
    return as_text(value)


def encode_side(texts: list[TextExample], tokenizer: Any, config: RSConfig, side: Side) -> tuple[list[Example], Counts]:
    """Token ids of every example, none longer than ``cutoff_len``.

    Raises:
        DataError: nothing is left, or the chat template does not take a row's conversation.
    """
    counts = Counts(rows=len(texts))
    examples: list[Example] = []
    for text in texts:
        made = _encode(text, tokenizer, config, counts)
        counts.dropped += not made
        examples += made
    counts.examples = len(examples)
    counts.response_tokens = sum(len(example.response) + len(example.rejected or ()) for example in examples)
    logger.info(
        "%s side: %d rows, %d examples with %d response tokens; %d responses cut and %d rows dropped at cutoff_len=%d",
        side,
        counts.rows,
        counts.examples,
        counts.response_tokens,
        counts.truncated,
        counts.dropped,
        config.cutoff_len,
    )
    if not examples:
        raise DataError(f"cutoff_len={config.cutoff_len}: no row of the {side} side fits; raise it")
    return examples, counts


def _encode(text: TextExample, tokenizer: Any, config: RSConfig, counts: Counts) -> list[Example]:
    if text.prompt is None:
        return _encode_text(text, tokenizer, config)
    own_system = not isinstance(text.prompt, str) and text.prompt[0]["role"] == "system"
    system = None if own_system else config.system_prompt
    encode = partial(encode_example, tokenizer, system=system, chat_template_kwargs=config.chat_template_kwargs)
    try:
        prompt, response = encode(text.prompt, text.response)
    except DataError as error:
        raise DataError(f"{text.where}: {error}; correct it, or set override_chat_template") from error
    rejected = None
    if text.rejected is not None:
        rejected = encode(text.prompt, text.rejected)[1]
    room = config.cutoff_len - len(prompt)
    if room < 1:
        return []
    counts.truncated += max(len(response), len(rejected or ())) > room
    return [Example(prompt, response[:room], None if rejected is None else rejected[:room])]


def _encode_text(text: TextExample, tokenizer: Any, config: RSConfig) -> list[Example]:
    """Pieces of a text; the first token of a piece (BOS where there is one) is what the others are predicted from."""
    ids = tokenizer.encode(text.response, add_special_tokens=False)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    size = config.cutoff_len - len(bos)
    pieces = [bos + ids[start : start + size] for start in range(0, len(ids), size)] if size > 0 else []
    return [Example(piece[:1], piece[1:]) for piece in pieces if len(piece) > 1]
