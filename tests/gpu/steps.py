"""Part of the GPU check: steps of a large model with random weights, by phases, and the same by TRL.

    python3 -m tests.gpu.steps 1b|8b-lora|long-1b|8b [apart | trl]

RULE's load (many samples of a question, short answers) with prompts computed once or, ``apart``, with every sample, and
by TRL; long answers; and all weights of a large model. Every response has full length. The first step warms up and is
not counted. Without a GPU the same program runs on a model of two narrow layers. No checkpoint is written: the
trainer's steps are called one by one.
"""

import importlib.util
import json
import logging
import math
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.gpu.findings import Noted, found
from tests.gpu.models import IN_SMALL, SHAPES, random_atlas, random_llama, scratch
from verl.trainer.preflight import read_config
from verl.utils import vllm_env

PROMPT = "Where was the tailor of Zagan born, and what was the name of the ship that she won? "
REWARD_FILE = """
REWARD_TYPE = "batch"


def compute_score(rows, preset):
    return [{"overall": len(row["response"]) % 7} for row in rows]
"""
ROOM = 4 * 2**30
"""bytes that CUDA, NCCL and fragmentation take beside what is predicted"""
TIMES = ("timing_s/", "perf/")
LARGEST_ENGINE_DIFFERENCE = 0.1


@dataclass(frozen=True)
class Job:
    """A model and a batch."""

    shape: str
    prompts: int
    rollouts: int
    sentences: int
    """of a prompt"""
    tokens: int
    """of a response"""
    micro: int
    """samples of TRL's forward and backward pass; ours finds its own"""
    steps: int
    changes: list[str] = field(default_factory=list)


TYPES = ("actor.fsdp.mp_param_dtype", "ref.fsdp.mp_param_dtype", "rollout.dtype")
STAYING = [f"worker.actor.offload.offload_{what}=false" for what in ("params", "optimizer")]
STAYING += ["worker.ref.fsdp.enable_cpu_offload=false"]
LORA = ["worker.actor.model.lora.rank=64", "worker.rollout.lora_weights=adapter"]
ALL_WEIGHTS = ["worker.actor.optim.strategy=adamw_bf16", "worker.rollout.gpu_memory_utilization=0.4"]
ALL_WEIGHTS += ["worker.ref.fsdp.enable_cpu_offload=false", "worker.ref.offload.offload_params=true"]
ALL_WEIGHTS += ["worker.actor.offload.offload_params=false"]  # the host has room for the moments, hardly for both
JOBS = {
    "1b": Job("1b", 64, 8, 4, 32, 64, 4, [*STAYING, "worker.rollout.gpu_memory_utilization=0.4"]),
    "8b-lora": Job("8b", 32, 8, 4, 32, 32, 3, [*STAYING, *LORA, "worker.rollout.gpu_memory_utilization=0.5"]),
    "long-1b": Job("1b", 32, 8, 8, 512, 16, 3, [*STAYING, "worker.rollout.gpu_memory_utilization=0.4"]),
    "8b": Job("8b", 8, 8, 8, 512, 4, 2, ALL_WEIGHTS),
}


def job_here(name: str) -> tuple[Job, dict]:
    """The job and its model's shape, both small where there is no GPU."""
    job = JOBS[name]
    if vllm_env.has_accelerator():
        return job, SHAPES[job.shape]
    changes = [*job.changes, *(f"worker.{key}=auto" for key in TYPES)]  # bf16 is slower than fp32 on most CPUs
    small = replace(job, prompts=4, rollouts=4, tokens=32, micro=4, changes=changes)
    return small, SHAPES[job.shape] | IN_SMALL


def write_all(folder: Path, shape: dict, job: Job) -> None:
    """The model in ``folder``/model, rows and reward."""
    atlas = random_atlas(folder / "atlas")
    random_llama(folder / "model", shape, atlas / "base")
    texts = [f"{number}. {PROMPT * job.sentences}" for number in range(job.prompts * (job.steps + 1))]
    rows = [{"prompt": text, "solution": ["<normal>", "King"]} for text in texts]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "reward.py").write_text(REWARD_FILE, encoding="utf-8")


def arguments(folder: Path, job: Job) -> list[str]:
    return [
        "config=examples/grpo_rj_rl.yaml",
        f"data.train_files={folder / 'rows.json'}",
        "data.val_files=null",
        "data.max_prompt_length=256",
        f"data.max_response_length={job.tokens}",
        f"data.rollout_batch_size={job.prompts}",
        f"worker.actor.global_batch_size={job.prompts}",
        f"worker.actor.model.model_path={folder / 'model'}",
        f"worker.rollout.n={job.rollouts}",
        "worker.rollout.ignore_eos=true",
        f"worker.reward.reward_function={folder / 'reward.py'}:compute_score",
        "trainer.n_gpus_per_node=1",
        f"trainer.max_steps={job.steps}",
        f"trainer.run_dir={folder / 'run'}",
        *job.changes,
    ]


