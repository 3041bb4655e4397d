"""``python3 -m verl.trainer.main config=FILE key.sub=value ...``: checks a configuration, then trains.

Everything a user can get wrong is reported at once, with exit code 2, before Ray or a model is touched.
"""

import logging
import os
import signal
import sys
from typing import Any

from ..config.checks.inert import inert_settings
from ..config.run import PPOConfig
from ..rows.sources import read_rows
from ..rows.values import read_shots
from ..settings.reader import to_yaml
from ..utils.environment import set_defaults
from ..utils.errors import ConfigError, DataError
from ..utils.orphans import watch
from ..utils.ray_address import LOCAL, QUICKLY, reachable, unreachable
from .preflight import make_plan, read_config, retain_problems, share_problems
from .resuming import changed_settings, check_steps_left

logger = logging.getLogger(__name__)

CPU_OBJECT_STORE_BYTES = 512 * 2**20


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    try:
        config = read_config(sys.argv[1:] if argv is None else argv)
        for warning in inert_settings(config):
            logger.warning("%s", warning)
        for change in changed_settings(config):
            logger.info("%s", change)
        if config.trainer.dry_run:
            from ..estimate.dry_run import describe  # takes seconds

            rows = read_rows(config.data.train_files)
            val_rows = read_rows(config.data.val_files) if config.data.val_files else []
            plan = make_plan(config, rows, val_rows)
            check_steps_left(config, plan.total_steps)
            lines = [*plan.lines(), *describe(config, rows)]
            sys.stdout.write(to_yaml(config) + "\n" + "\n".join(lines) + "\n")
            return 0
        return run(config)
    except (ConfigError, DataError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


def run(config: PPOConfig) -> int:
    """Train; Ray and every process it started are gone when this returns or raises."""
    set_defaults(RAY_USAGE_STATS_ENABLED="0", TOKENIZERS_PARALLELISM="false", TORCH_CPP_LOG_LEVEL="ERROR")
    set_defaults(RAY_worker_niceness="0")  # Ray would make the ranks give way to every other process
    address = reachable(config.trainer.nnodes)
    if address != LOCAL:
        os.environ.update(QUICKLY | os.environ)
    watch()
    import ray

    from ..models.build import check_token_ids
    from ..single_controller.worker_group import WorkerError
    from ..utils.tokenizer import get_tokenizer
    from .experience import TrainingError
    from .ray_trainer import RayPPOTrainer

    data, model = config.data, config.worker.actor.model
    tokenizer = get_tokenizer(model.tokenizer, data.override_chat_template, model.trust_remote_code)
    check_models(config)
    train, noisy, val = read_datasets(config, tokenizer)
    used = (ids for rows in (train, noisy, val) if rows for ids in (*rows.token_ids, *rows.gold.values()))
    check_token_ids(model, tokenizer, used)
    plan = make_plan(config, train.used_rows, val.used_rows if val else [])
    if plan.steps_per_epoch == 0:
        raise ConfigError(
            f"data.rollout_batch_size={data.rollout_batch_size}: only {len(train)} prompts are short enough; "
            f"set at most {len(train)}, or raise data.max_prompt_length={data.max_prompt_length}"
        )
    # Prompts that were too long are gone by now.
    if problems := share_problems(config, train.used_rows) + retain_problems(config, train.used_rows):
        raise ConfigError("\n".join(problems))
    check_steps_left(config, plan.total_steps)
    for line in plan.lines():
        logger.info("%s", line)
    start_ray(config, address)
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


def check_models(config: PPOConfig) -> None:
    """Raise ConfigError or DataError for models that the ranks could not build, adapt or load."""
    from ..models.build import check_model  # takes a second
    from ..models.loading import check_weights

    worker, adapters = config.worker, config.worker.rollout.lora_weights == "adapter"
    check_model(worker.model_of("actor"), engine_adapters=adapters)
    if config.use_critic:
        check_model(worker.model_of("critic"), value_head=True)
    # The machines of a cluster have what this one may lack.
    here = config.trainer.is_local
    for path in sorted({str(worker.model_of(role).model_path) for role in ("actor", "ref", "critic")}):
        check_weights(path, must_be_here=here)


def read_datasets(config: PPOConfig, tokenizer: Any) -> tuple[Any, Any, Any]:
    """Training prompts; their twins with ``data.extra_prompt`` in front, or None; validation prompts, or None."""
    from ..utils.chat import check_template_kwargs, turn_end
    from .dataset import RLHFDataset, with_extra_prompt

    data = config.data
    check_template_kwargs(tokenizer, data.chat_template_kwargs, "data.chat_template_kwargs")
    turn_end(tokenizer, data.chat_template_kwargs)  # a tokenizer that has no end is said now
    options: dict[str, Any] = {
        "prompt_key": data.prompt_key,
        "answer_key": data.answer_key,
        "max_prompt_length": data.max_prompt_length,
        "format_prompt": data.format_prompt,
        "mode": data.mode,
        "shots": read_shots(data.icl_file) if data.icl_file else [],
        "chat_template_kwargs": data.chat_template_kwargs,
        "filter_overlong_prompts": data.filter_overlong_prompts,
        "filter_overlong_prompts_workers": data.filter_overlong_prompts_workers,
    }
    val = RLHFDataset(data.val_files, tokenizer, **options) if data.val_files else None
    extra = with_extra_prompt(data.extra_prompt, data.format_prompt) if data.extra_prompt else data.format_prompt
    gold_length = None if config.algorithm.retain_loss == "none" else data.max_response_length
    if not config.worker.rollout.noise_rollout:
        options |= {"format_prompt": extra, "gold_length": gold_length}
        return RLHFDataset(data.train_files, tokenizer, **options), None, val
    train = RLHFDataset(data.train_files, tokenizer, **options, gold_length=gold_length)
    noisy = RLHFDataset(data.train_files, tokenizer, **options | {"format_prompt": extra}, twin_of=train)
    return train, noisy, val


def start_ray(config: PPOConfig, address: str) -> None:
    """Join the cluster of several machines, or start Ray here; SIGINT and SIGTERM then end the run.

    Raises:
        ConfigError: what answers at the address is no cluster, or this machine is none of its machines.
    """
    import ray
    import torch

    options: dict[str, Any] = {"address": address, "logging_level": logging.ERROR}
    if address == LOCAL:
        # Logical CPUs: one a rank and for the reward process, however few cores there are.
        wanted = config.trainer.world_size + config.worker.reward.num_cpus
        options |= {"num_cpus": max(wanted, os.cpu_count() or 1), "include_dashboard": False}
        options["num_gpus"] = torch.cuda.device_count()  # Ray counts those that a CPU build of torch cannot use, too
        if not options["num_gpus"]:
            options["object_store_memory"] = CPU_OBJECT_STORE_BYTES
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address == LOCAL:
            raise
        reason = f"Ray cannot join what is at {address} ({error})"
        raise ConfigError(unreachable(config.trainer.nnodes, reason)) from error
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
