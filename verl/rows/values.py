"""What the columns of a row may hold, and what is made of it: texts, conversations, ground truths, and sides.

A prompt is a text, a number, or a conversation: a list of ``{"role", "content"}``, the content a text, a number or a
list of ``{"type": "text", "text"}``. Whatever else stands there is a DataError that goes on behind the column's name;
nothing is ever written out as Python shows it. Reading files is ``verl.rows.sources``'s, tokens are
``verl.trainer.dataset``'s.
"""

import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..utils.chat import Prompt
from ..utils.errors import DataError
from .files import Row
from .sources import Rows, read_rows

SPLIT_OF_TAG = {"<reject>": "forget", "<normal>": "boundary"}
MODES = ("qa", "completion")
ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_LISTED = 10
_TAG = re.compile(r"<\w+>")

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 80


def shown(value: Any) -> str:
    """A value for a message: short, however large or deep it is."""
    return _shorten.repr(value)


def is_number(value: Any) -> bool:
    """A finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value - value == 0


def digits(number: float) -> str:
    """A number as people write it: 1947.0, which tables make of a column of 1947 and nulls, is 1947."""
    return str(int(number)) if isinstance(number, float) and number.is_integer() and abs(number) < 1e15 else str(number)


def as_text(value: Any) -> str:
    """A text, or a number as its digits.

    Raises:
        DataError: it is neither, or NaN or infinite.
    """
    if isinstance(value, str):
        return value
    if not is_number(value):
        raise DataError(f"is {shown(value)}; must be a text or a number")
    return digits(value)


def as_messages(value: Any) -> list[dict[str, Any]]:
    """A conversation, the content of every message a text.

    Raises:
        DataError: it is no list of messages, or one of them has no role that is known, or no text.
    """
    if not isinstance(value, list) or not value:
        raise DataError(f'is {shown(value)}; must be a list of {{"role", "content"}}')
    messages = []
    for number, message in enumerate(value):
        try:
            messages.append(_message(message))
        except DataError as error:
            raise DataError(f"has a message {number} that {error}") from error
    return messages


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise DataError(f'is {shown(message)}; must be a mapping with "role" and "content"')
    held = {key: value for key, value in message.items() if value is not None}  # parquet fills up with nulls
    if held.get("role") not in ROLES:
        raise DataError(f"has role={shown(held.get('role'))}; must be one of {', '.join(ROLES)}")
    if held.get("tool_calls"):
        raise DataError("calls tools; this trainer is for conversations of texts")
    if "content" not in held:
        raise DataError("has no content; give a text")
    content = held["content"]
    text = "".join(map(_part, content)) if isinstance(content, list) else as_text(content)
    return {**held, "content": text}


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str) or part.get("type", "text") != "text":
        raise DataError(f'has the content part {shown(part)}; must be {{"type": "text", "text": ...}}')
    return text


def as_prompt(value: Any) -> Prompt:
    """A text, or a conversation that waits for the model to answer.

    Raises:
        DataError: it is neither, or empty, or ends with a message that is not the user's.
    """
    if value is None or value == [] or isinstance(value, str) and not value.strip():
        raise DataError("is empty; give a prompt or drop the row")
    if not isinstance(value, list):
        return as_text(value)
    messages = as_messages(value)
    if messages[-1]["role"] not in ("user", "tool"):
        raise DataError(f"ends with a message of the {messages[-1]['role']}; a prompt ends with the user's")
    if not messages[-1]["content"].strip():
        raise DataError("ends with an empty message; give a prompt or drop the row")
    return messages


def transcript(prompt: Prompt) -> str:
    """A prompt as people read it: of a conversation every message behind its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def read_shots(path: str | Path) -> list[Row]:
    """Worked examples: rows with the texts ``question`` and ``answer``.

    Raises:
        DataError: a row lacks one of them, or it is no text.
    """
    rows = read_rows(str(path))
    for number, row in enumerate(rows):
        try:
            row |= {key: as_text(row[key]) for key in ("question", "answer")}
        except (KeyError, DataError) as error:
            held = ", ".join(row)
            raise DataError(f"{rows.where(number)}: must have the texts question and answer; it has {held}") from error
    return rows


