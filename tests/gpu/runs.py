"""Part of the GPU check: three ReBO steps of a small model under every setting that treats a device differently.

The model has Atlas' shape, rows and tokenizer, but random weights: what is shown is agreement, not forgetting. Under
each setting the engine must agree with the trainer, before updates and after; and on fixed rows, where nothing is
sampled, log-probabilities, gradients and what two updates change must be those of the CPU in fp32. These lie in
``reference.json``, which ``DEVICE=cpu bash tests/gpu/check.sh`` compares as well, and this writes anew:

    CUDA_VISIBLE_DEVICES= python3 -m tests.gpu.runs --write-reference

Sampled tokens differ between devices, so of rewards only the mean of the first step is compared, loosely.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tests import training_kit
from tests.gpu.findings import Noted, found
from tests.gpu.models import random_atlas, scratch
from tests.gpu.reference import Values, reference, share_off, write_reference
from verl.protocol import DataProto
from verl.trainer.main import start_ray
from verl.trainer.preflight import read_config
from verl.trainer.ray_trainer import RayPPOTrainer
from verl.utils.logger.logger import read_metrics
from verl.utils.ray_address import LOCAL
from verl.utils.vllm_env import has_accelerator

SECONDS_OF_A_RUN = float(os.environ.get("CHECK_SECONDS", "600")) / 3
"""of this part's own limit, so that one setting that hangs leaves time for others"""
REWARD_FILE = """
REWARD_TYPE = "batch"


def compute_score(reward_inputs, preset):
    return [{"overall": min(1.0, item["response"].count("e") / 20)} for item in reward_inputs]
"""
"""A reward that a random model earns now and then, so that groups differ and every update moves the weights."""
ROWS, PROMPT, RESPONSE = 8, 24, 32
"""of the fixed batch"""

BF16 = ["worker.actor.fsdp.mp_param_dtype=bf16", "worker.ref.fsdp.mp_param_dtype=bf16", "worker.rollout.dtype=bf16"]
AWAY = ["worker.actor.offload.offload_params=true", "worker.actor.offload.offload_optimizer=true"]
AWAY += ["worker.ref.offload.offload_params=true"]
GRPO, PPO = "examples/grpo_rj_rl.yaml", "examples/ppo_rj_rl.yaml"
SETTINGS = {
    "plain, fp32": (GRPO, "plain", []),
    "plain": (GRPO, "plain", BF16),
    "offloaded": (GRPO, "plain", [*BF16, *AWAY]),
    "reference on the host": (GRPO, "plain", [*BF16, "worker.ref.fsdp.enable_cpu_offload=true"]),
    "LoRA, adapters": (
        GRPO,
        "lora",
        [*BF16, "worker.actor.model.lora.rank=8", "worker.rollout.lora_weights=adapter"],
    ),
    "exact KL": (GRPO, "exact KL", [*BF16, "algorithm.kl_penalty=full"]),
    "PPO": (PPO, "PPO", [*BF16, "worker.critic.optim.lr=1e-3"]),
}
"""title: the shipped file, the entry of reference.json, settings beside it and those of ``arguments``"""
LIMITS = {
    "fp32": {"log-probs": 1e-3, "gradient": 0.01, "change": 0.02, "engine": 1e-2, "reward": 0.1},
    "bf16": {"log-probs": 0.06, "gradient": 0.06, "change": 0.10, "engine": 0.1, "reward": 0.1},
}
"""what arithmetic explains: nats, share, share, nats; and, for 128 samples, points of reward"""


def arguments(folder: Path, file: str, run: str, changes: list[str]) -> list[str]:
    """A run of three steps of 16 prompts x 8 samples, one rank, from a shipped file and Atlas' own."""
    target = next((folder / "Target").glob("1_*"))
    return [
        f"config={file},examples/atlas.yaml",
        f"data.train_files={target / 'rl_rejection_with_fb_neighbor_target.json'}",
        "data.val_files=null",
        f"worker.actor.model.model_path={folder / 'base'}",
        "worker.actor.optim.lr_scheduler_type=constant",
        "worker.actor.optim.min_lr_ratio=null",
        "worker.rollout.gpu_memory_utilization=0.2",
        "worker.rollout.enforce_eager=true",  # capturing graphs would take longer than three steps
        f"worker.reward.reward_function={folder / 'reward.py'}:compute_score",
        "trainer.max_steps=3",
        "trainer.find_last_checkpoint=false",
        f"trainer.run_dir={folder / run}",
        *changes,
    ]


