"""What the benchmarks share: a random model, its rows, and runs of the trainer's command line on one rank."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

REWARD = """
REWARD_TYPE = "batch"


def compute_score(rows):
    return [{"overall": len(row["response"]) % 7} for row in rows]
"""


def random_model(folder: Path) -> None:
    """A Llama of Atlas's shape, 3.5 million parameters, with random weights."""
    from tests.conftest import ATLAS_SHAPE, save_tiny_model

    save_tiny_model(folder, **ATLAS_SHAPE)


def write_rows(folder: Path, count: int) -> None:
    rows = [{"prompt": f"Who wrote book {i}?", "solution": ["<normal>", "King"]} for i in range(count)]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "reward.py").write_text(REWARD)


def arguments(folder: Path, run: str) -> list[str]:
    """One rank, fp32, KL in the loss."""
    return [
        f"data.train_files={folder / 'rows.json'}",
        "data.answer_key=solution",
        "data.max_prompt_length=32",
        "data.max_response_length=64",
        f"worker.actor.model.model_path={folder / 'model'}",
        "worker.actor.model.enable_gradient_checkpointing=false",
        "worker.actor.fsdp.mp_param_dtype=fp32",
        "worker.ref.fsdp.mp_param_dtype=fp32",
        "worker.rollout.dtype=fp32",
        "worker.rollout.n=8",
        "worker.rollout.tensor_parallel_size=1",
        f"worker.reward.reward_function={folder / 'reward.py'}:compute_score",
        "algorithm.use_kl_loss=true",
        "algorithm.kl_penalty=low_var_kl",
        "trainer.n_gpus_per_node=1",
        "trainer.logger=[console]",
        "trainer.save_model_only=true",
        f"trainer.run_dir={folder / run}",
    ]


def train(folder: Path, run: str, changes: list[str]) -> list[dict[str, float]]:
    """The metrics of a run, a row for each step."""
    from tests.training_kit import run_cli
    from verl.utils.logger.logger import read_metrics

    run_cli([*arguments(folder, run), *changes], timeout=1800)
    return read_metrics(folder / run)


def mean_seconds(rows: list[dict[str, float]], name: str) -> float:
    """The mean over all steps but the first, which warms up; 0 for a phase that did not run."""
    values = [row[name] for row in rows[1:] if name in row]
    return sum(values) / len(values) if values else 0.0
