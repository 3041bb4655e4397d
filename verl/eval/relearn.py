"""Relearning: fine-tune an unlearned model on a few texts about the target and see how much comes back.

A plain loop in fp32: AdamW at a constant learning rate, no scheduler, no distribution; the attacker's budget is k
examples and m steps. Full training holds 16 bytes a parameter, so a model of 8B needs ``lora_rank`` on one 80 GB GPU.
"""

import logging
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from verl.rows.sources import read_file
from verl.settings.path_types import PathText
from verl.utils.chat import encode_example
from verl.utils.errors import ConfigError, DataError
from verl.utils.provenance import file_sha256

from .derived import derived_folder
from .reading import as_text

logger = logging.getLogger(__name__)

IGNORED = -100
LORA_MODULES = "all-linear"
COLUMNS = {"question": ("query", "question", "prompt", "instruction"), "answer": ("answer", "output")}
"""The names under which a row may ask and answer; the first that is there counts."""


@dataclass(frozen=True)
class RelearnConfig:
    """Section ``relearn`` of the robustness configuration: the attacker's budget."""

    file: PathText | None = None
    """JSON rows with "text", or with a question and an answer. None: passage.json of the target's folder. Rows of the
    probes themselves would measure learning, not relearning."""
    examples: int = 8
    """k: rows taken from the file, drawn by the seed."""
    steps: int = 20
    """m: optimiser steps."""
    batch_size: int = 4
    """Rows a step."""
    lr: float = 1e-5
    """Constant learning rate of AdamW."""
    max_tokens: int = 512
    """Longer rows are cut here."""
    lora_rank: int | None = None
    """Train LoRA adapters of this rank on all linear layers and merge them; None trains every weight."""
    seed: int = 1
    """Draws the rows, their order, what adapters start from, and dropout."""

    def problems(self) -> list[str]:
        least = {"examples": 1, "steps": 1, "batch_size": 1, "max_tokens": 2}
        found = [
            f"{name}={getattr(self, name)}: must be at least {low}; give {name}={low} or more"
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        if self.lr <= 0:
            found.append(f"lr={self.lr}: must be above 0; give for example lr=1e-5")
        return found


def read_examples(path: str | Path, count: int, seed: int) -> list[dict[str, Any]]:
    """``count`` rows of a file, drawn without replacement.

    Raises:
        DataError: the file is missing or cannot be read, holds fewer rows than asked for, or a row without a text and
            without a question and an answer.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; give relearn.file=FILE with rows about the target")
    rows = read_file(path)
    for number, row in enumerate(rows):
        _example(row, f"{path}: row {number}")
    if (have := len(rows)) < count:
        raise DataError(f"{path}: has {have} rows, relearn.examples={count} are wanted; lower it or give more rows")
    return random.Random(seed).sample(rows, count)


def _example(row: dict[str, Any], where: str) -> dict[str, str]:
    """Its ``text``, or its ``question`` and ``answer``."""
    if "text" in row:
        return {"text": as_text(row["text"], where, "text")}
    columns = {name: next((key for key in keys if key in row), None) for name, keys in COLUMNS.items()}
    if None in columns.values():
        raise DataError(f"{where}: needs text, or a question and an answer; it has {', '.join(row)}")
    return {name: as_text(row[key], where, key) for name, key in columns.items()}


def encode_rows(tokenizer: Any, rows: list[dict[str, Any]], max_tokens: int) -> list[tuple[list[int], list[int]]]:
    """(token ids, labels) of each row: loss on the whole text, or on the answer where the row has a question.

    Raises:
        DataError: a row without a text, or of which no token would be trained on.
    """
    encoded = [_encode_row(tokenizer, row, max_tokens) for row in rows]
    for row, (_, labels) in zip(rows, encoded, strict=True):
        if all(label == IGNORED for label in labels[1:]):
            raise DataError(
                f"relearning row {row}: has no token to learn within relearn.max_tokens={max_tokens}; raise it, or "
                "leave the row out"
            )
    return encoded


def _encode_row(tokenizer: Any, row: dict[str, Any], max_tokens: int) -> tuple[list[int], list[int]]:
    row = _example(row, "a relearning row")
    if "text" in row:
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        ids = (bos + tokenizer.encode(row["text"], add_special_tokens=False))[:max_tokens]
        return ids, list(ids)
    prompt_ids, response_ids = encode_example(tokenizer, row["question"], row["answer"])
    ids = (prompt_ids + response_ids)[:max_tokens]
    return ids, ([IGNORED] * len(prompt_ids) + response_ids)[:max_tokens]


def batches(count: int, batch_size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Row indices of each step: one shuffled pass after another, so every row is seen equally often (within one)."""
    rng, queue = random.Random(seed), []
    for _ in range(steps):
        while len(queue) < batch_size:
            queue += rng.sample(range(count), count)
        yield queue[:batch_size]
        queue = queue[batch_size:]


def train(model: Any, encoded: list[tuple[list[int], list[int]]], config: RelearnConfig) -> list[float]:
    """Fine-tune in place; the loss (nats a token) of every step.

    Raises:
        ConfigError: the loss is not finite; the learning rate is too high for this model.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0)
    losses = []
    model.train()
    plan = batches(len(encoded), config.batch_size, config.steps, config.seed)
    for indices in tqdm(plan, total=config.steps, desc="relearning", unit="step"):
        loss = _loss(model, [encoded[index] for index in indices])
        if not torch.isfinite(loss):
            raise ConfigError(f"relearn.lr={config.lr}: loss {loss.item()} at step {len(losses) + 1}; lower it")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def _loss(model: Any, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Mean negative log-likelihood over the labelled tokens of a right-padded batch."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in rows], device=model.device)
    labels = torch.tensor([row + [IGNORED] * (width - len(row)) for _, row in rows], device=model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def write_relearned(model: str | Path, out: str | Path, file: str | Path, config: RelearnConfig) -> Path:
    """Write a copy of ``model`` after the attack, in the dtype it had; a folder already whole is kept."""
    rows = read_examples(file, config.examples, config.seed)

    def build(folder: Path) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        from verl.models.attention import plain_implementation
        from verl.models.hf_folder import copy_side_files, write_model

        tokenizer = AutoTokenizer.from_pretrained(model)
        implementation = plain_implementation(AutoConfig.from_pretrained(model))
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto", attn_implementation=implementation)
        stored_dtype = loaded.dtype
        loaded.to("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(config.seed)
        trained = _prepare(loaded, config)
        losses = train(trained, encode_rows(tokenizer, rows, config.max_tokens), config)
        logger.info("relearning: loss %.3f -> %.3f in %d steps", losses[0], losses[-1], len(losses))
        merged = trained.merge_and_unload() if config.lora_rank else trained
        write_model(merged, merged.to(stored_dtype).state_dict(), folder)
        copy_side_files(str(model), tokenizer, folder)

    recipe = {"relearn": {**asdict(config), "file": file_sha256(file)}}
    folder = derived_folder(model, out, recipe, build)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the evaluation's engine comes next and takes its share of the whole device
    return folder


def _prepare(model: Any, config: RelearnConfig) -> Any:
    """What is trained: every weight in fp32, since steps of 1e-5 vanish in bf16, or fp32 adapters on the weights."""
    if config.lora_rank is None:
        return model.float()
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=config.lora_rank, target_modules=LORA_MODULES, task_type="CAUSAL_LM"))
