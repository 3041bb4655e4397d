"""From rows to token ids: which columns are prompt and response, and what happens to those that are too long.

Row formats, told apart by their columns:

- ``instruction`` (and ``input``), ``output``: alpaca, RULE's ``reject_target.json``
- ``messages``: a conversation that ends with the assistant's turn
- ``prompt``, ``solution``: RULE's RL rows; ``<reject>`` rows are the forget side, ``<normal>`` rows the retain side
- ``prompt``, ``response`` with two entries: RWKU's preference pairs, preferred first (dpo only)
- ``text``: plain text (RWKU's ``positive.json``, MUSE's ``raw/``), trained on without a chat template, in pieces of
  ``cutoff_len`` tokens

Batching is ``RS.utils.batches``'.
"""

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from verl.utils.chat import Prompt, encode_example
from verl.utils.dataset import MAX_LISTED, SPLIT_OF_TAG, read_rows
from verl.utils.errors import DataError

if TYPE_CHECKING:
    from RS.config import RSConfig

logger = logging.getLogger(__name__)

Side = Literal["forget", "retain"]
Row = dict[str, Any]


@dataclass(frozen=True)
class TextExample:
    """What is trained on, in words. ``prompt`` None: plain text."""

    prompt: Prompt | None
    response: str
    rejected: str | None = None


@dataclass(frozen=True)
class Example:
    """The same in token ids; the responses end in EOS unless they were cut."""

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


def read_side(config: "RSConfig", side: Side) -> tuple[list[TextExample], list[str]]:
    """The examples of ``config.data`` or ``config.retain_data``, and what is wrong with its rows, a line each.

    Raises:
        DataError: a source that does not exist, cannot be parsed, or holds no rows.
    """
    rows = read_rows(config.data if side == "forget" else config.retain_data)
    pairs = side == "forget" and config.objective == "dpo"
    examples, problems = [], []
    for number, row in enumerate(rows):
        try:
            example = _parse(row, side, config.response_key if side == "forget" else None)
            if side == "forget" and config.pushes_down and config.response_key is None and "text" not in row:
                raise DataError(
                    f"objective={config.objective} would unlearn the refusals of this row; name the column of what "
                    "must be forgotten, for example response_key=answer"
                )
            if pairs and example is not None:
                example = _with_rejected(example, row, config.rejected_key)
        except DataError as error:
            problems.append(f"row {number}: {error}")
        else:
            examples += [] if example is None else [example]
    if len(problems) > MAX_LISTED:
        problems[MAX_LISTED:] = [f"{len(problems) - MAX_LISTED} more rows have problems"]
    if not examples and not problems:
        tag = "<reject>" if side == "forget" else "<normal>"
        problems.append(f"none of its {len(rows)} RL rows is tagged {tag}; give a file that has such rows")
    return examples, problems


def _parse(row: Row, side: Side, response_key: str | None) -> TextExample | None:
    """The example in a row, or None if the row belongs to the other side."""
    if "messages" in row:
        return _from_messages(row["messages"])
    if "solution" in row:
        solution = row["solution"]
        if not isinstance(solution, list) or len(solution) < 2 or solution[0] not in SPLIT_OF_TAG:
            raise DataError(
                f'solution={row["solution"]!r}: must be ["<reject>", refusal, target] or ["<normal>", answer]'
            )
        if (SPLIT_OF_TAG[solution[0]] == "forget") != (side == "forget"):
            return None
        return TextExample(_text(row, "prompt"), _text(row, response_key) if response_key else str(solution[1]))
    if "instruction" in row:
        prompt = "\n".join(part for part in (_text(row, "instruction"), row.get("input")) if part)
        return TextExample(prompt, _text(row, response_key or "output"))
    if "prompt" in row:
        return TextExample(_text(row, "prompt"), _text(row, response_key or "response", index=0))
    if "text" in row:
        return TextExample(None, _text(row, "text"))
    raise DataError(f"has columns {', '.join(row) or 'none'}; needs instruction, messages, prompt or text")


def _from_messages(messages: Any) -> TextExample:
    well_formed = isinstance(messages, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("content"), str) and "role" in turn for turn in messages
    )
    if not well_formed or len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise DataError('messages: must be a list of {"role", "content"} that ends with the assistant\'s turn')
    return TextExample(messages[:-1], messages[-1]["content"])


def _with_rejected(example: TextExample, row: Row, key: str) -> TextExample:
    pair = row.get("response")
    if isinstance(pair, list) and len(pair) == 2:
        return TextExample(example.prompt, example.response, _text(row, "response", index=1))
    return TextExample(example.prompt, example.response, _text(row, key))


def _text(row: Row, key: str, index: int | None = None) -> str:
    value = row.get(key)
    if index is not None and isinstance(value, list):
        value = value[index] if len(value) == 2 else None
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{key}={row.get(key)!r}: must be text; it has columns {', '.join(row)}")
    return value


def encode_side(
    texts: list[TextExample], tokenizer: Any, config: "RSConfig", side: Side
) -> tuple[list[Example], Counts]:
    """Token ids of every example, none longer than ``cutoff_len``.

    Raises:
        DataError: nothing is left.
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


def _encode(text: TextExample, tokenizer: Any, config: "RSConfig", counts: Counts) -> list[Example]:
    if text.prompt is None:
        return _encode_text(text, tokenizer, config)
    encode = partial(
        encode_example, tokenizer, system=config.system_prompt, chat_template_kwargs=config.chat_template_kwargs
    )
    prompt, response = encode(text.prompt, text.response)
    rejected = None
    if text.rejected is not None:
        rejected = encode(text.prompt, text.rejected)[1]
    room = config.cutoff_len - len(prompt)
    if room < 1:
        return []
    counts.truncated += max(len(response), len(rejected or ())) > room
    return [Example(prompt, response[:room], None if rejected is None else rejected[:room])]


def _encode_text(text: TextExample, tokenizer: Any, config: "RSConfig") -> list[Example]:
    """Pieces of a text; the first token of a piece (BOS where there is one) is what the others are predicted from."""
    ids = tokenizer.encode(text.response, add_special_tokens=False)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    size = config.cutoff_len - len(bos)
    pieces = [bos + ids[start : start + size] for start in range(0, len(ids), size)] if size > 0 else []
    return [Example(piece[:1], piece[1:]) for piece in pieces if len(piece) > 1]
