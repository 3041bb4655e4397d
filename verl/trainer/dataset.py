"""Turns prompt rows into token ids.

Reading rows (``verl.rows.sources``) and checking them (``verl.rows.values``) need neither a model nor a tokenizer,
so a dry run can do it. Batching and shuffling are ``verl.trainer.data_loader``'s.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import jinja2
import numpy as np
import torch

from ..rows.files import Row
from ..rows.sources import read_rows
from ..rows.values import MAX_LISTED, as_prompt, gold_answer, row_problems, split_of
from ..utils.chat import Prompt, encode_prompt, encode_response, few_shot
from ..utils.errors import DataError, bullet_list
from ..utils.tokenizer import read_template

logger = logging.getLogger(__name__)

MANY_ROWS = 20_000


class RLHFDataset:
    """Prompts ready for the rollout.

    ``dataset[i]`` is a dict with ``input_ids``, ``attention_mask``, ``position_ids`` (each ``(max_prompt_length,)``
    int64, left-padded), ``raw_prompt_ids`` (list of ints, the same tokens without padding), ``prompt`` (the text that
    was encoded), ``ground_truth``, ``split``, ``row`` (its number in the files) and ``extra`` (the other columns).
    ``gold`` has the token ids of gold answers by that number.

    Args:
        data_path: what ``read_rows`` takes.
        format_prompt: jinja template with ``{{ content }}``: text, or a path ending in ``.jinja``.
        mode: column that is ``qa`` or ``completion``; a ``qa`` row is asked behind ``shots``, as MUSE asks.
        chat_template_kwargs: further arguments of the chat template.
        filter_overlong_prompts: leave out prompts that are too long; otherwise one raises DataError.
        twin_of: a dataset of the same rows with other prompts. Rows are then found by their number in the files, and
            one that is too long raises DataError where ``twin_of`` has it.
        gold_length: encode the gold answers of boundary rows, each as a whole response, cut at so many tokens.
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
        twin_of: "RLHFDataset | None" = None,
        gold_length: int | None = None,
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
        if twin_of is None:
            self.kept = self._keep(source, filter_overlong_prompts)
        else:
            self.kept = list(range(len(self.rows)))
            self._check_twins(source, twin_of)
        self.gold = {} if gold_length is None else self._gold_answers(gold_length)

    def _prompt(self, row: Row) -> Prompt:
        prompt = self._formatted(as_prompt(row[self.prompt_key]))
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
        encode = partial(_encoded, self.tokenizer, chat_template_kwargs=self.chat_template_kwargs)
        if len(self.prompts) < MANY_ROWS or workers < 2:
            encoded = [encode(prompt) for prompt in self.prompts]
        else:
            with ProcessPoolExecutor(workers) as pool:
                encoded = list(pool.map(encode, self.prompts, chunksize=512))
        found = [f"{self.rows.where(i)}: {ids}" for i, ids in enumerate(encoded) if isinstance(ids, str)]
        if found:
            found[MAX_LISTED:] = [f"{len(found) - MAX_LISTED} more rows"] if len(found) > MAX_LISTED else []
            fix = "correct these messages, or give another template by data.override_chat_template"
            raise DataError(bullet_list(f"rows that the model's chat template does not take; {fix}:", found))
        return encoded

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

    def _gold_answers(self, longest: int) -> dict[int, list[int]]:
        """Token ids of the gold answer of every used row that has one, closed as responses are."""
        answers = {number: gold_answer(self.rows[number], self.answer_key) for number in self.kept}
        encode = partial(encode_response, self.tokenizer, chat_template_kwargs=self.chat_template_kwargs)
        gold = {number: encode(answer) for number, answer in answers.items() if answer is not None}
        if cut := sum(len(ids) > longest for ids in gold.values()):
            logger.warning(
                "%d of %d gold answers are cut at data.max_response_length=%d tokens.", cut, len(gold), longest
            )
        return {number: ids[:longest] for number, ids in gold.items()}

    def _check_twins(self, source: str, plain: "RLHFDataset") -> None:
        """Raise DataError for a row that ``plain`` has and whose prompt is too long here."""
        overlong = [i for i in plain.kept if len(self.token_ids[i]) > self.max_prompt_length]
        if not overlong:
            return
        enough = self.max_prompt_length  # a higher limit lets rows in that were left out, whose twins must fit, too
        lengths = [(len(ids), len(twin)) for ids, twin in zip(plain.token_ids, self.token_ids, strict=True)]
        while beyond := [twin for length, twin in lengths if length <= enough < twin]:
            enough = max(beyond)
        raise DataError(
            f"{source}, row {overlong[0]}: with data.extra_prompt in front, for worker.rollout.noise_rollout, its "
            f"prompt has {len(self.token_ids[overlong[0]])} tokens, more than "
            f"data.max_prompt_length={self.max_prompt_length} ({len(overlong)} such rows); set "
            f"data.max_prompt_length={enough}, shorten data.extra_prompt, or take the rows out of the file"
        )

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


def _encoded(tokenizer: Any, prompt: Prompt, **options: Any) -> list[int] | str:
    """Token ids of a prompt, or what is wrong with it."""
    try:
        return encode_prompt(tokenizer, prompt, **options)
    except DataError as error:
        return str(error)


def with_extra_prompt(extra_prompt: str, format_prompt: str | None) -> str:
    """The ``format_prompt`` that puts a text, taken literally, in front of what ``format_prompt`` makes of a prompt."""
    inner = read_template(format_prompt).strip() if format_prompt else "{{ content }}"
    literal = json.dumps(extra_prompt.strip(), ensure_ascii=False)  # whose escapes are jinja's, too
    return f"{{{{ {literal} }}}}\n\n{inner}"


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
