"""Tokens a second of RS and of TRL's SFTTrainer over the same rows:  ``python3 benchmarks/rs.py [quick]``

Each load is a model with random weights (``loads.py``), and rows of questions and refusals in batches of eight, as RS's
shipped files have them. In ``template`` every prompt opens with 22 tokens of the chat template's own, as SmolLM2's and
Llama 3's do. All sides are processes that step in turns on all cores; the first step warms up and is left out. 135M is
computed in bf16 where the machine is fast at it, with weights and optimiser in fp32 on all sides, and 3.5M in fp32.

TRL's settings, the best documented ones that a CPU has: the whole batch in one pass (``per_device_train_batch_size``),
loss of completions only, its fused head (the default: no logits where there is no loss), fused AdamW (default), SDPA
attention (default), no gradient checkpointing, no data loader of another process (tokens are there before the first
step), nothing logged or saved. It is measured padded and with ``padding_free``, which transformers turns into a mask;
``packing`` fills rows of ``max_length`` tokens, that is, changes what an optimiser step is, so it is left out.
"""

import json
import logging
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loads import LOADS, chat, write_model

from verl.settings.cli import show_help

ROOT = Path(__file__).resolve().parents[1]
BATCH, STEPS, WARM_UP = 8, 5, 1
QUICK_STEPS = 2
SIDES = ("ours", "trl", "trl padding_free")
MARK = "figures: "


@dataclass(frozen=True)
class Rows:
    """A model's shape, and how long the rows are that it is trained on."""

    shape: dict[str, Any]
    prompt_tokens: tuple[int, int]
    response_tokens: tuple[int, int]
    opening: int = 0
    """tokens that the chat template writes before every prompt"""
    precision: str = "auto"


RULE, ATLAS = LOADS["rule"].shape, LOADS["fp32"].shape
KINDS = {
    "135M": Rows(RULE, (34, 42), (12, 30)),
    "135M template": Rows(RULE, (34, 42), (12, 30), opening=22),
    "3.5M": Rows(ATLAS, (8, 16), (8, 16), precision="fp32"),
}


def write_files(folder: Path, rows: Rows, steps: int) -> None:
    """The model, its tokenizer, and the rows of ``steps`` steps in RS's and in TRL's form."""
    write_model(folder / "model", rows.shape, opening=" ".join(f"w{number}" for number in range(rows.opening)))
    draw = random.Random(0)

    def words(lengths: tuple[int, int], marks: int) -> str:
        return " ".join(f"w{draw.randrange(1000)}" for _ in range(draw.randint(*lengths) - marks))

    marks = 3 + rows.opening  # of the chat template; a response has its end
    texts = [(words(rows.prompt_tokens, marks), words(rows.response_tokens, 1)) for _ in range(BATCH * steps)]
    (folder / "rows.json").write_text(json.dumps([{"instruction": p, "output": r} for p, r in texts]))
    answers = [[{"role": "assistant", "content": r}] for _, r in texts]
    pairs = [{"prompt": chat(p), "completion": answer} for (p, _), answer in zip(texts, answers, strict=True)]
    (folder / "trl.json").write_text(json.dumps(pairs))


def tell(figures: dict[str, float]) -> None:
    print(MARK + json.dumps(figures), flush=True)


def ours(folder: Path, precision: str) -> None:
    """Steps of RS, as its loop makes them."""
    from RS.config import RSConfig
    from RS.models.build import start_distributed
    from RS.trainer import RSTrainer
    from RS.utils.data import encode_side, read_side
    from verl.utils.tokenizer import get_tokenizer

    places = {"model": str(folder / "model"), "data": str(folder / "rows.json"), "output_dir": str(folder / "ours")}
    config = RSConfig(**places, batch_size=BATCH, precision=precision, num_train_epochs=1)
    tokenizer = get_tokenizer(config.model)
    examples = encode_side(read_side(config, "forget")[0], tokenizer, config, "forget")[0]
    trainer = RSTrainer(config, tokenizer, examples, None, start_distributed())
    for start in range(0, len(examples), BATCH):
        batch = list(range(start, min(start + BATCH, len(examples))))
        tokens = sum(len(examples[index].prompt) + len(examples[index].response) for index in batch)
        sys.stdin.readline()
        begun = time.perf_counter()
        loss = trainer.step(batch, [])["loss"]
        tell({"seconds": time.perf_counter() - begun, "tokens": tokens, "loss": loss})


