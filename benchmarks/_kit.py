"""What the benchmarks share: a random model, its rows, and runs of the trainer's command line on one rank."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

REWARD = """
REWARD_TYPE = "batch"


def compute_score(rows):
    return [{"overall": len(row["response"]) % 7} for row in rows]
"""


def random_model(folder: Path) -> None:
    """A Llama of Atlas's shape, 3.5 million parameters, with random weights."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from tests.conftest import make_tokenizer

    tokenizer = make_tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        **ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


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
    from verl.utils.logger.logger import read_metrics

    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_BACKEND_LOG_LEVEL": "fatal"}
    command = [sys.executable, "-m", "verl.trainer.main", *arguments(folder, run), *changes]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return list(read_metrics(folder / run))


def mean_seconds(rows: list[dict[str, float]], name: str) -> float:
    """The mean over all steps but the first, which warms up; 0 for a phase that did not run."""
    values = [row[name] for row in rows[1:] if name in row]
    return sum(values) / len(values) if values else 0.0
