"""Logits over token sequences, where what several of them begin with is computed once.

Sequences that begin alike (few-shot examples before every question, a question before each of its choices) make a tree:
a node's tokens attend to those of the nodes above it, which stand in transformers' own cache, and to each other.
Nodes that start at the same token run together, padded on the right, where no real token sees the padding; those that
others hang on only with nodes of their own length, so that no padding stands within a sequence. Models that carry more
than keys and values from token to token, or bring code of their own, get every sequence whole. Leaves out what is
made of the logits (``likelihood``).

Shapes: B rows, k columns that are kept, V vocabulary, n places.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from os.path import commonprefix
from typing import Any

import torch

SHORTEST = 16
"""Tokens that are worth a pass of their own; a shorter beginning is computed with each of its sequences."""

Row = tuple[int, "Node"]
"""A node, and the row of the cache that holds what it continues."""


@dataclass
class Node:
    """Tokens [start, stop) that all members have in common, behind those of the node above."""

    start: int
    stop: int
    members: list[int]
    children: list["Node"] = field(default_factory=list)


@dataclass(frozen=True)
class Places:
    """n positions of one pass, and what their logits are wanted for; tensors of shape (n,)."""

    row: torch.Tensor
    column: torch.Tensor
    label: torch.Tensor
    """The token that follows; 0 behind a sequence's last."""
    number: list[int]
    """Of each position among those of all spans, laid end to end."""


def prefix_tree(sequences: Sequence[list[int]]) -> list[Node]:
    """The longest beginnings that sequences share, by token ids; every token of a sequence is in one node."""
    roots: list[Node] = []
    work = [(sorted(range(len(sequences)), key=sequences.__getitem__), 0, roots)] if sequences else []
    while work:
        members, start, siblings = work.pop()
        first, last = sequences[members[0]], sequences[members[-1]]
        common = len(commonprefix([first, last]))  # of all members: in sorted order these two differ the most
        ended = [one for one in members if len(sequences[one]) == common]
        if len(ended) == len(members) or common - start >= SHORTEST:
            siblings.append(Node(start, common, members))
            start, siblings = common, siblings[-1].children
        elif ended:
            siblings.append(Node(start, common, ended))
        longer = members[len(ended) :]
        for _, group in groupby(longer, key=lambda one: sequences[one][common]):
            work.append((list(group), start, siblings))
    return roots


def passes(
    model: Any, sequences: Sequence[list[int]], spans: Sequence[range], *, token_budget: int, most_logits: int
) -> Iterator[tuple[torch.Tensor, Places]]:
    """Logits of shape (B, k, V) pass by pass, and what to read in them.

    Args:
        spans: positions of each sequence whose logits are wanted; the first token has position 0.
        token_budget: padded tokens of a pass at most, those in the cache included; a longer sequence is a pass of its
            own.
        most_logits: numbers that a pass may give; a sequence of more is a pass of its own.
    """
    whole = [Node(0, len(sequence), [number]) for number, sequence in enumerate(sequences)]
    roots = prefix_tree(sequences) if has_plain_cache(model) else whole
    before = list(accumulate(map(len, spans), initial=0))
    most_columns = most_logits // model.config.get_text_config().vocab_size
    run = _Passes(model, sequences, spans, before, token_budget, most_columns)
    yield from run.level([(0, root) for root in roots], None)


def has_plain_cache(model: Any) -> bool:
    """Whether keys and values are all that a token takes from those before it, and transformers' cache holds them."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    own_code = not type(model).__module__.startswith("transformers.")
    if own_code or model._is_stateful or not _takes(model, "past_key_values"):
        return False
    layers = DynamicCache(config=model.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _takes(model: Any, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters


@dataclass(frozen=True)
class _Passes:
    model: Any
    sequences: Sequence[list[int]]
    spans: Sequence[range]
    before: list[int]
    """Positions in the spans of earlier sequences."""
    token_budget: int
    most_columns: int

    def level(self, rows: list[Row], cache: Any) -> Iterator[tuple[torch.Tensor, Places]]:
        """Nodes that start at the same token, and all below them."""
        for batch in self._batches([row for row in rows if not row[1].children]):
            yield self._run(batch, self._fork(cache, batch))
        inner = sorted((row for row in rows if row[1].children), key=lambda row: row[1].stop)
        for _, group in groupby(inner, key=lambda row: row[1].stop):
            for batch in self._batches(list(group)):
                extended = self._new_cache() if cache is None else self._fork(cache, batch)
                yield self._run(batch, extended)
                below = [(number, child) for number, (_, node) in enumerate(batch) for child in node.children]
                yield from self.level(below, extended)

    def _batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        """The longest first, to fail early on memory."""
        batch: list[Row] = []
        kept: set[int] = set()
        for row in sorted(rows, key=lambda row: -row[1].stop):
            columns = {column for member in row[1].members for column in self._columns(row[1], member)}
            count = len(batch) + 1
            tokens, logits = (batch or [row])[0][1].stop * count, len(kept | columns) * count
            if batch and (tokens > self.token_budget or logits > self.most_columns):
                yield batch
                batch, kept = [], set()
            batch.append(row)
            kept |= columns
        if batch:
            yield batch

    def _columns(self, node: Node, member: int) -> range:
        """Those of a node's tokens whose logits a member wants, counted from the node's first."""
        span = self.spans[member]
        return range(max(span.start, node.start) - node.start, min(span.stop, node.stop) - node.start)

    def _run(self, batch: list[Row], cache: Any) -> tuple[torch.Tensor, Places]:
        """One pass, which extends the cache; a pass of which no logits are wanted gives one column."""
        found = [
            (row, column, member)
            for row, (_, node) in enumerate(batch)
            for member in node.members
            for column in self._columns(node, member)
        ]
        kept = sorted({column for _, column, _ in found}) or [0]
        index = {column: place for place, column in enumerate(kept)}
        arguments = {"logits_to_keep": self._tensor(kept)} if _takes(self.model, "logits_to_keep") else {}
        if cache is not None:
            arguments["past_key_values"] = cache
        logits = self.model(input_ids=self._ids(batch), use_cache=cache is not None, **arguments).logits
        start = batch[0][1].start
        places = Places(
            row=self._tensor([row for row, _, _ in found]),
            column=self._tensor([index[column] if "logits_to_keep" in arguments else column for _, column, _ in found]),
            label=self._tensor([self._label(member, start + column + 1) for _, column, member in found]),
            number=[self.before[member] + start + column - self.spans[member].start for _, column, member in found],
        )
        return logits, places

    def _ids(self, batch: list[Row]) -> torch.Tensor:
        pieces = [self.sequences[node.members[0]][node.start : node.stop] for _, node in batch]
        width = max(map(len, pieces))
        return self._tensor([piece + [0] * (width - len(piece)) for piece in pieces])

    def _label(self, member: int, position: int) -> int:
        return self.sequences[member][position] if position < len(self.sequences[member]) else 0

    def _tensor(self, values: list) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.model.device)

    def _new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def _fork(self, cache: Any, batch: list[Row]) -> Any:
        """The rows of a cache that a batch continues, to be extended; the cache stays as it is."""
        if cache is None:
            return None
        rows = self._tensor([row for row, _ in batch])
        fork = copy.copy(cache)
        fork.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in (layer for layer in fork.layers if layer.is_initialized):
            # Extending copies anyway, so a row that all continue is not copied beforehand.
            one = layer.keys.shape[0] == 1
            layer.keys, layer.values = (
                kept.expand(len(batch), *kept.shape[1:]) if one else kept[rows] for kept in (layer.keys, layer.values)
            )
        return fork
