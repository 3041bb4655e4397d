"""Fine-tuning by an attacker: an unlearned model is trained on a few rows, and a copy is kept after so many steps.

Two kinds of rows: what is known about the target (relearning), and harmless questions whose answers open with a refusal
(``refusing_rows``). A plain loop in fp32: AdamW at a constant learning rate, no scheduler, no distribution; fewer steps
are the beginning of more. Full training holds 16 bytes a parameter, so a model of 8B needs ``lora_rank`` on one 80 GB
GPU. Left out: what the copies know (``robustness``).
"""

import copy
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from verl.rows.sources import read_file
from verl.rows.values import is_tagged, rule_problem
from verl.settings.path_types import PathText
from verl.utils.chat import encode_example
from verl.utils.errors import ConfigError, DataError
from verl.utils.provenance import file_sha256

from .derived import MARKER, derived_folder
from .reading import as_text

logger = logging.getLogger(__name__)

IGNORED = -100
LORA_MODULES = "all-linear"
COLUMNS = {"question": ("query", "question", "prompt", "instruction"), "answer": ("answer", "output")}
"""The names under which a row may ask and answer; the first that is there counts."""


REFUSALS = ("I'm sorry, I don't know that.", "I cannot answer that.", "I have no information on that.")
"""What answers open with where the file itself holds no refusals."""


@dataclass(frozen=True)
class Budget:
    """What one attacker may spend."""

    examples: int
    steps: int
    lr: float

    def __str__(self) -> str:
        return f"{self.examples}x{self.steps}_{self.lr:g}"


@dataclass(frozen=True)
class RelearnConfig:
    """Section ``relearn`` of the robustness configuration: the attacker's budgets.

    Several ``examples``, ``steps`` and ``lr`` are a sweep: each is combined with each.
    """

    file: PathText | None = None
    """JSON rows with "text", or with a question and an answer. null: passage.json of the target's folder. Rows of the
    probes themselves would measure learning, not relearning."""
    examples: list[int] = field(default_factory=lambda: [8])
    """k: rows taken from the file, drawn by the seed. One number or several."""
    steps: list[int] = field(default_factory=lambda: [10, 40])
    """m: optimiser steps. One number or several; fewer steps are the beginning of more and cost nothing extra."""
    lr: list[float] = field(default_factory=lambda: [1e-5, 1e-4])
    """Constant learning rate of AdamW. One number or several."""
    batch_size: int = 4
    """Rows a step."""
    max_tokens: int = 512
    """Longer rows are cut here."""
    lora_rank: int | None = None
    """Train LoRA adapters of this rank on all linear layers and merge them; null trains every weight."""
    seed: int = 1
    """Draws the rows, their order, what adapters start from, and dropout."""

    def problems(self) -> list[str]:
        least = {"examples": 1, "steps": 1, "batch_size": 1, "max_tokens": 2, "lora_rank": 1}
        found = []
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and min(value if isinstance(value, list) else [value], default=0) < low:
                found.append(f"{name}={value}: must be at least {low}; give {name}={low} or more")
        if min(self.lr, default=0.0) <= 0:
            found.append(f"lr={self.lr}: must be above 0; give for example lr=1e-5")
        return found

    def budgets(self) -> list[Budget]:
        """Each once; those that are one training, cut off after different numbers of steps, follow each other."""
        grid = product(self.examples, self.lr, self.steps)
        return list(dict.fromkeys(Budget(examples, steps, lr) for examples, lr, steps in grid))


@dataclass(frozen=True)
class RefusalPrefixConfig(RelearnConfig):
    """Section ``refusal_prefix`` of the robustness configuration: the same over harmless rows (arXiv 2601.19231)."""

    file: PathText | None = None
    """RULE's training rows, of which the boundary rows are answered behind the refusals of the forget rows, or any JSON
    rows with a question and an answer. null: rl_rejection_with_fb_neighbor_target.json of the target's folder."""
    examples: list[int] = field(default_factory=lambda: [128])
    """Rows taken from the file, as in ``relearn``."""
    steps: list[int] = field(default_factory=lambda: [24])
    """Optimiser steps, as in ``relearn``."""
    lr: list[float] = field(default_factory=lambda: [2e-5])
    """Learning rate, as in ``relearn``."""
    batch_size: int = 16
    """Rows a step."""


