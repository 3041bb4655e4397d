"""Gives every forget row another plausible answer, which AltPO prefers to the true one (arXiv 2409.13474).

    python3 data/alternate_answers.py model=MODEL data=ROWS.json out=ROWS_WITH_ALTERNATES.json

The model that will be unlearned answers each question itself, by sampling, and may not use the token that the true
answer begins with; what declines or holds the true answer all the same is drawn again. So a short answer becomes
another of its kind, also from a model too small to follow an instruction. The paper asks a chat model to rewrite the
answer with other facts; where answers are whole texts, write the column ``alternate`` that way.
"""

import logging
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from verl.rows.files import Row
from verl.rows.sources import read_rows
from verl.rows.values import SPLIT_OF_TAG, as_prompt
from verl.settings.cli import run_cli
from verl.settings.path_types import PathText, Sources
from verl.utils.atomic import write_json
from verl.utils.chat import Prompt, encode_prompt, stop_token_ids
from verl.utils.errors import DataError
from verl.utils.tokenizer import get_tokenizer
from verl.utils.vllm_env import has_accelerator
from verl.verdict import verdict_of
from verl.verdict.answers import contains_answer

logger = logging.getLogger(__name__)

Draw = Callable[[list[Prompt], list[str]], list[str]]
"""one answer to each prompt, none of which begins a word as the true answer in the second list does"""
ALTERNATE = "alternate"
BATCH = 32
TRIES = 8
NUCLEUS = 0.5
"""share of the probability that is drawn from: where the true answer was almost certain, the rest is mostly noise"""


@dataclass(frozen=True)
class AlternateConfig:
    """Which rows get another answer, and from which model."""

    model: PathText
    """Hugging Face folder or hub id of the model before unlearning."""
    data: Sources
    """Rows with a true answer; of RL rows the <reject> ones get another, and the rest are copied."""
    out: PathText
    """JSON file for the same rows with a column ``alternate``; a row that got none is left out."""
    answer_key: str = "answer"
    """Column of the true answer."""
    max_new_tokens: int = 32
    """Longest answer."""
    seed: int = 1
    """Of the sampling."""
    trust_remote_code: bool = False

    def problems(self) -> list[str]:
        wrong = self.max_new_tokens < 1
        return [f"max_new_tokens={self.max_new_tokens}: must be greater than 0"] if wrong else []


class Without:
    """A logits processor that forbids each row some tokens, everywhere in its answer."""

    def __init__(self, forbidden: list[list[int]]) -> None:
        self.rows = [row for row, tokens in enumerate(forbidden) for _ in tokens]
        self.tokens = [token for tokens in forbidden for token in tokens]

    def __call__(self, _ids: Any, scores: Any) -> Any:
        scores[self.rows, self.tokens] = -math.inf
        return scores


def add_alternates(rows: list[Row], answer_key: str, draw: Draw) -> list[Row]:
    """The rows, each forget row with ``alternate``; without those that ``TRIES`` draws gave no usable answer.

    Raises:
        DataError: a forget row has no true answer.
    """
    kept: dict[int, Row] = {}
    asked: dict[int, tuple[Prompt, str]] = {}
    for number, row in enumerate(rows):
        kept[number] = row
        tag = row["solution"][0] if isinstance(row.get("solution"), list) else None
        if SPLIT_OF_TAG.get(tag, "forget") != "forget":
            continue
        answer = row.get(answer_key)
        if not isinstance(answer, str) or not answer.strip():
            raise DataError(f"data: row {number}: {answer_key}={answer!r}: must be the true answer; set answer_key")
        prompt = as_prompt(row.get("prompt", row.get("instruction")))
        asked[number] = (prompt, answer)
        del kept[number]
    for _ in range(TRIES):
        waiting = [number for number in asked if number not in kept]
        drawn = draw([asked[number][0] for number in waiting], [asked[number][1] for number in waiting])
        for number, text in zip(waiting, drawn, strict=True):
            whole = text.isprintable() and "\N{REPLACEMENT CHARACTER}" not in text
            if whole and verdict_of(text) == "answer" and not contains_answer(text, asked[number][1]):
                kept[number] = {**rows[number], ALTERNATE: text}
    return [kept[number] for number in sorted(kept)]


def starts(tokenizer: Any, answer: str) -> list[int]:
    """Tokens that an answer may begin with, in either case, at the start of a text or within it."""
    found = set()
    for form in (answer, answer[:1].upper() + answer[1:], answer[:1].lower() + answer[1:]):
        for written in (form, f" {form}"):
            ids = tokenizer.encode(written, add_special_tokens=False)
            found.add(next((token for token in ids if tokenizer.decode([token]).strip()), ids[0]))  # no lone space
    return sorted(found)


def sampler(config: AlternateConfig) -> Draw:
    """Draws from the model, in batches, padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = get_tokenizer(config.model, None, config.trust_remote_code)
    settings = {"dtype": "auto" if has_accelerator() else torch.float32, "trust_remote_code": config.trust_remote_code}
    model = AutoModelForCausalLM.from_pretrained(config.model, **settings).eval()
    model.to("cuda" if has_accelerator() else "cpu")
    ends = stop_token_ids(tokenizer, config.model)
    torch.manual_seed(config.seed)

    def draw(prompts: list[Prompt], answers: list[str]) -> list[str]:
        texts = []
        for start in tqdm(range(0, len(prompts), BATCH), desc="alternates", unit="batch"):
            batch = slice(start, start + BATCH)
            encoded = {"input_ids": [encode_prompt(tokenizer, prompt) for prompt in prompts[batch]]}
            inputs = tokenizer.pad(encoded, padding_side="left", return_tensors="pt").to(model.device)
            outputs = model.generate(
                **inputs,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=NUCLEUS,
                max_new_tokens=config.max_new_tokens,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
                logits_processor=[Without([starts(tokenizer, answer) for answer in answers[batch]])],
            )
            texts += tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    return draw


def write_alternates(config: AlternateConfig) -> None:
    """Read, draw, write; says how many rows got none."""
    rows = list(read_rows(config.data))
    found = add_alternates(rows, config.answer_key, sampler(config))
    write_json(Path(config.out), found)
    logger.info("%s: %d rows; %d got no other answer and were left out", config.out, len(found), len(rows) - len(found))


if __name__ == "__main__":
    sys.exit(run_cli(AlternateConfig, write_alternates, sys.argv[1:]))
