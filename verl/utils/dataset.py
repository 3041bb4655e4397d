"""Reads prompt rows and turns them into token ids.

Rows come from JSON, JSONL or parquet files, folders of them, or hub datasets (``data@split``). Reading and checking
rows needs neither a model nor a tokenizer, so a dry run can do it; ``RLHFDataset`` adds the tokens. Batching and
shuffling are ``verl.trainer.data_loader``'s.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from .chat import Prompt, encode_prompt, few_shot
from .errors import DataError, bullet_list
from .tokenizer import read_template

logger = logging.getLogger(__name__)

SPLIT_OF_TAG = {"<reject>": "forget", "<normal>": "boundary"}
MODES = ("qa", "completion")
MANY_ROWS = 20_000
MAX_LISTED = 10

Row = dict[str, Any]


def read_rows(sources: str | list[str]) -> list[Row]:
    """All rows of the given files, folders or hub ids, in order.

    Raises:
        DataError: a source that does not exist, cannot be parsed, or holds no rows.
    """
    names: list[str] = []
    for source in [sources] if isinstance(sources, str) else sources:
        names += [source] if Path(source.partition("@")[0]).exists() else source.split(",")  # a path may have a comma
    return [row for name in names for row in _read_source(name.strip())]


def _read_source(name: str) -> list[Row]:
    place, _, split = name.partition("@")
    path = Path(place)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".jsonl", ".parquet"))
        rows = [row for file in files for row in _read_file(file, split)]
    elif path.is_file():
        rows = _read_file(path, split)
    elif path.suffix or place.count("/") != 1 or path.is_absolute():
        raise DataError(f"{name}: there is no such file; give a JSON, JSONL or parquet file, a folder, or a hub id")
    else:
        rows = _read_hub(place, split or "train")
    if not rows:
        raise DataError(f"{name}: holds no rows; give a file with at least one")
    return rows


def _read_file(path: Path, split: str) -> list[Row]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    text = path.read_text(encoding="utf-8")
    try:
        value = (
            [json.loads(line) for line in text.splitlines() if line] if path.suffix == ".jsonl" else json.loads(text)
        )
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: is not valid JSON: {error}") from error
    if isinstance(value, dict) and split in value:
        value = value[split]
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise DataError(f"{path}: must hold a list of rows, each a mapping of columns")
    return value


def _read_hub(name: str, split: str) -> list[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return load_dataset(name, split=split).to_list()
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError, ValueError) as error:
        raise DataError(f"{name}@{split}: is neither a file here nor a dataset on the hub: {error}") from error


def row_problems(
    rows: list[Row], prompt_key: str, answer_key: str, source: str, mode_key: str | None = None
) -> list[str]:
    """What is wrong with the rows, a line each: missing columns, empty prompts, unknown tags and modes, images."""
    found = []
    for number, row in enumerate(rows):
        problem = _row_problem(row, prompt_key, answer_key)
        if problem is None and mode_key:
            problem = _mode_problem(row.get(mode_key), row[prompt_key], mode_key)
        if problem:
            found.append(f"{source}, row {number}: {problem}")
    if len(found) > MAX_LISTED:
        found[MAX_LISTED:] = [f"{source}: {len(found) - MAX_LISTED} more rows have problems"]
    return found


def _row_problem(row: Row, prompt_key: str, answer_key: str) -> str | None:
    for section, key in (("data.prompt_key", prompt_key), ("data.answer_key", answer_key)):
        if key not in row:
            return f"has no column {key!r}; it has {', '.join(row)}; set {section}"
    if not row[prompt_key]:
        return f"column {prompt_key!r} is empty; give a prompt or drop the row"
    if row.get("images") or row.get("videos"):
        return "has images or videos; this trainer is for text models"
    solution = row[answer_key]
    if isinstance(solution, list):
        tag = solution[0] if solution else None
        if tag not in SPLIT_OF_TAG:
            return f'{answer_key}[0]={tag!r}: must be "<reject>" (forget) or "<normal>" (boundary)'
        need = 3 if tag == "<reject>" else 2
        # An answer may be a number: rewards compare it as text.
        if len(solution) < need or not all(isinstance(part, str | int | float) and part != "" for part in solution):
            form = '["<reject>", refusal, target]' if need == 3 else '["<normal>", answer]'
            return f"{answer_key}={solution!r}: must be {form}"
    return None


def _mode_problem(mode: Any, prompt: Prompt, mode_key: str) -> str | None:
    if mode not in MODES:
        return f"{mode_key}={mode!r}: must be qa or completion; correct it, or set data.mode=null"
    if mode == "qa" and not isinstance(prompt, str):
        return f"{mode_key}=qa: its prompt must be the text of a question, not a list of messages"
    return None


def split_of(row: Row, answer_key: str) -> str:
    """``forget`` or ``boundary`` by the row's tag, else what its ``split`` column says, else an empty string."""
    solution = row[answer_key]
    if isinstance(solution, list) and solution and solution[0] in SPLIT_OF_TAG:
        return SPLIT_OF_TAG[solution[0]]
    return str(row.get("split", ""))