def trl(folder: Path, precision: str, **settings: Any) -> None:
    """Steps of TRL's SFTTrainer over the same rows in the same order; a step's time has its batch's collation."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from verl.models.build import fast_bf16

    begun = [0.0]

    class Turns(TrainerCallback):
        """Waits for its turn before the first step and behind each."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            sys.stdin.readline()
            begun[0] = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            tell({"seconds": time.perf_counter() - begun[0]})
            self.on_train_begin()

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    config = {
        "output_dir": str(folder / "trl"),
        "use_cpu": True,
        "bf16": precision == "auto" and fast_bf16(),
        "gradient_checkpointing": False,
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "max_length": None,
        "completion_only_loss": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "learning_rate": 1e-5,
    }
    InOrder(
        model=AutoModelForCausalLM.from_pretrained(folder / "model"),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        args=SFTConfig(**config | settings),
        train_dataset=Dataset.from_list(json.loads((folder / "trl.json").read_text())),
        callbacks=[Turns()],
    ).train()


CHILDREN: dict[str, Callable[[Path, str], None]] = {
    "ours": ours,
    "trl": trl,
    "trl padding_free": lambda folder, precision: trl(folder, precision, padding_free=True),
}


def measure(name: str, rows: Rows, steps: int) -> dict[str, list[float]]:
    """Tokens a second of each side in each counted step."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_files(folder, rows, steps + WARM_UP + 1)  # TRL waits behind its last step
        sides = {side: start(side, folder, rows.precision) for side in SIDES}
        try:
            return tokens_a_second(sides, steps)
        finally:
            for process in sides.values():
                process.kill()
                process.wait()


def tokens_a_second(sides: dict[str, subprocess.Popen], steps: int) -> dict[str, list[float]]:
    """Of each side in each step behind those that warm up, in turns."""
    found: dict[str, list[float]] = {side: [] for side in sides}
    for step in range(steps + WARM_UP):
        tokens = 0.0
        for side, process in sides.items():
            figures = take_turn(process, side)
            tokens = figures.get("tokens", tokens)
            if step >= WARM_UP:
                found[side].append(tokens / figures["seconds"])
    return found


def start(side: str, folder: Path, precision: str) -> subprocess.Popen:
    command = [sys.executable, __file__, side, str(folder), precision]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, text=True, cwd=ROOT, **pipes)


def take_turn(process: subprocess.Popen, side: str) -> dict[str, float]:
    process.stdin.write("\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    raise SystemExit(f"{side}: ended with {process.wait()}; run: {' '.join(map(str, process.args))}")


def main(argv: list[str]) -> None:
    show_help(argv, __doc__)
    if argv and argv[0] in CHILDREN:
        logging.disable(logging.WARNING)
        CHILDREN[argv[0]](Path(argv[1]), argv[2])
        return
    steps = QUICK_STEPS if "quick" in argv else STEPS
    kinds = [name for name in argv if name in KINDS] or list(KINDS)
    print(f"| load | side | tokens/s | of all {steps} steps | ours over it |")
    print("| --- | --- | --- | --- | --- |")
    for name in kinds:
        found = measure(name, KINDS[name], steps)
        first = statistics.median(found["ours"])
        for side, rates in found.items():
            rate = statistics.median(rates)
            print(f"| {name} | {side} | {rate:,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | {first / rate:.2f} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
