"""What can be known of a run before anything starts: whether its files are usable, and its arithmetic.

Reads the data and the reward file, but loads no model, no tokenizer and no Ray. Not among ``verl.config.checks``, for
it asks the reward's loader and the models' rules of packing, which lie above them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta

from ..config.checks.cross import cross_problems
from ..config.run import PPOConfig, migrate
from ..estimate.flops import is_size
from ..models.model_config import read_decoder_settings
from ..models.ulysses import head_problem
from ..rows.files import Row
from ..rows.sources import read_rows
from ..rows.values import gold_answer, read_shots, row_problems, split_of
from ..settings.path_types import folder_problem
from ..settings.reader import load
from ..utils.environment import whole_variable
from ..utils.errors import ConfigError, DataError
from ..utils.logger import available
from ..utils.ray_address import address_problems
from ..utils.tokenizer import read_template
from ..workers.reward.function import ground_truth_check, load_reward_function
from .data_loader import share_problem
from .resuming import resume_problems

SIZES = ("num_attention_heads", "num_key_value_heads", "num_hidden_layers", "max_position_embeddings")
"""entries of a config.json that are judged here"""


NOT_RELOADED = {"gpt_oss"}
"""Models whose weights vLLM (0.26 to 0.32) writes past its own reloading: experts and sinks would stay as they were"""


def read_config(argv: list[str]) -> PPOConfig:
    """The run that a command line describes, checked as a whole and against the files that it names.

    Raises:
        ConfigError: listing every problem, a line each.
    """
    return load(PPOConfig, argv, migrate, checks=(cross_problems, file_problems))


def file_problems(config: PPOConfig) -> list[str]:
    """Problems of the files that a configuration names: data, templates, models, a checkpoint, the reward function."""
    reward, wrong = None, []
    try:
        reward, _ = load_reward_function(config.worker.reward)
        whole_variable("VLLM_CPU_KVCACHE_SPACE", 1)
    except ConfigError as error:
        wrong = str(error).splitlines()
    found = [*_data_problems(config, reward and ground_truth_check(reward)), *_model_problems(config)]
    found += [*_template_problems(config), *_folder_problems(config), *wrong]
    found += resume_problems(config, readable=not found) + address_problems(config.trainer.nnodes)
    for name in config.trainer.logger:
        if reason := available(name):
            found.append(f"trainer.logger: {name}: {reason}")
    return found


def _data_problems(config: PPOConfig, truth_problem: Callable[[Any], str | None] | None) -> list[str]:
    data, found = config.data, []
    for key, sources in (("train_files", data.train_files), ("val_files", data.val_files)):
        if not sources:
            continue
        try:
            rows = read_rows(sources)
        except DataError as error:
            found.append(f"data.{key}: {error}")
            continue
        problems = row_problems(rows, data.prompt_key, data.answer_key, str(sources), data.mode, truth_problem)
        found += [f"data.{key}: {problem}" for problem in problems]
        if key == "train_files" and len(rows) < data.rollout_batch_size:
            found.append(
                f"data.rollout_batch_size={data.rollout_batch_size}: there are only {len(rows)} training rows; "
                f"set at most {len(rows)}"
            )
        elif key == "train_files" and not problems:
            found += share_problems(config, rows) + retain_problems(config, rows)
    return found + _icl_problems(config)


def share_problems(config: PPOConfig, rows: list[Row]) -> list[str]:
    """Why ``rows`` cannot be drawn with data.forget_share; empty where they can."""
    data = config.data
    if data.forget_share is None:
        return []
    draw = data.mini_rollout_batch_size if config.algorithm.online_filtering else None
    forget = sum(split_of(row, data.answer_key) == "forget" for row in rows)
    problem = share_problem(data.forget_share, draw or data.rollout_batch_size, (forget, len(rows) - forget))
    return [problem] if problem else []


def retain_problems(config: PPOConfig, rows: list[Row]) -> list[str]:
    """Why algorithm.retain_loss has nothing to keep in ``rows``; empty where it has."""
    loss, key = config.algorithm.retain_loss, config.data.answer_key
    if loss == "none" or any(gold_answer(row, key) is not None for row in rows):
        return []
    boundary = sum(split_of(row, key) == "boundary" for row in rows)
    return [
        f"algorithm.retain_loss={loss}: acts on boundary rows with a gold answer, and of {len(rows)} training rows "
        f'{boundary} are boundary rows, none with an answer; give rows whose {key} is ["<normal>", answer], or a text '
        "beside split=boundary, or set none"
    ]


def _icl_problems(config: PPOConfig) -> list[str]:
    data, path = config.data, config.data.icl_file
    if path is None:
        return []
    if not path.is_file():
        return [f"data.icl_type={data.icl_type}: there is no {path}; give it, or set data.icl_type=null"]
    try:
        read_shots(path)
    except DataError as error:
        return [f"data.icl_type={data.icl_type}: {error}"]
    return []


def _model_problems(config: PPOConfig) -> list[str]:
    found = []
    for role in ("actor", "ref", "critic"):
        path = getattr(config.worker, role).model.model_path
        looks_local = path is not None and (path.startswith((".", "/", "~")) or path.count("/") != 1)
        if path is not None and not Path(path).is_dir() and looks_local:
            found.append(f"worker.{role}.model.model_path={path}: there is no such folder, and it is no hub id")
        elif path is not None and Path(path).is_dir() and not (Path(path) / "config.json").is_file():
            found.append(f"worker.{role}.model.model_path={path}: has no config.json; give a Hugging Face folder")
    overrides = config.worker.actor.model.override_config
    if wrong := _wrong_sizes(overrides):
        return found + wrong
    file = Path(config.worker.actor.model.model_path or "") / "config.json"
    if not file.is_file():
        return found
    try:
        settings = read_decoder_settings(file, overrides)
    except ConfigError as error:
        return [*found, str(error)]
    if problem := head_problem(config.worker.actor.ulysses_size, settings):
        found.append(problem)
    if settings.get("model_type") in NOT_RELOADED:
        found.append(
            f"worker.actor.model.model_path={file.parent}: vLLM cannot replace all weights of {settings['model_type']} "
            "while it runs, so there are no rollouts of what is trained; train it by RS alone"
        )
    if config.worker.actor.padding_free:
        from ..models.packable import packing_problem  # takes a second

        whole = json.loads(file.read_text(encoding="utf-8")) | overrides
        found += filter(None, [packing_problem(whole)] if whole else [])
    return found + _length_problems(config, settings)


def _wrong_sizes(overrides: dict) -> list[str]:
    return [
        f"worker.actor.model.override_config.{key}={overrides[key]!r}: must be a whole number above 0"
        for key in SIZES
        if overrides.get(key) is not None and not is_size(overrides[key])
    ]


def _length_problems(config: PPOConfig, settings: dict) -> list[str]:
    """Sequences longer than the model's positions, where its config.json is here and says how many it has."""
    data, limit = config.data, settings.get("max_position_embeddings")
    need = data.max_prompt_length + data.max_response_length
    if not is_size(limit) or need <= limit:
        return []
    room = limit - data.max_prompt_length
    return [
        f"data.max_response_length={data.max_response_length}: with data.max_prompt_length={data.max_prompt_length} it "
        f"needs {need} positions, the model has {limit}; "
        + (f"set at most {room}" if room > 0 else f"set data.max_prompt_length below {limit}")
    ]


