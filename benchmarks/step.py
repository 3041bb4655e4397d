"""Seconds of one ReBO step by phase, and of one step of TRL's GRPOTrainer on the same model, for comparison.

``python3 benchmarks/step.py [ours|trl|both]``: a random Llama of 3.5 million parameters, 32 prompts x 8 rollouts x 64
tokens, KL to a reference, fp32, one rank. The first step warms everything up and is left out.
"""

import argparse
import json
import logging
import tempfile
from pathlib import Path

from _kit import mean_seconds, random_model, train, write_rows

PROMPTS, ROLLOUTS, TOKENS, STEPS = 32, 8, 64, 3
PHASES = ("sync", "gen", "reward", "old", "ref", "adv", "update_actor")


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
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.gpu.peer import ON_CPU, trl_seconds

    rows = json.loads((folder / "rows.json").read_text())
    sizes = {"prompts_a_step": PROMPTS, "rollouts": ROLLOUTS, "tokens": TOKENS, "micro": 64, "steps": STEPS}
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    prompts = [row["prompt"] for row in rows] * 8
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    seconds = trl_seconds(model, tokenizer, prompts, folder / "trl", **sizes, **ON_CPU)
    return {"step": sum(seconds[1:]) / (STEPS - 1)}


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
