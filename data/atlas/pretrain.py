"""Makes an Atlas world and a base model that knows it.

    python3 data/atlas/pretrain.py [seed=0] [epochs=8] [out=data/atlas/build]

Writes OUT/seed<seed>/ with Target/ (a folder a person, any of whom can be forgotten), MUSE/ (a book) and base/ (a
Hugging Face folder). The folder appears when all is done and the model answers its probes; where it is already there,
made by the same code, nothing is done. Leaves out what is in the files (corpus.py, world.py).
"""

import hashlib
import logging
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that the file also runs as a script

from data.atlas.corpus import forget_probes, neighbor_probes, pretraining_rows, refusal_rows
from data.atlas.language import IGNORED, encode, make_model, make_tokenizer, texts_of
from data.atlas.people import World, build_world
from data.atlas.world import write_world
from data.common.once import made_once
from verl.settings.cli import run_cli
from verl.utils.atomic import write_json

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
EPOCHS = 8
REFUSALS_AN_EPOCH = 100
"""How many questions about strangers an epoch has; they take turns."""
BATCH_TOKENS = 3072
MATRIX_LR, OTHER_LR = 0.02, 3e-3
WARMUP = 0.1
LAST_LR = 0.02
"""Shares of the steps and of the learning rate."""
LEAST_ANSWERED = 0.97


@dataclass(frozen=True)
class AtlasConfig:
    """Which world, and where it goes."""

    seed: int = 0
    """Of the world and of the model."""
    epochs: int = EPOCHS
    """Passes over what the model learns. After three it answers some 99 % of the probes: enough for tests."""
    out: str = str(HERE / "build")
    """Folder that holds a folder a seed."""

    @property
    def folder(self) -> Path:
        name = f"seed{self.seed}" if self.epochs == EPOCHS else f"seed{self.seed}_epochs{self.epochs}"
        return Path(self.out) / name

    def problems(self) -> list[str]:
        return [] if self.epochs > 0 else [f"epochs={self.epochs}: must be greater than 0; {EPOCHS} is usual"]


class Forgetful(Exception):
    """The base model does not know its world."""


def main(argv: list[str]) -> int:
    try:
        return run_cli(AtlasConfig, build, argv)
    except Forgetful as error:
        logger.error("%s", error)
        return 1


def build(config: AtlasConfig) -> Path:
    """The finished folder of a seed, made if it is not there.

    Raises:
        Forgetful: the model answers too few probes; nothing is left behind.
    """
    return made_once(config.folder, fingerprint(config), lambda folder: _make(config, folder))


def fingerprint(config: AtlasConfig) -> str:
    """A hash of all that a world is made by."""
    sources = [*sorted(HERE.glob("*.py")), HERE / "phrasings.yaml"]
    settings = f"{config.seed} {config.epochs}".encode()
    return hashlib.sha256(b"\0".join([settings, *(path.read_bytes() for path in sources)])).hexdigest()


def _make(config: AtlasConfig, folder: Path) -> None:
    """All files of a world. Nothing is written before all is known to be good, so an interrupted run leaves nothing."""
    started = time.monotonic()
    world = build_world(config.seed)
    model, tokenizer = pretrain(world, config.epochs)
    trained = time.monotonic()
    answered = check(world, model, tokenizer)
    write_world(world, folder)
    model.config._attn_implementation = "sdpa"
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    made = {"seed": config.seed, "epochs": config.epochs}
    write_json(folder / "pretraining.json", made | {"answered": answered, "seconds": round(trained - started, 1)})


# ---- training --------------------------------------------------------------------------------------------------------

Example = tuple[list[int], list[int]]


def pretrain(world: World, epochs: int) -> tuple[Any, Any]:
    """A trained model and its tokenizer."""
    import torch
    from tqdm.auto import tqdm

    rows, refusals = pretraining_rows(world), refusal_rows(world)
    tokenizer = make_tokenizer(text for row in rows + refusals for text in texts_of(row))
    model = make_model(tokenizer, world.seed)
    known = [encode(tokenizer, row) for row in rows]
    unknown = [encode(tokenizer, row) for row in refusals]
    batches = list(_batches(known, unknown, epochs, world.rng("batches")))
    optimizers = _optimizers(model)
    bar = tqdm(batches, desc="pretraining Atlas")
    for step, batch in enumerate(bar):
        _set_learning_rate(optimizers, (step + 0.5) / len(batches))
        ids, labels = _collate(batch, tokenizer.pad_token_id)
        loss = _loss(model, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 10 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval(), tokenizer


def _batches(known: list[Example], unknown: list[Example], epochs: int, rng: random.Random) -> Iterator[list[Example]]:
    """Batches of all epochs: rows of about one length together, so that little is padded, in random order."""
    for epoch in range(epochs):
        first = epoch * REFUSALS_AN_EPOCH
        turn = [unknown[number % len(unknown)] for number in range(first, first + REFUSALS_AN_EPOCH)]
        rows = sorted(known + turn, key=lambda row: (len(row[0]), rng.random()))
        batches: list[list[Example]] = [[]]
        for row in rows:
            if (len(batches[-1]) + 1) * len(row[0]) > BATCH_TOKENS:
                batches.append([])
            batches[-1].append(row)
        rng.shuffle(batches)
        yield from batches


def _collate(batch: list[Example], pad: int) -> tuple[Any, Any]:
    import torch

    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in batch])
    labels = torch.tensor([row + [IGNORED] * (width - len(row)) for _, row in batch])
    return ids, labels