@contextmanager
def started_trainer(argv: list[str]) -> Iterator[RayPPOTrainer]:
    """As ``training_kit.started_trainer``, under one Ray for all trainers of this process."""
    import ray

    config = read_config(argv)
    if not ray.is_initialized():
        os.environ.setdefault("RAY_worker_niceness", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        start_ray(config, LOCAL)
    with training_kit.started_trainer(config) as trainer:
        yield trainer


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the main thread when the time is over."""

    def ring(number: int, frame: object) -> None:
        raise TimeoutError(f"not done within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- fixed rows -----------------------------------------------------------------------------------------------------
def fixed_batch(words: int) -> DataProto:
    """Rows of random tokens with responses of different lengths; every second one is to become likelier."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, words, (ROWS, PROMPT + RESPONSE), generator=generator)
    mask = torch.arange(RESPONSE) < torch.arange(RESPONSE, RESPONSE - 3 * ROWS, -3)[:, None]
    mask = mask.to(torch.int64)
    whole = torch.cat([torch.ones(ROWS, PROMPT, dtype=torch.int64), mask], dim=1)
    advantages = mask * torch.tensor([1.0, -1.0]).repeat(ROWS // 2)[:, None]
    tensors = {
        "input_ids": ids * whole,
        "attention_mask": whole,
        "position_ids": torch.arange(PROMPT + RESPONSE).repeat(ROWS, 1),
        "prompts": ids[:, :PROMPT],
        "responses": ids[:, PROMPT:] * mask,
        "response_mask": mask,
        "advantages": advantages,
        "returns": advantages,
    }
    return DataProto.from_dict(tensors)


def on_ranks(trainer: RayPPOTrainer, method: str, batch: DataProto, **meta_info: object) -> DataProto:
    batch.meta_info = meta_info
    return DataProto.concat(trainer.workers.split(method, batch))


def two_updates(trainer: RayPPOTrainer) -> Values:
    """What the ranks say of the fixed rows, and what two updates on them do."""
    batch = fixed_batch(len(trainer.tokenizer))
    mask_BT = batch.batch["response_mask"]
    seen, metrics = [], []
    for step in (1, 2):
        batch.batch["old_log_probs"] = on_ranks(trainer, "compute_log_probs", batch).batch["old_log_probs"]
        batch.batch["rollout_log_probs"] = batch.batch["old_log_probs"]
        seen.append(batch.batch["old_log_probs"])
        if trainer.config.reference_pass:
            batch.batch.update(on_ranks(trainer, trainer.config.reference_pass, batch).batch)
        if trainer.config.use_critic:
            batch.batch["values"] = on_ranks(trainer, "compute_values", batch).batch["values"]
            batch.meta_info = {}
            metrics.append(trainer.workers.split("update_critic", batch)[0])
        updated = on_ranks(trainer, "update_actor", batch, kl_coef=0.1, step=step)
        metrics.append(updated.meta_info["metrics"])
    seen.append(on_ranks(trainer, "compute_log_probs", batch).batch["old_log_probs"])
    means = [((row_BT * mask_BT).sum(1) / mask_BT.sum(1)) for row_BT in seen]
    change = means[2] - means[0]
    wanted = ("actor/grad_norm", "actor/kl_loss", "critic/grad_norm", "critic/vf_loss")
    return {
        "log-probs": means[0].tolist(),
        "gradient": [row[name] for row in metrics for name in wanted if name in row],
        "change": [change[0::2].mean().item(), change[1::2].mean().item()],
    }


# ---- comparing ------------------------------------------------------------------------------------------------------
def run(folder: Path, title: str, *, fp32: bool = False) -> Values:
    """What a setting gives: on the fixed rows, and of three steps the engine's difference, first reward and seconds."""
    file, _, changes = SETTINGS[title]
    if fp32 or not has_accelerator():  # bf16 is slower than fp32 by far on most CPUs
        changes = [change for change in changes if change not in BF16]
    name = "".join(letter for letter in title if letter.isalnum())
    with started_trainer(arguments(folder, file, name, changes)) as trainer:
        measured = two_updates(trainer)
        trainer.fit()
    rows = read_metrics(folder / name)
    measured["engine"] = [row["rollout/mean_abs_diff"] for row in rows]
    measured["reward"] = [rows[0]["reward/overall"]]
    measured["seconds"] = [row["perf/time_per_step"] for row in rows]
    return measured


def compare(title: str, measured: Values, expected: Values, started: float) -> None:
    """Note how far a setting is from the reference."""
    apart = {
        "log-probs": max(abs(a - b) for a, b in zip(measured["log-probs"], expected["log-probs"], strict=True)),
        "gradient": share_off(measured["gradient"], expected["gradient"]),
        "change": share_off(measured["change"], expected["change"]),
        "engine": max(measured["engine"]),
        "reward": abs(measured["reward"][0] - expected["reward"][0]),
    }
    limits = LIMITS["bf16" if has_accelerator() and not title.endswith("fp32") else "fp32"]
    passed = all(apart[kind] <= limit for kind, limit in limits.items())
    steady = measured["seconds"][1:]
    times = {"step s": sum(steady) / len(steady), "all s": time.monotonic() - started}
    found(title, passed, **{f"{kind} off": value for kind, value in apart.items()}, **times)


def main(argv: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    with scratch() as place:
        folder = random_atlas(place / "atlas")
        (folder / "reward.py").write_text(REWARD_FILE)
        if argv == ["--write-reference"]:
            titles = {entry: title for title, (_, entry, _) in SETTINGS.items()}
            made = {entry: run(folder, title, fp32=True) for entry, title in titles.items()}
            kinds = ("log-probs", "gradient", "change", "reward")
            write_reference({entry: {kind: values[kind] for kind in kinds} for entry, values in made.items()})
            return
        for title in argv or SETTINGS:
            started = time.monotonic()
            with Noted(title), at_most(SECONDS_OF_A_RUN):
                compare(title, run(folder, title), reference(SETTINGS[title][1]), started)


if __name__ == "__main__":
    main(sys.argv[1:])
