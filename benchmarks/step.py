"""Seconds of one ReBO step by phase, and of one step of TRL's GRPOTrainer on the same model, for comparison.

``python3 benchmarks/step.py [ours|trl|both]``: a random Llama of 3.5 million parameters, 32 prompts x 8 rollouts x 64
tokens, KL to a reference, fp32, one rank. The first step warms everything up and is left out.
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path

from _kit import mean_seconds, random_model, train, write_rows

PROMPTS, ROLLOUTS, TOKENS, STEPS = 32, 8, 64, 3
PHASES = ("gen", "reward", "old", "ref", "adv", "update_actor")


def ours(folder: Path) -> dict[str, float]:
    """Mean seconds of the phases of our step."""
    changes = [
        f"data.rollout_batch_size={PROMPTS}",
        f"data.max_response_length={TOKENS}",
        f"worker.actor.global_batch_size={PROMPTS}",
        f"worker.rollout.n={ROLLOUTS}",
        "worker.rollout.ignore_eos=true",
        "worker.actor.micro_batch_size_per_device_for_update=64",
        "worker.actor.micro_batch_size_per_device_for_experience=64",
        f"trainer.max_steps={STEPS}",
    ]
    rows = train(folder, "ours", changes)
    found = {phase: mean_seconds(rows, f"timing_s/{phase}") for phase in PHASES}
    return found | {"step": mean_seconds(rows, "perf/time_per_step")}


def trl(folder: Path) -> dict[str, float]:
    """Mean seconds of TRL's step (generation by transformers: its vLLM mode needs a GPU)."""
    import json

    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Stopwatch(TrainerCallback):
        seconds: list[float] = []

        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            self.seconds.append(time.perf_counter() - self.start)

    rows = json.loads((folder / "rows.json").read_text())
    settings = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=64,
        gradient_accumulation_steps=PROMPTS * ROLLOUTS // 64,
        num_generations=ROLLOUTS,
        max_completion_length=TOKENS,
        generation_kwargs={"min_new_tokens": TOKENS},
        max_steps=STEPS,
        beta=0.01,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1000,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model"),
        reward_funcs=lambda completions, **_: [float(len(str(text)) % 7) for text in completions],
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows] * 8),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=[Stopwatch()],
    )
    trainer.train()
    steady = Stopwatch.seconds[1:]
    return {"step": sum(steady) / len(steady)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="?", choices=("ours", "trl", "both"), default="both")
    which = parser.parse_args().which
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_model(folder / "model")
        write_rows(folder, PROMPTS * 4)
        for side, measure in (("ours", ours), ("trl", trl)):
            if which in (side, "both"):
                seconds = measure(folder)
                print(f"{side:5}" + "  ".join(f"{phase} {value:.2f} s" for phase, value in seconds.items()))


if __name__ == "__main__":
    main()