def predict(folder: Path, job: Job, prompt_tokens: int) -> dict[str, float]:
    """The dry run's figures: GiB of the fullest moment of all, and of the fullest training phase; seconds of a step."""
    from verl.estimate.estimate import estimate
    from verl.estimate.flops import ModelShape
    from verl.estimate.hardware import Hardware
    from verl.estimate.micro_batches import with_micro_batches
    from verl.utils.memory import GIB

    config, shapes = read_config(arguments(folder, job)), {"actor": ModelShape.of(folder / "model")}
    hardware = Hardware.here(config.worker.actor.fsdp.mp_param_dtype)
    one = estimate(with_micro_batches(config, shapes, hardware.memory), shapes, hardware, prompt_tokens)
    training = max(one.total(phase) for phase in one.phases if phase not in ("load", "rollout"))
    largest = max(map(one.total, one.phases))
    return {
        "needed": largest / GIB,
        "available": (hardware.memory - ROOM) / GIB if hardware.memory else math.inf,
        "predicted GiB": training / GIB,
        "predicted s": sum(one.seconds.values()),
    }


def measure(title: str, folder: Path, job: Job) -> None:
    """Steps of ours; the mean of all but the first."""
    from transformers import AutoTokenizer

    from tests.gpu.runs import started_trainer

    prompt_tokens = len(AutoTokenizer.from_pretrained(folder / "model").encode(PROMPT * job.sentences))
    expected = predict(folder, job, prompt_tokens)
    needed, available = expected.pop("needed"), expected.pop("available")
    if needed > available:
        found(title, None, **{"needed GiB": needed, "available GiB": available})
        return
    started = time.monotonic()
    with started_trainer(arguments(folder, job)) as trainer:
        building, rows = time.monotonic() - started, []
        for step in range(1, job.steps + 1):
            trainer.step = step
            rows.append(trainer.train_step())
            print(f"step {step}: {rows[-1]['perf/time_per_step']:.2f} s", flush=True)
    note(title, rows, {**expected, "start s": building})


def note(title: str, rows: list[dict[str, float]], others: dict[str, float]) -> None:
    """The means of all steps but the first, and the largest memory and difference of all."""
    counted = rows[1:]
    mean = {key: sum(row[key] for row in counted) / len(counted) for key in counted[-1] if key.startswith(TIMES)}
    numbers = {f"{key.removeprefix(TIMES[0])} s": value for key, value in mean.items() if key.startswith(TIMES[0])}
    numbers |= {
        "step s": mean["perf/time_per_step"],
        "predicted s": others["predicted s"],
        "tokens/s": mean["perf/throughput"],
        "generated/s": mean["perf/gen_tokens_per_s"],
        "update MFU": mean.get("perf/mfu", ""),
        "peak GiB": max(row["perf/peak_memory_gib"] for row in rows),
        "predicted GiB": others["predicted GiB"],
        "engine off": max(row["rollout/mean_abs_diff"] for row in rows),
        "start s": others["start s"],
    }
    finite = all(math.isfinite(row["actor/grad_norm"]) and row["actor/grad_norm"] > 0 for row in rows)
    found(title, finite and numbers["engine off"] <= LARGEST_ENGINE_DIFFERENCE, **numbers)


def measure_trl(title: str, folder: Path, job: Job) -> None:
    """The same step by TRL's GRPOTrainer: sampling by vLLM in the same process, or by transformers on a CPU."""
    from transformers import AutoTokenizer

    from tests.gpu.peer import trl_settings, trl_steps

    on_gpu = vllm_env.has_accelerator()
    if on_gpu:
        vllm_env.load()  # in the environment that an engine in this process needs
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    measured = trl_steps(
        str(folder / "model"),
        AutoTokenizer.from_pretrained(folder / "model"),
        [row["prompt"] for row in rows],
        folder / "trl",
        prompts_a_step=job.prompts,
        rollouts=job.rollouts,
        tokens=job.tokens,
        micro=job.micro,
        steps=job.steps,
        **trl_settings(on_gpu=on_gpu, fast_bf16=on_gpu, longest=256 + job.tokens),
    )
    seconds = [row["step"] for row in measured]
    mean = sum(seconds[1:]) / len(seconds[1:])
    found(title, True, **{"step s": mean, "first step s": seconds[0]})


def main(argv: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    name, *how = argv
    title = " ".join([*how, name])
    if how == ["trl"] and not importlib.util.find_spec("trl"):
        found(title, None, why="trl is not installed")
        return
    job, shape = job_here(name)
    if how == ["apart"]:
        job = replace(job, changes=[*job.changes, "worker.actor.share_prompts=false"])
    with scratch() as folder, Noted(title):
        started = time.monotonic()
        write_all(folder, shape, job)
        print(f"the model is written: {time.monotonic() - started:.1f} s", flush=True)
        (measure_trl if how == ["trl"] else measure)(title, folder, job)


if __name__ == "__main__":
    main(sys.argv[1:])
