"""Loads the user's reward function, checks its settings, and runs it in a process of its own.

A reward file is EasyR1's: ``REWARD_TYPE`` says whether the function takes all inputs of a batch or one at a time. An
input is a dict with ``response``, ``response_length`` (tokens), ``ground_truth``, and here also ``prompt``, ``split``
and the row's other columns; the result is a dict of numbers with ``overall``.
"""

import importlib.util
import inspect
import math
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from ...utils.errors import ConfigError, DataError, closest
from ..config import RewardConfig

RewardInput = dict[str, Any]
RewardScore = dict[str, float]


class RewardError(RuntimeError):
    """The reward function raised, or returned something that is no reward."""


def load_reward_function(config: RewardConfig) -> tuple[Callable, str]:
    """The function and its type, ``batch`` or ``sequential``.

    Raises:
        ConfigError: the file, the function or REWARD_TYPE is missing, or a keyword argument does not fit.
    """
    place, _, name = (config.reward_function or "").partition(":")
    key = f"worker.reward.reward_function={config.reward_function}"
    if not Path(place).is_file():
        raise ConfigError(f"{key}: there is no file {place!r}; give path.py:function")
    module = _import(Path(place), key)
    function = getattr(module, name or "main", None)
    if not callable(function):
        raise ConfigError(f"{key}: {place} has no function {name or 'main'!r}; it has {', '.join(_functions(module))}")
    kind = getattr(module, "REWARD_TYPE", None)
    if kind not in ("batch", "sequential"):
        raise ConfigError(f'{key}: {place} must say REWARD_TYPE = "batch" or "sequential", not {kind!r}')
    problems = _argument_problems(function, config.reward_function_kwargs)
    if problems:
        raise ConfigError("\n".join(f"worker.reward.reward_function_kwargs.{problem}" for problem in problems))
    return function, kind


def _import(path: Path, key: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"reward_function_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError, NameError) as error:
        raise ConfigError(f"{key}: {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _functions(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")]


def _argument_problems(function: Callable, arguments: dict[str, Any]) -> list[str]:
    """Keyword arguments that the function does not take, or whose value its ``Literal`` annotation rules out."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return []
    hints, known, found = typing.get_type_hints(function), [parameter.name for parameter in parameters], []
    for name, value in arguments.items():
        choices = typing.get_args(hints.get(name)) if typing.get_origin(hints.get(name)) is Literal else None
        if name not in known:
            found.append(f"{name}={value!r}: the function takes no such argument; it takes {', '.join(known)}")
        elif choices and value not in choices:
            near = closest(value, choices)
            hint = f" (did you mean {near}?)" if near else ""
            found.append(f"{name}={value!r}: must be one of {', '.join(map(str, choices))}{hint}")
    for parameter in parameters:
        if parameter.default is inspect.Parameter.empty and parameter.name not in arguments:
            found.append(f"{parameter.name}: the function needs it; set it")
    return found


class RewardWorker:
    """The process that scores. It holds no tensors: texts and rows in, dicts of numbers out."""

    def __init__(self, config: RewardConfig) -> None:
        self.function, self.kind = load_reward_function(config)
        self.arguments = config.reward_function_kwargs

    def score(self, inputs: list[RewardInput]) -> list[RewardScore]:
        """A dict of parts for every input.

        Raises:
            RewardError: the function raised (the message says on which prompt), returned another number of dicts,
                dicts with different parts, or a part that is not a finite number.
        """
        if self.kind == "sequential":
            scores = [self._call(item, [item])[0] for item in inputs]
        else:
            scores = self._call(inputs, inputs)
        check_scores(scores, inputs)
        return scores

    def _call(self, argument: Any, inputs: list[RewardInput]) -> list[RewardScore]:
        try:
            result = self.function(argument, **self.arguments)
        except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            where = f"prompt {inputs[0]['prompt']!r}" if len(inputs) == 1 else f"a batch of {len(inputs)} samples"
            raise RewardError(f"the reward function raised {type(error).__name__} on {where}: {error}") from error
        return result if isinstance(argument, list) else [result]


def check_scores(scores: Any, inputs: list[RewardInput]) -> None:
    """Raise RewardError unless there is one dict of the same finite parts for every input."""
    if not isinstance(scores, list) or len(scores) != len(inputs):
        count = len(scores) if isinstance(scores, list) else type(scores).__name__
        raise RewardError(f"the reward function returned {count} for {len(inputs)} samples; return a list of dicts")
    parts = scores[0].keys() if scores and isinstance(scores[0], dict) else set()
    for score, item in zip(scores, inputs, strict=True):
        where = f"for prompt {item['prompt']!r}, response {item['response']!r}"
        if not isinstance(score, dict) or "overall" not in score:
            raise RewardError(f"the reward function returned {score!r} {where}; return a dict with 'overall'")
        if score.keys() != parts:
            raise RewardError(
                f"the reward function returned parts {sorted(score)} {where}, but {sorted(parts)} for the first "
                "sample; return the same parts for all"
            )
        for part, value in score.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise RewardError(f"the reward function returned {part}={value!r} {where}; return a finite number")