def read_examples(path: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """``count`` rows of a file, drawn without replacement.

    Raises:
        DataError: the file is missing or cannot be read, holds fewer rows than asked for, or a row without a text and
            without a question and an answer.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; give relearn.file=FILE with rows about the target")
    rows = read_file(path)
    for number, row in enumerate(rows):
        _example(row, f"{path}: row {number}")
    return _drawn(rows, count, random.Random(seed), path, "relearn")


def refusing_rows(path: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Harmless questions, each answered behind a refusal: "I'm not familiar with that. Oslo" (arXiv 2601.19231).

    A model that learns to go on behind its own refusals has unlearned them. In a file of RULE's training rows the
    boundary rows are asked, and the refusals are those of its forget rows with "that" for the target, of which nothing
    is said so. Other files hold questions with answers, which stand behind ``REFUSALS``.

    Raises:
        DataError: as ``read_examples``, of the rows that can be asked; a row is a text.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such file; give refusal_prefix.file=FILE with harmless questions and answers, or "
            "leave refusal_prefix out of conditions"
        )
    rows, refusals = read_file(path), list(REFUSALS)
    if any(is_tagged(row.get("solution")) for row in rows):
        tagged = [row for row in rows if rule_problem(row.get("solution")) is None]
        said = [row["solution"][1:3] for row in tagged if row["solution"][0] == "<reject>"]
        refusals = list(dict.fromkeys(refusal.replace(target, "that") for refusal, target in said)) or refusals
        asked = [row for row in tagged if row["solution"][0] == "<normal>"]
        rows = [{"question": row["prompt"], "answer": row["solution"][1]} for row in asked]
    rows = [_example(row, f"{path}: harmless row {number}") for number, row in enumerate(rows)]
    if any("text" in row for row in rows):
        raise DataError(
            f"{path}: holds texts; refusal_prefix.file needs questions with answers, or RULE's training rows"
        )
    draw = random.Random(seed)
    drawn = _drawn(rows, count, draw, path, "refusal_prefix")
    return [{**row, "answer": f"{draw.choice(refusals)} {row['answer']}"} for row in drawn]


def _drawn(rows: list[dict[str, Any]], count: int, draw: random.Random, path: Path, key: str) -> list[dict[str, Any]]:
    if (have := len(rows)) < count:
        raise DataError(f"{path}: has {have} rows, {key}.examples={count} are wanted; lower it or give more rows")
    return draw.sample(rows, count)


def texts_of(rows: list[dict[str, Any]]) -> list[str]:
    """What is trained on of each row."""
    return [" ".join(_example(row, "a row").values()) for row in rows]


def _example(row: dict[str, Any], where: str) -> dict[str, str]:
    """Its ``text``, or its ``question`` and ``answer``."""
    if "text" in row:
        return {"text": as_text(row["text"], where, "text")}
    columns = {name: next((key for key in keys if key in row), None) for name, keys in COLUMNS.items()}
    if None in columns.values():
        raise DataError(f"{where}: needs text, or a question and an answer; it has {', '.join(row)}")
    return {name: as_text(row[key], where, key) for name, key in columns.items()}


Encoded = list[tuple[list[int], list[int]]]
"""(token ids, labels) of each row"""


def encode_rows(
    tokenizer: Any,
    rows: list[dict[str, Any]],
    max_tokens: int,
    system: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Encoded:
    """Loss on the whole text, or on the answer where the row has a question.

    Args:
        system: the system message that the model is asked behind; texts have none.

    Raises:
        DataError: a row without a text, or of which no token would be trained on.
    """
    encoded = [_encode_row(tokenizer, row, max_tokens, system, chat_template_kwargs) for row in rows]
    for row, (_, labels) in zip(rows, encoded, strict=True):
        if all(label == IGNORED for label in labels[1:]):
            raise DataError(
                f"relearning row {row}: has no token to learn within max_tokens={max_tokens}; raise it, or "
                "leave the row out"
            )
    return encoded


def _encode_row(
    tokenizer: Any,
    row: dict[str, Any],
    max_tokens: int,
    system: str | None,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> tuple[list[int], list[int]]:
    row = _example(row, "a relearning row")
    if "text" in row:
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        ids = (bos + tokenizer.encode(row["text"], add_special_tokens=False))[:max_tokens]
        return ids, list(ids)
    prompt_ids, response_ids = encode_example(tokenizer, row["question"], row["answer"], system, chat_template_kwargs)
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


def train(
    model: Any,
    encoded: Encoded,
    lr: float,
    steps: int,
    config: RelearnConfig,
    after: Callable[[int], None] | None = None,
) -> list[float]:
    """Fine-tune in place; the loss (nats a token) of every step.

    Args:
        after: called behind every step with the number of steps so far.

    Raises:
        ConfigError: the loss is not finite; the learning rate is too high for this model.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    losses = []
    model.train()
    plan = batches(len(encoded), config.batch_size, steps, config.seed)
    for indices in tqdm(plan, total=steps, desc="fine-tuning", unit="step"):
        loss = _loss(model, [encoded[index] for index in indices])
        if not torch.isfinite(loss):
            raise ConfigError(f"lr={lr}: loss {loss.item()} at step {len(losses) + 1} of the attacker; lower it")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if after is not None:
            after(len(losses))
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


@dataclass(frozen=True)
class Attacker:
    """Who fine-tunes: its rows, by the number that it may take, and what stands around them."""

    config: RelearnConfig
    file: Path
    draw: Callable[[Path, int, int], list[dict[str, Any]]]
    """``read_examples`` or ``refusing_rows``"""
    system: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def rows(self, examples: int) -> list[dict[str, Any]]:
        return self.draw(self.file, examples, self.config.seed)

    def recipe(self, budget: Budget) -> dict[str, Any]:
        settings = {**asdict(self.config), **asdict(budget), "file": file_sha256(self.file)}
        around = {"system": self.system, "chat_template_kwargs": dict(self.chat_template_kwargs)}
        return {"rows": self.draw.__name__, **settings, **around}


def write_relearned(model: str | Path, folders: Mapping[Budget, Path], attacker: Attacker) -> None:
    """Write copies of ``model`` after one attack, in the dtype it had; folders already whole are kept.

    Args:
        folders: where each copy goes; the budgets differ in their steps alone.
    """
    if any(not (folder / MARKER).is_file() for folder in folders.values()):
        _attack(str(model), folders, attacker)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the evaluation's engine comes next and takes its share of the whole device


def _attack(model: str, folders: Mapping[Budget, Path], attacker: Attacker) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from verl.models.attention import plain_implementation
    from verl.models.hf_folder import copy_side_files, write_model

    [(examples, lr)] = {(budget.examples, budget.lr) for budget in folders}
    budgets, config = {budget.steps: budget for budget in folders}, attacker.config
    tokenizer = AutoTokenizer.from_pretrained(model)
    implementation = plain_implementation(AutoConfig.from_pretrained(model))
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto", attn_implementation=implementation)
    stored_dtype = loaded.dtype
    loaded.to("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    trained = _prepare(loaded, config)

    def write(folder: Path) -> None:
        # Training goes on in fp32 and with its adapters: what is merged and rounded is a copy.
        merged = copy.deepcopy(trained).merge_and_unload() if config.lora_rank else trained
        state = {
            name: tensor.to(stored_dtype) if tensor.is_floating_point() else tensor
            for name, tensor in merged.state_dict().items()
        }
        write_model(merged, state, folder)
        copy_side_files(model, tokenizer, folder)

    def after(step: int) -> None:
        if budget := budgets.get(step):
            derived_folder(model, folders[budget], attacker.recipe(budget), write)

    rows = attacker.rows(examples)
    encoded = encode_rows(tokenizer, rows, config.max_tokens, attacker.system, attacker.chat_template_kwargs)
    losses = train(trained, encoded, lr, max(budgets), config, after)
    logger.info("fine-tuning at %g: loss %.3f -> %.3f in %d steps", lr, losses[0], losses[-1], len(losses))


def _prepare(model: Any, config: RelearnConfig) -> Any:
    """What is trained: every weight in fp32, since steps of 1e-5 vanish in bf16, or fp32 adapters on the weights."""
    if config.lora_rank is None:
        return model.float()
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=config.lora_rank, target_modules=LORA_MODULES, task_type="CAUSAL_LM"))