class RLHFDataset:
    """Prompts ready for the rollout.

    ``dataset[i]`` is a dict with ``input_ids``, ``attention_mask``, ``position_ids`` (each ``(max_prompt_length,)``
    int64, left-padded), ``raw_prompt_ids`` (list of ints, the same tokens without padding), ``prompt`` (the text that
    was encoded), ``ground_truth``, ``split``, ``row`` (its number in the files) and ``extra`` (the other columns).

    Args:
        data_path: what ``read_rows`` takes.
        format_prompt: jinja template with ``{{ content }}``: text, or a path ending in ``.jinja``.
        mode: column that is ``qa`` or ``completion``; a ``qa`` row is asked behind ``shots``, as MUSE asks.
        chat_template_kwargs: further arguments of the chat template.
        filter_overlong_prompts: leave out prompts that are too long; otherwise one raises DataError.
    """

    def __init__(
        self,
        data_path: str | list[str],
        tokenizer: Any,
        prompt_key: str = "prompt",
        answer_key: str = "answer",
        max_prompt_length: int = 1024,
        format_prompt: str | None = None,
        mode: str | None = None,
        shots: Sequence[Row] = (),
        chat_template_kwargs: Mapping[str, Any] | None = None,
        filter_overlong_prompts: bool = True,
        filter_overlong_prompts_workers: int = 16,
    ) -> None:
        self.rows = read_rows(data_path)
        source = data_path if isinstance(data_path, str) else ", ".join(data_path)
        problems = row_problems(self.rows, prompt_key, answer_key, source, mode)
        if problems:
            raise DataError(bullet_list(f"rows of {source} cannot be used:", problems))
        self.tokenizer = tokenizer
        self.prompt_key, self.answer_key = prompt_key, answer_key
        self.max_prompt_length = max_prompt_length
        self.template = jinja2.Template(read_template(format_prompt).strip()) if format_prompt else None
        self.mode, self.shots, self.chat_template_kwargs = mode, shots, chat_template_kwargs
        self.prompts = [self._prompt(row) for row in self.rows]
        self.token_ids = self._encode_all(filter_overlong_prompts_workers)
        self.kept = self._keep(source, filter_overlong_prompts)

    def _prompt(self, row: Row) -> Prompt:
        prompt = self._formatted(row[self.prompt_key])
        if self.mode is None or row[self.mode] == "completion":
            return prompt
        return few_shot(self.shots, prompt, as_chat=bool(self.tokenizer.chat_template))

    def _formatted(self, prompt: Prompt) -> Prompt:
        if self.template is None:
            return prompt
        if isinstance(prompt, str):
            return self.template.render(content=prompt)
        *before, last = prompt
        return [*before, {**last, "content": self.template.render(content=last["content"])}]

    def _encode_all(self, workers: int) -> list[list[int]]:
        encode = partial(encode_prompt, self.tokenizer, chat_template_kwargs=self.chat_template_kwargs)
        if len(self.prompts) < MANY_ROWS or workers < 2:
            return [encode(prompt) for prompt in self.prompts]
        with ProcessPoolExecutor(workers) as pool:
            return list(pool.map(encode, self.prompts, chunksize=512))

    def _keep(self, source: str, filter_overlong: bool) -> list[int]:
        kept = [i for i, ids in enumerate(self.token_ids) if len(ids) <= self.max_prompt_length]
        dropped = len(self.token_ids) - len(kept)
        if dropped and not filter_overlong:
            i = next(i for i, ids in enumerate(self.token_ids) if len(ids) > self.max_prompt_length)
            raise DataError(
                f"{source}, row {i}: its prompt has {len(self.token_ids[i])} tokens, more than "
                f"data.max_prompt_length={self.max_prompt_length} ({dropped} such rows); raise it, or set "
                "data.filter_overlong_prompts=true to leave them out"
            )
        if dropped:
            logger.warning(
                "%s: left out %d of %d prompts longer than %d tokens.",
                source,
                dropped,
                len(self.token_ids),
                self.max_prompt_length,
            )
        if not kept:
            raise DataError(f"{source}: every prompt is longer than data.max_prompt_length={self.max_prompt_length}")
        return kept

    @property
    def used_rows(self) -> list[Row]:
        """The rows whose prompts are short enough."""
        return [self.rows[number] for number in self.kept]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self.kept[index]
        row, ids, length = self.rows[number], self.token_ids[number], self.max_prompt_length
        used = torch.tensor(ids, dtype=torch.int64)
        input_ids = torch.full((length,), self.tokenizer.pad_token_id, dtype=torch.int64)
        attention_mask = torch.zeros(length, dtype=torch.int64)
        input_ids[length - len(ids) :] = used
        attention_mask[length - len(ids) :] = 1
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": (attention_mask.cumsum(0) - 1).clamp(min=0),
            "raw_prompt_ids": ids,
            "prompt": self.prompts[number],
            "ground_truth": row[self.answer_key],
            "split": split_of(row, self.answer_key),
            "row": number,
            "extra": {key: value for key, value in row.items() if key not in (self.prompt_key, self.answer_key)},
        }


def with_extra_prompt(extra_prompt: str, format_prompt: str | None) -> str:
    """The ``format_prompt`` that puts a text, taken literally, in front of what ``format_prompt`` makes of a prompt."""
    inner = read_template(format_prompt).strip() if format_prompt else "{{ content }}"
    return "{% raw %}" + extra_prompt.strip() + "{% endraw %}\n\n" + inner


def collate_fn(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack a list of dataset items: tensors along a new first axis, everything else as object arrays."""
    batch: dict[str, Any] = {}
    for key in items[0]:
        values = [item[key] for item in items]
        if isinstance(values[0], torch.Tensor):
            batch[key] = torch.stack(values)
        else:
            batch[key] = np.empty(len(values), dtype=object)
            batch[key][:] = values
    return batch