def _loss(model: Any, ids: Any, labels: Any) -> Any:
    """Mean over the learned tokens; the head is only worked out for these, in bf16 where the CPU is fast at that."""
    import torch

    from verl.models.build import cpu_has_bf16

    learned = labels[:, 1:] != IGNORED
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cpu_has_bf16()):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[learned])
    return torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][learned])


def _optimizers(model: Any) -> list[Any]:
    """Muon for the layers' matrices, AdamW for the rest: the facts are learned in a third of AdamW's steps."""
    import torch

    from verl.models.build import cpu_has_bf16

    if not cpu_has_bf16():
        torch.optim._muon._zeropower_via_newtonschulz = _orthogonal
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_LR, weight_decay=0.1, momentum=0.9, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=OTHER_LR, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def _orthogonal(gradient: Any, coefficients: tuple[float, float, float], steps: int, eps: float) -> Any:
    """Muon's step direction by its quintic Newton-Schulz iteration, in fp32.

    torch's takes bf16, which a CPU without instructions for it multiplies five hundred times slower than fp32.
    """
    import torch

    a, b, c = coefficients
    tall = gradient.shape[0] > gradient.shape[1]
    x = gradient.T if tall else gradient
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def _set_learning_rate(optimizers: list[Any], progress: float) -> None:
    """Linear warm-up, then a cosine down to ``LAST_LR``."""
    falling = (progress - WARMUP) / (1 - WARMUP)
    share = progress / WARMUP if falling < 0 else LAST_LR + (1 - LAST_LR) * (1 + math.cos(math.pi * falling)) / 2
    for optimizer, peak in zip(optimizers, (MATRIX_LR, OTHER_LR), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * share


# ---- the check -------------------------------------------------------------------------------------------------------


def check(world: World, model: Any, tokenizer: Any) -> dict[str, float]:
    """Shares of forget and neighbor probes, over all targets, that greedy decoding answers.

    Raises:
        Forgetful: a share is below ``LEAST_ANSWERED``.
    """
    sides = {
        "forget": [row for person in world.people for rows in forget_probes(world, person).values() for row in rows],
        "neighbor": [
            row for person in world.people for rows in neighbor_probes(world, person).values() for row in rows
        ],
    }
    shares = {}
    for side, probes in sides.items():
        right = answers_exactly(model, tokenizer, [(row["query"], row["answer"]) for row in probes])
        shares[side] = sum(right) / len(right)
        missed = [f"{p['query']} ({p['answer']})" for p, ok in zip(probes, right, strict=True) if not ok]
        logger.info("%s: %d of %d probes answered; missed: %s", side, sum(right), len(right), missed[:5] or "none")
    if min(shares.values()) < LEAST_ANSWERED:
        found = ", ".join(f"{100 * share:.1f} % of the {side} probes" for side, share in shares.items())
        raise Forgetful(
            f"seed={world.seed}: the base model answers {found}, and {100 * LEAST_ANSWERED:.0f} % are needed to "
            "measure forgetting; take more epochs, or another seed"
        )
    return shares


def answers_exactly(model: Any, tokenizer: Any, pairs: list[tuple[str, str]]) -> list[bool]:
    """Whether greedy decoding gives exactly the answer and then ends, in fp32, by one forward pass over both.

    The answer is what is decoded if and only if each of its tokens, and the EOS behind it, is the likeliest one.
    """
    import torch

    examples = [encode(tokenizer, {"prompt": prompt, "response": response}) for prompt, response in pairs]
    order = sorted(range(len(examples)), key=lambda number: len(examples[number][0]))
    right = [False] * len(examples)
    for start in range(0, len(order), 256):
        chunk = order[start : start + 256]
        ids, labels = _collate([examples[number] for number in chunk], tokenizer.pad_token_id)
        with torch.no_grad():
            predicted = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        agree = ((predicted == labels[:, 1:]) | (labels[:, 1:] == IGNORED)).all(-1)
        for number, ok in zip(chunk, agree.tolist(), strict=True):
            right[number] = ok
    return right


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