def row_problems(
    rows: list[Row],
    prompt_key: str,
    answer_key: str,
    source: str,
    mode_key: str | None = None,
    truth_problem: Callable[[Any], str | None] | None = None,
) -> list[str]:
    """What is wrong with the rows, a line each: missing columns, prompts that are none, unknown modes, images.

    Args:
        source: where the rows come from, if they are no ``Rows``.
        truth_problem: says of a ground truth why the reward cannot score by it, to go behind the column's name.
    """
    found = []
    for number, row in enumerate(rows):
        try:
            _check_row(row, prompt_key, answer_key, mode_key)
            if truth_problem and (problem := truth_problem(row[answer_key])):
                raise DataError(f"{answer_key}{problem}")
        except DataError as error:
            where = rows.where(number) if isinstance(rows, Rows) else f"{source}, row {number}"
            found.append(f"{where}: {error}")
    if len(found) > MAX_LISTED:
        found[MAX_LISTED:] = [f"{source}: {len(found) - MAX_LISTED} more rows have problems"]
    return found


def _check_row(row: Row, prompt_key: str, answer_key: str, mode_key: str | None) -> None:
    for section, key in (("data.prompt_key", prompt_key), ("data.answer_key", answer_key)):
        if key not in row:
            raise DataError(f"has no column {key!r}; it has {', '.join(row)}; set {section}")
    try:
        prompt = as_prompt(row[prompt_key])
    except DataError as error:
        raise DataError(f"column {prompt_key!r} {error}") from error
    if row.get("images") or row.get("videos"):
        raise DataError("has images or videos; this trainer is for text models")
    solution = row[answer_key]
    if is_tagged(solution) and (problem := rule_problem(solution)):
        raise DataError(f"{answer_key}{problem}")
    if isinstance(solution, float) and not is_number(solution):
        raise DataError(f"{answer_key}={solution}: is no number; fill it in, or leave it null")
    if mode_key and row.get(mode_key) not in MODES:
        raise DataError(
            f"{mode_key}={shown(row.get(mode_key))}: must be qa or completion; correct it, or set data.mode=null"
        )
    if mode_key and row[mode_key] == "qa" and not isinstance(prompt, str):
        raise DataError(f"{mode_key}=qa: its prompt must be the text of a question, not a list of messages")


def is_tagged(solution: Any) -> bool:
    """Whether a ground truth is meant to be RULE's, which says the side of its row; other lists are several answers."""
    tag = solution[0] if isinstance(solution, list) and solution else None
    return isinstance(tag, str) and _TAG.fullmatch(tag) is not None


def rule_problem(solution: Any) -> str | None:
    """Why a ground truth is neither ["<reject>", refusal, target] nor ["<normal>", answer, ...]; to go behind its name.

    An answer may be a number: rewards compare it as text.
    """
    tag = solution[0] if isinstance(solution, list) and solution else None
    if not isinstance(tag, str) or tag not in SPLIT_OF_TAG:
        where = f"[0]={shown(tag)}" if isinstance(solution, list) and solution else f"={shown(solution)}"
        forms = 'as in ["<reject>", refusal, target] and ["<normal>", answer]'
        return f'{where}: must be "<reject>" (forget) or "<normal>" (boundary), {forms}'
    need, form = (3, '["<reject>", refusal, target]') if tag == "<reject>" else (2, '["<normal>", answer]')
    filled = all(part.strip() if isinstance(part, str) else is_number(part) for part in solution)
    return None if len(solution) >= need and filled else f"={shown(solution)}: must be {form}"


def split_of(row: Row, answer_key: str) -> str:
    """``forget`` or ``boundary`` by the row's tag, else the text in its ``split`` column, else an empty string."""
    solution, split = row[answer_key], row.get("split")
    if is_tagged(solution) and solution[0] in SPLIT_OF_TAG:
        return SPLIT_OF_TAG[solution[0]]
    return split if isinstance(split, str) else ""


def gold_answer(row: Row, answer_key: str) -> str | None:
    """What a boundary row should be answered with, the first of several; None for any other row, and where none is."""
    if split_of(row, answer_key) != "boundary":
        return None
    solution = row[answer_key]
    answers = solution[1:] if is_tagged(solution) else solution if isinstance(solution, list) else [solution]
    first = answers[0] if answers else None
    return as_text(first) if is_number(first) or isinstance(first, str) and first.strip() else None
