"""Hands out prompts in an order that depends on the seed and the epoch only, and can go on from where a run stopped."""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch

from ..protocol import DataProto
from ..rows.values import split_of
from ..utils.errors import ConfigError
from .dataset import RLHFDataset, collate_fn

logger = logging.getLogger(__name__)

Place = tuple[int, int]
"""Where a stream is: its epoch, and how many of the epoch's rows were handed out."""


class PromptLoader:
    """An endless stream of prompts, epoch after epoch.

    An epoch's last prompts that do not fill a draw are left out, as EasyR1 does. While a draw is worked on, the one
    behind it is made; what it holds follows from its place alone, and the state knows of draws handed out only.

    Args:
        forget_share: of the prompts of every draw; forget prompts and the others then have epochs of their own. None:
            all rows are one stream.
    """

    def __init__(self, dataset: RLHFDataset, *, shuffle: bool, seed: int, forget_share: float | None = None) -> None:
        self.dataset, self.seed, self.forget_share = dataset, seed, forget_share
        rows = list(range(len(dataset)))
        if forget_share is None:
            self.streams = [_Stream(rows, shuffle, seed)]
        else:
            sides = [split_of(row, dataset.answer_key) == "forget" for row in dataset.used_rows]
            self.streams = [_Stream([i for i in rows if sides[i] == side], shuffle, seed) for side in (True, False)]
        self.places: list[Place] = [(0, 0)] * len(self.streams)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        self._coming: tuple[list[Place], int, Future[tuple[list[Place], DataProto]]] | None = None

    def next(self, count: int) -> DataProto:
        """The next ``count`` prompts, each with its own ``uid`` (epoch and row).

        Raises:
            ConfigError: a side has too few prompts for its share.
        """
        if count > len(self.dataset):
            raise ValueError(f"asked for {count} prompts, the dataset has {len(self.dataset)}")
        made_ahead = self._coming is not None and self._coming[:2] == (self.places, count)
        self.places, batch = self._coming[2].result() if made_ahead else self._make(self.places, count)
        self._coming = self.places, count, self._thread.submit(self._make, self.places, count)
        return batch

    def _make(self, places: list[Place], count: int) -> tuple[list[Place], DataProto]:
        """The draw at these places of the streams, and the places behind it."""
        counts = [count]
        if self.forget_share is not None:
            problem = share_problem(self.forget_share, count, [len(stream.rows) for stream in self.streams])
            if problem:
                raise ConfigError(problem)
            counts = forget_and_others(count, self.forget_share)
        draws = [stream.draw(place, n) for stream, place, n in zip(self.streams, places, counts, strict=True)]
        parts = [iter([(epoch, row) for row in rows]) for (epoch, _), rows in draws]
        # The sides are spread evenly, so that mini-batches, too, have nearly the share.
        turns = [(k + 1) * counts[0] // count > k * counts[0] // count for k in range(count)]
        drawn = [next(parts[0 if turn else 1]) for turn in turns]
        batch = prompt_batch([self.dataset[row] for _, row in drawn], [f"train-{epoch}" for epoch, _ in drawn])
        return [place for place, _ in draws], batch

    def state_dict(self) -> dict[str, Any]:
        (epoch, position), *others = self.places
        state = {"epoch": epoch, "position": position, "prompts": len(self.dataset), "seed": self.seed}
        return state | ({"others": [list(place) for place in others]} if others else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if (state["prompts"], state["seed"]) != (len(self.dataset), self.seed):
            logger.warning("the training data or data.seed changed since the checkpoint; prompts will not line up.")
        self.places = [(state["epoch"], state["position"]), *map(tuple, state.get("others", []))]


class _Stream:
    """Some rows of a dataset, epoch after epoch."""

    def __init__(self, rows: list[int], shuffle: bool, seed: int) -> None:
        self.rows, self.shuffle, self.seed = rows, shuffle, seed
        self._order = lru_cache(maxsize=2)(self._make_order)

    def draw(self, place: Place, count: int) -> tuple[Place, list[int]]:
        """``count`` rows of one epoch, from ``place`` or from the next epoch on; and the place behind them."""
        epoch, position = place if place[1] + count <= len(self.rows) else (place[0] + 1, 0)
        return (epoch, position + count), [self.rows[i] for i in self._order(epoch)[position : position + count]]

    def _make_order(self, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(len(self.rows)))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.rows), generator=generator).tolist()


def forget_and_others(count: int, share: float) -> tuple[int, int]:
    """How many of ``count`` prompts are forget prompts, and how many are not."""
    forget = round(share * count)
    return forget, count - forget


def share_problem(share: float, count: int, there: Sequence[int]) -> str | None:
    """Why draws of ``count`` prompts cannot have the share; ``there``: forget rows and others that may be drawn."""
    wanted = forget_and_others(count, share)
    if min(wanted) > 0 and all(n <= rows for n, rows in zip(wanted, there, strict=True)):
        return None
    return (
        f"data.forget_share={share}: of {count} prompts in a draw {wanted[0]} are forget prompts and {wanted[1]} are "
        f"not; there are {there[0]} and {there[1]} such rows, and a draw needs some of both; change the share, set "
        "data.rollout_batch_size lower, or set null to draw the rows as they come"
    )


def prompt_batch(items: list[dict[str, Any]], name: str | Sequence[str]) -> DataProto:
    """Dataset items as a batch of P prompts; ``uid`` is ``<name>-<row>``, with a name of its own for each or one for
    all."""
    columns = collate_fn(items)
    names = [name] * len(items) if isinstance(name, str) else name
    columns["uid"] = [f"{each}-{item['row']}" for each, item in zip(names, items, strict=True)]
    tensors = {key: value for key, value in columns.items() if isinstance(value, torch.Tensor)}
    return DataProto.from_dict(tensors, {key: value for key, value in columns.items() if key not in tensors})
