"""Loads the user's reward function, checks its settings, and runs it in processes of its own.

A reward file is EasyR1's: ``REWARD_TYPE`` says whether the function takes all inputs of a batch or one at a time. An
input is a dict with ``response``, ``response_length`` (tokens), ``ground_truth``, and here also ``prompt``, ``split``
and the row's other columns; the result is a dict of numbers with ``overall``. A function may be ``async``: what it
waits for, a judge's answers for example, it then waits for together.
"""

import asyncio
import importlib.util
import inspect
import sys
import typing
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from ...config.worker import RewardConfig
from ...rows.values import shown
from ...utils.errors import ConfigError, DataError, closest

RewardInput = dict[str, Any]
RewardScore = dict[str, float]

LARGEST = 3.4e38
"""of rewards, which become fp32"""
AT_ONCE = 64
"""calls of an ``async`` sequential function that one process has under way"""


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
    if not place.endswith(".py"):
        raise ConfigError(f"{key}: {place} is no Python file; give path.py:function")
    module = _import(Path(place), key)
    function = getattr(module, name or "main", None)
    if not callable(function):
        raise ConfigError(f"{key}: {place} has no function {name or 'main'!r}; it has {', '.join(_functions(module))}")
    kind = getattr(module, "REWARD_TYPE", None)
    if kind not in ("batch", "sequential"):
        raise ConfigError(f'{key}: {place} must say REWARD_TYPE = "batch" or "sequential", not {kind!r}')
    problems = _argument_problems(function, config.reward_function_kwargs)
    check = getattr(module, "argument_problem", None)
    if check and not problems:
        problems = list(filter(None, [check(**config.reward_function_kwargs)]))
    if problems:
        raise ConfigError("\n".join(f"worker.reward.reward_function_kwargs.{problem}" for problem in problems))
    return function, kind


def ground_truth_check(function: Callable) -> Callable[[Any], str | None] | None:
    """``ground_truth_problem`` of the function's file, where it has one: asked of every row before a run starts, it
    says why the function cannot score by a ground truth, beginning with ``=`` and the value."""
    return getattr(function, "__globals__", {}).get("ground_truth_problem")


def _import(path: Path, key: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"reward_function_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    # A dry run writes nothing, not even a cache beside a user's file.
    cached, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError, NameError) as error:
        raise ConfigError(f"{key}: {path} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.dont_write_bytecode = cached
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
    """A process that scores. It holds no tensors: texts and rows in, dicts of numbers out."""

    def __init__(self, config: RewardConfig) -> None:
        self.function, self.kind = load_reward_function(config)
        self.arguments = config.reward_function_kwargs
        self.is_async = inspect.iscoroutinefunction(self.function)
        self.loop = asyncio.Runner()  # one for all calls: a client that the file keeps lives in one loop only

    def score(self, inputs: list[RewardInput]) -> list[RewardScore]:
        """A dict of parts for every input.

        Raises:
            RewardError: the function raised (the message says on which prompt), returned another number of dicts,
                dicts with different parts, or a part that is not a finite number.
        """
        if self.kind == "sequential":
            scores = self._one_by_one(inputs)
        else:
            with _named(inputs):
                scores = self.function(inputs, **self.arguments)
                scores = self.loop.run(scores) if self.is_async else scores
        return checked_scores(scores, inputs)

    def _one_by_one(self, inputs: list[RewardInput]) -> list[Any]:
        """What the function returns of each input; if it is ``async``, of AT_ONCE inputs at a time."""
        if self.is_async:
            return self.loop.run(_together(partial(self.function, **self.arguments), inputs))
        scores = []
        for item in inputs:
            with _named([item]):
                scores.append(self.function(item, **self.arguments))
        return scores


@contextmanager
def _named(inputs: list[RewardInput]) -> Iterator[None]:
    """Says of the user's function's error what it was given."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        where = f"prompt {inputs[0]['prompt']!r}" if len(inputs) == 1 else f"a batch of {len(inputs)} samples"
        raise RewardError(f"the reward function raised {type(error).__name__} on {where}: {error}") from error


async def _together(function: Callable[[RewardInput], Awaitable[Any]], inputs: list[RewardInput]) -> list[Any]:
    """What an ``async`` function returns of each input, in order. Of several errors the first input's is raised."""
    room = asyncio.Semaphore(AT_ONCE)

    async def call(item: RewardInput) -> Any:
        async with room:
            with _named([item]):
                return await function(item)

    calls = [asyncio.create_task(call(item)) for item in inputs]
    try:
        return [await one for one in calls]
    finally:
        for one in calls:
            one.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


def as_number(value: Any) -> Any:
    """The Python number in a numpy or torch scalar; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def checked_scores(scores: Any, inputs: list[RewardInput]) -> list[RewardScore]:
    """The scores in Python's numbers.

    Raises:
        RewardError: there is not one dict of the same finite parts for every input.
    """
    if not isinstance(scores, list) or len(scores) != len(inputs):
        count = len(scores) if isinstance(scores, list) else type(scores).__name__
        raise RewardError(f"the reward function returned {count} for {len(inputs)} samples; return a list of dicts")
    parts = scores[0].keys() if scores and isinstance(scores[0], dict) else set()
    found = []
    for score, item in zip(scores, inputs, strict=True):
        where = f"for prompt {item['prompt']!r}, response {item['response']!r}"
        if not isinstance(score, dict) or "overall" not in score:
            raise RewardError(f"the reward function returned {score!r} {where}; return a dict with 'overall'")
        if score.keys() != parts:
            raise RewardError(
                f"the reward function returned parts {sorted(map(str, score))} {where}, but "
                f"{sorted(map(str, parts))} for the first sample; return the same parts for all"
            )
        found.append({part: as_number(value) for part, value in score.items()})
        for part, value in found[-1].items():
            if not isinstance(value, int | float) or not abs(value) <= LARGEST:
                raise RewardError(f"the reward function returned {part}={shown(value)} {where}; return a finite number")
    return found
