"""What can be known of a run before anything starts: whether its files are usable, and its arithmetic.

Reads the data and the reward file, but loads no model, no tokenizer and no Ray.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.checkpoint import find_latest_ckpt, is_whole
from ..utils.dataset import Row, read_rows, row_problems, split_of
from ..utils.errors import ConfigError, DataError
from ..utils.logger import available
from ..utils.ulysses import head_problem
from ..workers.reward.function import load_reward_function

if TYPE_CHECKING:
    from .config import PPOConfig, TrainerConfig


def file_problems(config: "PPOConfig") -> list[str]:
    """Problems of the files that a configuration names: data, templates, models, a checkpoint, the reward function."""
    found = [*_data_problems(config), *_model_problems(config), *_template_problems(config), *_resume_problems(config)]
    try:
        load_reward_function(config.worker.reward)
    except ConfigError as error:
        found += str(error).splitlines()
    for name in config.trainer.logger:
        if reason := available(name):
            found.append(f"trainer.logger: {name}: {reason}")
    return found


def _data_problems(config: "PPOConfig") -> list[str]:
    data, found = config.data, []
    for key, sources in (("train_files", data.train_files), ("val_files", data.val_files)):
        if not sources:
            continue
        try:
            rows = read_rows(sources)
        except DataError as error:
            found.append(f"data.{key}: {error}")
            continue
        found += row_problems(rows, data.prompt_key, data.answer_key, f"data.{key}={sources}", data.mode)
        if key == "train_files" and len(rows) < data.rollout_batch_size:
            found.append(
                f"data.rollout_batch_size={data.rollout_batch_size}: there are only {len(rows)} training rows; "
                f"set at most {len(rows)}"
            )
    return found + _icl_problems(config)


def _icl_problems(config: "PPOConfig") -> list[str]:
    data, path = config.data, config.data.icl_file
    if path is None:
        return []
    if not path.is_file():
        return [f"data.icl_type={data.icl_type}: there is no {path}; give it, or set data.icl_type=null"]
    try:
        rows = read_rows(str(path))
    except DataError as error:
        return [f"data.icl_type={data.icl_type}: {error}"]
    return [
        f"{path}, row {number}: must have the texts question and answer; it has {', '.join(row)}"
        for number, row in enumerate(rows)
        if not all(isinstance(row.get(key), str) for key in ("question", "answer"))
    ]


def _model_problems(config: "PPOConfig") -> list[str]:
    found = []
    for role in ("actor", "ref", "critic"):
        path = getattr(config.worker, role).model.model_path
        looks_local = path is not None and (path.startswith((".", "/", "~")) or path.count("/") != 1)
        if path is not None and not Path(path).is_dir() and looks_local:
            found.append(f"worker.{role}.model.model_path={path}: there is no such folder, and it is no hub id")
        elif path is not None and Path(path).is_dir() and not (Path(path) / "config.json").is_file():
            found.append(f"worker.{role}.model.model_path={path}: has no config.json; give a Hugging Face folder")
    path = Path(config.worker.actor.model.model_path or "") / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings |= config.worker.actor.model.override_config
    if problem := head_problem(config.worker.actor.ulysses_size, settings):
        found.append(problem)
    if settings and config.worker.actor.padding_free:
        from ..utils.packable import packing_problem  # takes a second

        found += filter(None, [packing_problem(settings)])
    return found + _length_problems(config, settings)


def _length_problems(config: "PPOConfig", settings: dict) -> list[str]:
    """Sequences longer than the model's positions, where its config.json is here and says how many it has."""
    data, limit = config.data, settings.get("max_position_embeddings")
    need = data.max_prompt_length + data.max_response_length
    if limit is None or need <= limit:
        return []
    return [
        f"data.max_response_length={data.max_response_length}: with data.max_prompt_length={data.max_prompt_length} it "
        f"needs {need} positions, the model has {limit}; set at most {max(1, limit - data.max_prompt_length)}"
    ]


def _template_problems(config: "PPOConfig") -> list[str]:
    return [
        f"data.{key}={value}: there is no such file; give a path ending in .jinja, or the template itself"
        for key in ("format_prompt", "override_chat_template")
        if (value := getattr(config.data, key)) and value.endswith(".jinja") and not Path(value).is_file()
    ]


def resume_folder(trainer: "TrainerConfig") -> Path | None:
    """The checkpoint that a run goes on from: the one it names, or the last whole one of its own."""
    folder = trainer.load_checkpoint_path
    if folder is None and trainer.find_last_checkpoint:
        folder, _ = find_latest_ckpt(trainer.checkpoint_folder)
    return None if folder is None else Path(folder)


def _resume_problems(config: "PPOConfig") -> list[str]:
    named, folder = config.trainer.load_checkpoint_path, resume_folder(config.trainer)
    key = f"trainer.load_checkpoint_path={named}" if named else "trainer.find_last_checkpoint=true"
    if named and (reason := is_whole(named)):
        return [f"{key}: {reason}; give a whole global_step_N folder"]
    if folder is None or (folder / "actor" / "dcp").is_dir():
        return []
    fix = "null" if named else "false, or another trainer.run_dir"
    return [
        f"{key}: {folder} has no training state (trainer.save_model_only=true), so no run can go on from it; set "
        f"{fix}. Its weights are in {folder / 'actor' / 'huggingface'}, for worker.actor.model.model_path"
    ]


@dataclass(frozen=True)
class Plan:
    """The arithmetic of a run. Prompts and samples are counted as EasyR1 does."""

    train_rows: int
    forget_rows: int
    boundary_rows: int
    val_rows: int
    steps_per_epoch: int
    total_steps: int
    samples_per_step: int
    updates_per_step: int
    samples_per_rank: int

    def lines(self) -> list[str]:
        return [
            f"training rows        {self.train_rows} ({self.forget_rows} forget, {self.boundary_rows} boundary)",
            f"validation rows      {self.val_rows}",
            f"steps                {self.total_steps} ({self.steps_per_epoch} an epoch)",
            f"samples a step       {self.samples_per_step} ({self.samples_per_rank} a rank)",
            f"optimiser steps      {self.updates_per_step} a step, {self.updates_per_step * self.total_steps} in all",
        ]


def make_plan(config: "PPOConfig", rows: list[Row], val_rows: list[Row]) -> Plan:
    """The run's arithmetic over the training and the validation rows that are used."""
    data, trainer, actor = config.data, config.trainer, config.worker.actor
    splits = [split_of(row, data.answer_key) for row in rows]
    steps = len(rows) // data.rollout_batch_size
    samples = data.rollout_batch_size * config.worker.rollout.n
    return Plan(
        train_rows=len(rows),
        forget_rows=splits.count("forget"),
        boundary_rows=splits.count("boundary"),
        val_rows=len(val_rows),
        steps_per_epoch=steps,
        total_steps=trainer.max_steps or steps * trainer.total_epochs,
        samples_per_step=samples,
        updates_per_step=data.rollout_batch_size // actor.global_batch_size * actor.ppo_epochs,
        samples_per_rank=samples // trainer.world_size,
    )
