"""One side of the benchmark in a process of its own: a step for every line that comes in, its figures on a line out.

    python3 benchmarks/sides.py ours|trl|rank FOLDER JOB

FOLDER holds the files of ``loads.write_files`` and JOB.json. ``run.py`` starts several of these and lets them step in
turns, so that a machine that becomes slower does so for all of them. A side that waits uses no core.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

ROOT = Path(__file__).resolve().parents[1]
MARK = "@@ "
"""before a line that is meant for run.py"""
NAMES = {"old": "old/ref", "ref": "old/ref", "update_actor": "update"}
MANY = 100_000


def tell(figures: dict[str, Any]) -> None:
    sys.stdout.write(f"{MARK}{json.dumps(figures)}\n")
    sys.stdout.flush()


def wait() -> None:
    """For the next line; ends the process when there will be none."""
    if not sys.stdin.readline():
        raise SystemExit(0)


def memory(processes: list[psutil.Process]) -> dict[str, float]:
    """GiB of the largest process at its peak, GiB of all others' peaks, GiB resident in the largest now."""
    peaks, now = [], []
    for process in processes:
        try:
            text = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        except OSError:  # it has ended
            continue
        fields = dict(line.split(":", 1) for line in text.splitlines())
        if "VmHWM" in fields:
            peaks.append(int(fields["VmHWM"].split()[0]) / 2**20)
            now.append(int(fields["VmRSS"].split()[0]) / 2**20)
    largest = peaks.index(max(peaks))
    return {"peak_gib": peaks[largest], "others_gib": sum(peaks) - peaks[largest], "resident_gib": now[largest]}


def timed(seconds: dict[str, float], name: str, function: Callable) -> Callable:
    """``function``, whose calls add to ``seconds[name]``."""

    def call(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

    return call


def ours(folder: Path, job: dict[str, Any]) -> None:
    """Steps of the trainer, as its loop makes them, but for logging and checkpoints."""
    from loads import Load, arguments

    from tests.training_kit import started_trainer
    from verl.single_controller import WorkerGroup
    from verl.trainer.main import start_ray
    from verl.trainer.preflight import read_config
    from verl.utils.environment import set_defaults
    from verl.utils.ray_address import LOCAL

    set_defaults(RAY_USAGE_STATS_ENABLED="0", TOKENIZERS_PARALLELISM="false", RAY_worker_niceness="0")
    begun = {"imports": time.time() - psutil.Process().create_time()}
    config = timed(begun, "configuration", read_config)(
        arguments(folder, Load(**job["load"]), job["run"], job["changes"])
    )
    timed(begun, "Ray", start_ray)(config, LOCAL)
    WorkerGroup.__init__ = timed(begun, "processes of the ranks", WorkerGroup.__init__)
    started = time.perf_counter()
    with started_trainer(config) as trainer:
        begun["models, engine, rows"] = time.perf_counter() - started - begun["processes of the ranks"]
        sharing = getattr(config.worker.actor, "share_prompts", False)
        tell({"startup": begun, "shares_prompts": sharing})
        while True:
            wait()
            trainer.step += 1
            start = time.perf_counter()
            row = trainer.train_step()
            tell(our_figures(row, time.perf_counter() - start))


def our_figures(row: dict[str, float], step: float) -> dict[str, Any]:
    """Seconds by phase, lengths and memory."""
    phases = {"step": step}
    for key, value in row.items():
        if key.startswith("timing_s/"):
            name = key.removeprefix("timing_s/")
            name = NAMES.get(name, name)
            phases[name] = phases.get(name, 0.0) + value
    tokens = round(row["perf/total_num_tokens"])
    return {"seconds": phases, "tokens": tokens, **memory(psutil.Process().children(recursive=True))}


def rank(folder: Path, job: dict[str, Any]) -> None:
    """What a rank does before its first step, in this process; it makes no steps."""
    import socket

    from loads import Load, arguments

    from verl.trainer.preflight import read_config
    from verl.utils import vllm_env
    from verl.utils.environment import cores
    from verl.workers.fsdp_workers import FSDPWorker

    begun = {"imports of torch and ours": time.time() - psutil.Process().create_time()}
    config = read_config(arguments(folder, Load(**job["load"]), job["run"], []))
    timed(begun, "imports of vLLM", vllm_env.load)(log_stats=False)
    worker = FSDPWorker(config, 0, 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()
    timed(begun, "process group", worker.connect)(address, cores())
    worker._build_policy = timed(begun, "actor and reference", worker._build_policy)
    worker._build_rollout = timed(begun, "engine", worker._build_rollout)
    worker.init_model()
    tell({"startup": begun})


def trl(folder: Path, job: dict[str, Any]) -> None:
    """Steps of TRL's GRPOTrainer."""
    from loads import Load, chat
    from transformers import AutoTokenizer

    from tests.gpu.peer import trl_settings, trl_steps
    from verl.models.build import fast_bf16
    from verl.utils.vllm_env import has_accelerator

    load = Load(**job["load"])
    rows = json.loads((folder / "rows.json").read_text())
    tell({"startup": {"imports": time.time() - psutil.Process().create_time()}, "shares_prompts": False})

    seen = [0]

    def after(seconds: dict[str, float], tokens: int) -> None:
        names = {NAMES.get(name, name): value for name, value in seconds.items()}
        tell({"seconds": names, "tokens": tokens - seen[0], **memory([psutil.Process()])})
        seen[0] = tokens

    trl_steps(
        str(folder / "model"),
        AutoTokenizer.from_pretrained(folder / "model"),
        [chat(row["prompt"]) for row in rows],
        folder / job["run"],
        prompts_a_step=load.prompts,
        rollouts=load.samples,
        tokens=load.response_tokens,
        micro=min(load.trl_micro, load.prompts * load.samples),
        steps=MANY,
        before=wait,
        after=after,
        **trl_settings(
            on_gpu=has_accelerator(),
            fast_bf16=load.precision == "auto" and fast_bf16(),
            longest=load.prompt_tokens + load.response_tokens,
        )
        | job["settings"],
    )


def main(argv: list[str]) -> None:
    logging.disable(logging.WARNING)
    kind, folder = argv[0], Path(argv[1])
    job = json.loads((folder / f"{argv[2]}.json").read_text())
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    {"ours": ours, "trl": trl, "rank": rank}[kind](folder, job)


if __name__ == "__main__":
    main(sys.argv[1:])
