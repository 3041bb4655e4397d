"""``python3 -m verl.trainer.main config=FILE key.sub=value ...``: checks a configuration, then trains.

Everything a user can get wrong is reported at once, with exit code 2, before Ray or a model is touched.
"""

import logging
import os
import signal
import sys
from typing import Any

from ..utils.config import load, to_yaml
from ..utils.dataset import read_rows
from ..utils.errors import ConfigError, DataError
from .config import PPOConfig, migrate
from .estimate import describe
from .inert import inert_settings
from .preflight import make_plan

logger = logging.getLogger(__name__)

CPU_OBJECT_STORE_BYTES = 512 * 2**20


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    try:
        config = load(PPOConfig, sys.argv[1:] if argv is None else argv, migrate)
        for warning in inert_settings(config):
            logger.warning("%s", warning)
        if config.trainer.dry_run:
            rows = read_rows(config.data.train_files)
            val_rows = read_rows(config.data.val_files) if config.data.val_files else []
            lines = [*make_plan(config, rows, val_rows).lines(), *describe(config, rows)]
            sys.stdout.write(to_yaml(config) + "\n" + "\n".join(lines) + "\n")
            return 0
        return run(config)
    except (ConfigError, DataError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


def run(config: PPOConfig) -> int:
    """Train; Ray and every process it started are gone when this returns or raises."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray would make the ranks give way to every other process
    import ray

    from ..single_controller.worker_group import WorkerError
    from ..utils.tokenizer import get_tokenizer
    from .experience import TrainingError
    from .ray_trainer import RayPPOTrainer

    data, model = config.data, config.worker.actor.model
    tokenizer = get_tokenizer(model.tokenizer, data.override_chat_template, model.trust_remote_code)
    check_overrides(config)
    train, noisy, val = read_datasets(config, tokenizer)
    plan = make_plan(config, train.used_rows, val.used_rows if val else [])
    if plan.steps_per_epoch == 0:
        raise ConfigError(
            f"data.rollout_batch_size={data.rollout_batch_size}: only {len(train)} prompts are short enough; "
            f"set at most {len(train)}, or raise data.max_prompt_length={data.max_prompt_length}"
        )
    for line in plan.lines():
        logger.info("%s", line)
    start_ray(config)
    trainer = RayPPOTrainer(config, tokenizer, train, val, plan.total_steps, noisy)
    try:
        trainer.start()
        trainer.fit()
        return 0
    except (TrainingError, WorkerError, OSError) as error:
        logger.error("%s", error)
        return 1
    except SystemExit as interruption:  # by a signal, see start_ray
        logger.error("interrupted in step %d; the same command goes on from the last checkpoint", trainer.step)
        return interruption.code
    finally:
        if config.trainer.ray_timeline:
            ray.timeline(config.trainer.ray_timeline)
        trainer.close()
        ray.shutdown()


def check_overrides(config: PPOConfig) -> None:
    """Raise ConfigError for an ``override_config`` that the model would ignore."""
    for role in ("actor", "critic") if config.use_critic else ("actor",):
        model = config.worker.model_of(role)
        if model.override_config:
            from ..utils.model import load_config  # takes a second

            load_config(model)


def read_datasets(config: PPOConfig, tokenizer: Any) -> tuple[Any, Any, Any]:
    """Training prompts; their twins with ``data.extra_prompt`` in front, or None; validation prompts, or None."""
    from ..utils.chat import check_template_kwargs
    from ..utils.dataset import RLHFDataset, read_rows, with_extra_prompt

    data, noisy = config.data, None
    check_template_kwargs(tokenizer, data.chat_template_kwargs, "data.chat_template_kwargs")
    options: dict[str, Any] = {
        "prompt_key": data.prompt_key,
        "answer_key": data.answer_key,
        "max_prompt_length": data.max_prompt_length,
        "format_prompt": data.format_prompt,
        "mode": data.mode,
        "shots": read_rows(str(data.icl_file)) if data.icl_file else [],
        "chat_template_kwargs": data.chat_template_kwargs,
        "filter_overlong_prompts": data.filter_overlong_prompts,
        "filter_overlong_prompts_workers": data.filter_overlong_prompts_workers,
    }
    val = RLHFDataset(data.val_files, tokenizer, **options) if data.val_files else None
    extra = with_extra_prompt(data.extra_prompt, data.format_prompt) if data.extra_prompt else data.format_prompt
    if config.worker.rollout.noise_rollout:
        # Twins are found by row number, so none of them may be left out.
        whole = options | {"format_prompt": extra, "filter_overlong_prompts": False}
        noisy = RLHFDataset(data.train_files, tokenizer, **whole)
    else:
        options["format_prompt"] = extra
    return RLHFDataset(data.train_files, tokenizer, **options), noisy, val


def start_ray(config: PPOConfig) -> None:
    """Connect to the cluster of several machines, or start Ray here; SIGINT and SIGTERM then end the run."""
    import ray
    import torch

    options: dict[str, Any] = {"address": config.trainer.ray_address, "logging_level": logging.ERROR}
    if config.trainer.ray_address == "local":
        # Logical CPUs: one a rank and for the reward process, however few cores there are.
        wanted = config.trainer.world_size + config.worker.reward.num_cpus
        options |= {"num_cpus": max(wanted, os.cpu_count() or 1), "include_dashboard": False}
        options["num_gpus"] = torch.cuda.device_count()  # Ray counts those that a CPU build of torch cannot use, too
        if not options["num_gpus"]:
            options["object_store_memory"] = CPU_OBJECT_STORE_BYTES
    ray.init(**options)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
