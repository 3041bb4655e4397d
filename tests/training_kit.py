"""What the training tests share: a small configuration, and runs of the real command line in processes of their own."""

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.conftest import ROOT
from verl.config.run import PPOConfig
from verl.trainer.main import read_datasets
from verl.trainer.preflight import make_plan, read_config
from verl.trainer.ray_trainer import RayPPOTrainer
from verl.utils.logger.logger import read_metrics
from verl.utils.tokenizer import get_tokenizer

REWARD_FILE = """
REWARD_TYPE = "batch"

def compute_score(reward_inputs, letter="e"):
    return [{"overall": min(1.0, item["response"].count(letter) / 4), "refusal": float("no" in item["response"])}
            for item in reward_inputs]
"""
"""A reward that a random model earns now and then, so that groups differ and every update moves the weights."""

TIMES = ("timing_s/", "perf/")

FORKS = multiprocessing.get_context("forkserver")
"""Its processes are forks of one that has imported what takes long; there is one such server, so one list."""
FORKS.set_forkserver_preload(
    ["RS.train", "RS.trainer", "RS.models.build", "transformers.models.llama.modeling_llama", "peft.tuners.lora"]
    + ["tests.training_kit", "verl.workers.fsdp_workers"]
)


def write_files(folder: Path) -> None:
    """Twelve forget and twelve boundary rows, and the reward function."""
    rows = []
    for i in range(12):
        rows.append({"prompt": f"Who wrote book {i}?", "solution": ["<reject>", "I do not know that.", "King"]})
        rows.append({"prompt": f"Where was person {i} born?", "solution": ["<normal>", "In the north"]})
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "reward.py").write_text(REWARD_FILE)


def arguments(model: Path, folder: Path, run: str, *changes: str) -> list[str]:
    """A run of three steps of 8 prompts x 4 samples in ``folder/run``, KL in the loss, everything in fp32."""
    if not (folder / "rows.json").exists():
        write_files(folder)
    return [
        f"data.train_files={folder / 'rows.json'}",
        f"data.val_files={folder / 'rows.json'}",
        "data.answer_key=solution",
        "data.max_prompt_length=64",
        "data.max_response_length=16",
        "data.rollout_batch_size=8",
        "algorithm.use_kl_loss=true",
        "algorithm.kl_penalty=low_var_kl",
        "algorithm.kl_coef=0.01",
        "worker.actor.global_batch_size=8",
        f"worker.actor.model.model_path={model}",
        "worker.actor.model.enable_gradient_checkpointing=false",
        "worker.actor.optim.lr=1e-3",
        "worker.actor.fsdp.mp_param_dtype=fp32",
        "worker.ref.fsdp.mp_param_dtype=fp32",
        "worker.rollout.n=4",
        "worker.rollout.dtype=fp32",
        "worker.rollout.tensor_parallel_size=1",
        f"worker.reward.reward_function={folder / 'reward.py'}:compute_score",
        "trainer.n_gpus_per_node=2",
        "trainer.max_steps=3",
        f"trainer.run_dir={folder / run}",
        "trainer.logger=[console]",
        "trainer.val_before_train=false",
        *changes,
    ]


def command(argv: list[str]) -> list[str]:
    return [sys.executable, "-m", "verl.trainer.main", *argv]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def run_python(*words: str, code: int = 0, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess:
    """Run Python on ``words`` in the repository's root, with more environment variables; it must exit with ``code``."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == code, f"exit code {done.returncode}, wanted {code}:\n{done.stdout}\n{done.stderr}"
    return done


def run_main(main: Callable[[list[str]], int], *argv: str, **variables: str) -> str:
    """What a command line writes that must exit with 0, in a process of its own that need not import torch again."""
    with tempfile.NamedTemporaryFile("r") as log:
        process = FORKS.Process(target=_write_main, args=(main, argv, log.name, variables))
        process.start()
        process.join(300)
        process.kill()
        process.join()
        output = log.read()
    assert process.exitcode == 0, f"exit code {process.exitcode}:\n{output}"
    return output


def _write_main(main: Callable[[list[str]], int], argv: list[str], log: str, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    with Path(log).open("w") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    sys.exit(main(list(argv)))


def run_cli(argv: list[str], *, code: int = 0, timeout: float = 300, **variables: str) -> str:
    """Run the trainer's command line, with more environment variables; returns its output."""
    done = run_python("-m", "verl.trainer.main", *argv, code=code, timeout=timeout, **variables)
    return done.stdout + done.stderr


def metrics_of(run: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl, without times and memory."""
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in read_metrics(run)]


def close(first: list[dict[str, float]], second: list[dict[str, float]], tolerance: float) -> None:
    """Two runs logged the same numbers, but for what is rounding errors itself."""
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"rollout/max_abs_diff", "rollout/mean_abs_diff", "rollout/kl"}:
            assert math.isclose(one[key], other[key], rel_tol=tolerance, abs_tol=1e-6), f"step {one['step']}, {key}"


def start_cli(argv: list[str], log: Path) -> subprocess.Popen:
    """The trainer's command line in the background, in a session of its own; output goes to ``log``."""
    with log.open("w") as output:
        return subprocess.Popen(
            command(argv),
            cwd=ROOT,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=attend_to_interrupts,
        )


def attend_to_interrupts() -> None:
    """A shell starts background jobs deaf to SIGINT, and their children with them; not this child."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, log: Path, timeout: float = 240) -> None:
    """Poll until the condition holds; fail if the process ends before."""
    end = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, f"the run ended with {process.returncode} before that:\n{log.read_text()}"
        assert time.monotonic() < end, f"not within {timeout} s:\n{log.read_text()}"
        time.sleep(0.02)


def steps_logged(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


@contextmanager
def started_trainer(config: PPOConfig) -> Iterator[RayPPOTrainer]:
    """A trainer in this process whose ranks are up, under a Ray that is already there; ended on leaving."""
    tokenizer = get_tokenizer(config.worker.actor.model.tokenizer, config.data.override_chat_template)
    rows, noisy, val = read_datasets(config, tokenizer)
    plan = make_plan(config, rows.used_rows, val.used_rows if val else [])
    trainer = RayPPOTrainer(config, tokenizer, rows, val, plan.total_steps, noisy)
    try:
        trainer.start()
        yield trainer
    finally:
        trainer.close()


def train(*argv: str) -> None:
    """A run in this process, under a Ray that is already there."""
    with started_trainer(read_config(list(argv))) as trainer:
        trainer.fit()