def _template_problems(config: PPOConfig) -> list[str]:
    missing = [
        f"data.{key}={value}: there is no such file; give a path ending in .jinja, or the template itself"
        for key in ("format_prompt", "override_chat_template")
        if (value := getattr(config.data, key)) and value.endswith(".jinja") and not Path(value).is_file()
    ]
    return missing or _format_problems(config.data.format_prompt)


def _format_problems(template: str | None) -> list[str]:
    """A ``format_prompt`` that cannot be read, or that would make every prompt the same."""
    if not template:
        return []
    environment = jinja2.Environment()
    try:
        text = read_template(template)
        names = meta.find_undeclared_variables(environment.parse(text)) - environment.globals.keys()
        environment.from_string(text).render(content="a prompt")
    except (jinja2.TemplateError, UnicodeDecodeError, OSError) as error:
        return [f"data.format_prompt={template}: cannot be used as a jinja template: {error}"]
    if names != {"content"}:
        held = ", ".join(sorted(names)) or "nothing"
        return [f"data.format_prompt={template}: shows {held}; write {{{{ content }}}} where the prompt belongs"]
    return []


def _folder_problems(config: PPOConfig) -> list[str]:
    trainer = config.trainer
    named = {"run_dir": trainer.run_folder}
    if trainer.save_checkpoint_path:
        named["save_checkpoint_path"] = trainer.checkpoint_folder
    if trainer.ray_timeline:
        named["ray_timeline"] = Path(trainer.ray_timeline).parent
    reasons = {key: folder_problem(folder) for key, folder in named.items()}
    return [f"trainer.{key}={named[key]}: {reason}" for key, reason in reasons.items() if reason]


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


def make_plan(config: PPOConfig, rows: list[Row], val_rows: list[Row]) -> Plan:
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
