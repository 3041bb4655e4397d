"""DataProto: the batch that travels between the driver, the workers and the trainer.

A DataProto holds tensors (`batch`, a TensorDict of B rows), per-row Python objects (`non_tensor_batch`, one 1-D object
array of length B for each key) and facts about the whole batch (`meta_info`). The interface is EasyR1's. What is left
out: futures, process-group gathers and data-loader iteration; dispatch lives in `single_controller`, mini-batches are
`split`, and padding of sequences happens where sequences are made.

Batch keys. B samples = P prompts x n rollouts, S prompt tokens (padded left), T response tokens (padded right).

| key | dtype, shape | written by | read by |
| --- | --- | --- | --- |
| prompts | int64 (B, S) | utils.dataset | rollout, dialogue log |
| responses | int64 (B, T) | rollout | reward, actor, critic |
| input_ids | int64 (B, S+T); (P, S) before the rollout | utils.dataset, rollout | actor, critic, reference |
| attention_mask | int64 (B, S+T), 1 = real token | utils.dataset, rollout | actor, critic, token balancing |
| position_ids | int64 (B, S+T) | utils.dataset, rollout | actor, critic, reference |
| response_mask | int64 (B, T), 1 = token to train on | rollout | everything in `algorithms` |
| rollout_log_probs | float32 (B, T) | rollout (engine's own) | mismatch metrics, rollout_is |
| old_log_probs | float32 (B, T) | actor before the update | policy loss |
| ref_log_probs | float32 (B, T) | reference | KL loss, KL in the reward |
| ref_kl | float32 (B, T) | actor and reference | exact KL in the reward |
| values | float32 (B, T) | critic | GAE, value clipping |
| token_level_scores | float32 (B, T), on the last response token | reward | KL in the reward, online filter, replay |
| token_level_rewards | float32 (B, T) | trainer (scores minus KL) | advantage estimators |
| reward_baselines | float32 (B,), the greedy response's reward | reward | ReMax |
| advantages, returns | float32 (B, T) | algorithms | actor, critic |
| loss_weights | float32 (B, T), 1 for rows of this step | trainer, under replay | policy loss |
| gold | int64 (B, T), a prompt's gold answer beside its first sample, or -1 | trainer | retain loss, balancing |

| non-tensor key | each row | written by | read by |
| --- | --- | --- | --- |
| uid | str, one per prompt and step | trainer | group estimators, online filter, replay |
| raw_prompt_ids | list[int], unpadded | utils.dataset | rollout (the engine sees exactly these) |
| prompt | str or list of messages | utils.dataset | reward, dialogue log |
| ground_truth | the row's `solution` | utils.dataset | reward |
| split | "forget" or "boundary" | utils.dataset | reward, metrics, normalize_by_split |
| row | int, its number in the files | utils.dataset | uid, noisy twins |
| extra | dict of the row's other columns | utils.dataset | reward (as columns of their own) |
| sample | int, its place among a step's samples | trainer | reward, until scores are there |
| reward | dict of the reward's parts | reward | metrics, online filter |
"""

import copy
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tensordict import TensorDict

__all__ = ["DataProto", "DataProtoItem", "object_array", "pad_dataproto_to_divisor", "unpad_dataproto"]

_JSON_KEY = "__json__"  # reserved tensor name: everything that is not a tensor, as UTF-8 bytes
Index = slice | Sequence[int] | np.ndarray | torch.Tensor


def object_array(values: Iterable[Any]) -> np.ndarray:
    """One object per row, always 1-D. `np.array(rows, dtype=object)` turns equally long lists into a matrix instead."""
    values = list(values)
    out = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        out[row] = value
    return out


@dataclass
class DataProtoItem:
    """One row of a DataProto: tensors without the batch dimension, plain objects, and the batch's meta_info."""

    batch: TensorDict | None = None
    non_tensor_batch: dict[str, Any] = field(default_factory=dict)
    meta_info: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataProto:
    """See the module docstring for keys and shapes. Raises ValueError where lengths disagree.

    Methods that return another DataProto share tensors with this one where torch would (slices are views), but never
    the dictionaries: adding or removing a key in one leaves the other alone.
    """

    batch: TensorDict | None = None
    non_tensor_batch: dict[str, np.ndarray] = field(default_factory=dict)
    meta_info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.non_tensor_batch = {key: _one_object_per_row(value) for key, value in self.non_tensor_batch.items()}
        self.check_consistency()

    def check_consistency(self) -> None:
        """Raise ValueError unless every tensor and every object array has the same number of rows."""
        if self.batch is not None and len(self.batch.batch_size) != 1:
            raise ValueError(f"a batch has one batch dimension, this one has {tuple(self.batch.batch_size)}")
        rows = len(self)
        for key, value in self.non_tensor_batch.items():
            if len(value) != rows:
                raise ValueError(f"non-tensor key {key!r} has {len(value)} rows, the batch has {rows}")

    # ---- construction -------------------------------------------------------------------------------------------
    @classmethod
    def from_dict(
        cls,
        tensors: dict[str, torch.Tensor] | None = None,
        non_tensors: dict[str, np.ndarray | list] | None = None,
        meta_info: dict[str, Any] | None = None,
    ) -> "DataProto":
        """Build from tensors that share dimension 0 and from arrays or lists with one entry a row."""
        batch = None
        if tensors:
            rows = {key: tensor.shape[0] for key, tensor in tensors.items()}
            if len(set(rows.values())) > 1:
                raise ValueError(f"tensors disagree on the number of rows: {rows}")
            batch = TensorDict(dict(tensors), batch_size=[next(iter(rows.values()))])
        return cls(batch=batch, non_tensor_batch=dict(non_tensors or {}), meta_info=dict(meta_info or {}))

    @classmethod
    def from_single_dict(
        cls, data: dict[str, torch.Tensor | np.ndarray], meta_info: dict[str, Any] | None = None
    ) -> "DataProto":
        """Build from one dictionary: tensors go to `batch`, numpy arrays to `non_tensor_batch`, anything else fails."""
        tensors, non_tensors = {}, {}
        for key, value in data.items():
            if isinstance(value, torch.Tensor):
                tensors[key] = value
            elif isinstance(value, np.ndarray):
                non_tensors[key] = value
            else:
                raise ValueError(f"key {key!r} is a {type(value).__name__}; only tensors and numpy arrays fit")
        return cls.from_dict(tensors, non_tensors, meta_info)

    @staticmethod
    def concat(data: Sequence["DataProto"]) -> "DataProto":
        """Stack rows in the given order. All parts need the same keys and shapes; meta_info is the first part's."""
        if not data:
            raise ValueError("nothing to concatenate")
        first = data[0]
        for number, part in enumerate(data[1:], start=1):
            for kind, ours, theirs in (
                ("tensor", first._tensor_keys(), part._tensor_keys()),
                ("non-tensor", set(first.non_tensor_batch), set(part.non_tensor_batch)),
            ):
                if ours != theirs:
                    raise ValueError(f"part {number} differs from part 0 in {kind} keys {sorted(ours ^ theirs)}")
        tensors = {key: _cat_rows(key, [part.batch[key] for part in data]) for key in first._tensor_keys()}
        non_tensors = {key: np.concatenate([p.non_tensor_batch[key] for p in data]) for key in first.non_tensor_batch}
        return DataProto.from_dict(tensors, non_tensors, first.meta_info)

    # ---- reading ------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        if self.batch is not None:
            return self.batch.batch_size[0]
        return len(next(iter(self.non_tensor_batch.values()), ()))

    def __getitem__(self, item: int | Index) -> "DataProto | DataProtoItem":
        """An int gives a DataProtoItem; a slice, a list of row numbers, or a boolean mask gives a DataProto."""
        if isinstance(item, int | np.integer):
            batch = None if self.batch is None else self.batch[int(item)]
            return DataProtoItem(batch, {k: v[item] for k, v in self.non_tensor_batch.items()}, dict(self.meta_info))
        if not isinstance(item, slice):
            item = torch.as_tensor(item)
            if item.numel() == 0:
                item = item.long()  # an empty list arrives as float
        rows = item if isinstance(item, slice) else item.cpu().numpy()
        batch = None if self.batch is None else self.batch[item]
        return DataProto(batch, {k: v[rows] for k, v in self.non_tensor_batch.items()}, dict(self.meta_info))

    def select(
        self,
        batch_keys: Iterable[str] | None = None,
        non_tensor_batch_keys: Iterable[str] | None = None,
        meta_info_keys: Iterable[str] | None = None,
        deepcopy: bool = False,
    ) -> "DataProto":
        """A DataProto with the named keys only; None keeps all of that kind. Raises KeyError for an absent key."""
        batch = self.batch
        if batch is not None and batch_keys is not None:
            batch = batch.select(*batch_keys)
        elif batch is not None:
            batch = batch.copy()
        elif batch_keys:
            raise KeyError(f"there are no tensors to select {list(batch_keys)} from")
        non_tensors = _pick(self.non_tensor_batch, non_tensor_batch_keys)
        meta_info = _pick(self.meta_info, meta_info_keys)
        if deepcopy:
            batch, non_tensors, meta_info = copy.deepcopy((batch, non_tensors, meta_info))
        return DataProto(batch, non_tensors, meta_info)

    # ---- changing in place (as in EasyR1) -----------------------------------------------------------------------
    def to(self, device: torch.device | str) -> "DataProto":
        """Move the tensors; returns self."""
        if self.batch is not None:
            self.batch = self.batch.to(device)
        return self

    def pop(
        self,
        batch_keys: Iterable[str] | None = None,
        non_tensor_batch_keys: Iterable[str] | None = None,
        meta_info_keys: Iterable[str] | None = None,
    ) -> "DataProto":
        """Remove the named keys and return them as a DataProto. None removes nothing of that kind.

        Raises KeyError for an absent key, before anything is removed.
        """
        wanted = [list(keys or []) for keys in (batch_keys, non_tensor_batch_keys, meta_info_keys)]
        sources = (self.batch if self.batch is not None else {}, self.non_tensor_batch, self.meta_info)
        absent = [key for keys, source in zip(wanted, sources, strict=True) for key in keys if key not in source]
        if absent:
            raise KeyError(f"cannot pop absent keys {absent}")
        tensors, non_tensors, meta_info = (
            {key: source.pop(key) for key in keys} for keys, source in zip(wanted, sources, strict=True)
        )
        return DataProto.from_dict(tensors, non_tensors, meta_info)

    def rename(self, old_keys: str | list[str], new_keys: str | list[str]) -> "DataProto":
        """Rename tensor keys in place; returns self. Raises ValueError where the two lists differ in length."""
        old_keys = [old_keys] if isinstance(old_keys, str) else list(old_keys)
        new_keys = [new_keys] if isinstance(new_keys, str) else list(new_keys)
        if len(old_keys) != len(new_keys):
            raise ValueError(f"{len(old_keys)} old names but {len(new_keys)} new ones")
        for old, new in zip(old_keys, new_keys, strict=True):
            self.batch.rename_key_(old, new)
        return self

    def union(self, other: "DataProto") -> "DataProto":
        """Add the other's keys to this batch; returns self.

        A key that both have must hold the same value. Raises ValueError otherwise, or where the numbers of rows
        differ, and then leaves this batch as it was.
        """
        if len(other) and len(self) and len(other) != len(self):
            raise ValueError(f"cannot unite a batch of {len(self)} rows with one of {len(other)}")
        tensors = dict(other.batch.items()) if other.batch is not None else {}
        for ours, theirs in (
            (dict(self.batch.items()) if self.batch is not None else {}, tensors),
            (self.non_tensor_batch, other.non_tensor_batch),
            (self.meta_info, other.meta_info),
        ):
            clash = [key for key in theirs if key in ours and not _same(ours[key], theirs[key])]
            if clash:
                raise ValueError(f"both batches hold different values for {clash}; rename or pop one of them first")
        if tensors:
            merged = {**(dict(self.batch.items()) if self.batch is not None else {}), **tensors}
            self.batch = TensorDict(merged, batch_size=[len(other)])
        self.non_tensor_batch.update(other.non_tensor_batch)
        self.meta_info.update(other.meta_info)
        return self

    def reorder(self, indices: torch.Tensor | Sequence[int]) -> None:
        """Put row indices[i] at place i, in place. Raises ValueError unless indices is a permutation of the rows."""
        indices = torch.as_tensor(indices).cpu()
        if not torch.equal(indices.sort().values, torch.arange(len(self))):
            raise ValueError(f"indices must be a permutation of 0..{len(self) - 1}")
        ordered = self[indices]
        self.batch, self.non_tensor_batch = ordered.batch, ordered.non_tensor_batch

    # ---- cutting and multiplying --------------------------------------------------------------------------------
    def repeat(self, repeat_times: int = 2, interleave: bool = True) -> "DataProto":
        """Every row `repeat_times` times: 0 0 1 1 with interleave, 0 1 0 1 without."""
        rows = np.arange(len(self))
        return self[np.repeat(rows, repeat_times) if interleave else np.tile(rows, repeat_times)]

    def chunk(self, chunks: int) -> list["DataProto"]:
        """Cut into `chunks` parts of equal length, in order. Raises ValueError where that does not come out even."""
        if chunks < 1 or len(self) % chunks:
            raise ValueError(f"{len(self)} rows do not divide into {chunks} equal chunks")
        size = len(self) // chunks
        return [self[part * size : (part + 1) * size] for part in range(chunks)]

    def split(self, split_size: int) -> list["DataProto"]:
        """Cut into parts of `split_size` rows, in order; the last is shorter where the division leaves a rest."""
        if split_size < 1:
            raise ValueError(f"split_size must be at least 1, got {split_size}")
        return [self[start : start + split_size] for start in range(0, len(self), split_size)]

    # ---- leaving the process ------------------------------------------------------------------------------------
    def __getstate__(self) -> dict[str, Any]:
        """Tensors as byte arrays: numpy buffers travel out of band under pickle protocol 5, so Ray does not copy them
        into its pickle stream, and bfloat16, which numpy lacks, needs no special case."""
        tensors = {}
        for key in self._tensor_keys():
            value = self.batch[key].detach().cpu().contiguous()
            tensors[key] = (value.view(-1).view(torch.uint8).numpy(), value.dtype, tuple(value.shape))
        return {
            "tensors": None if self.batch is None else tensors,
            "rows": len(self),
            "non_tensor_batch": self.non_tensor_batch,
            "meta_info": self.meta_info,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.batch = None
        if state["tensors"] is not None:
            tensors = {key: _tensor_from_bytes(*value) for key, value in state["tensors"].items()}
            self.batch = TensorDict(tensors, batch_size=[state["rows"]])
        self.non_tensor_batch = state["non_tensor_batch"]
        self.meta_info = state["meta_info"]

    def save_to_disk(self, filepath: str | os.PathLike) -> None:
        """Write one safetensors file; everything that is not a tensor is JSON inside it, so nothing runs on loading.

        Numpy values become Python numbers and lists, tuples become lists. Raises TypeError, naming the key, for an
        object that JSON cannot hold.
        """
        rest = {
            "rows": len(self),
            "tensor_keys": None if self.batch is None else sorted(self._tensor_keys()),
            "non_tensor_batch": {k: _plain(k, list(v)) for k, v in self.non_tensor_batch.items()},
            "meta_info": _plain("meta_info", self.meta_info),
        }
        # Clones, because safetensors refuses tensors that share memory and GRPO's advantages are its returns.
        tensors = {
            k: self.batch[k].detach().cpu().clone(memory_format=torch.contiguous_format) for k in self._tensor_keys()
        }
        if _JSON_KEY in tensors:
            raise ValueError(f"the tensor name {_JSON_KEY!r} is reserved")
        tensors[_JSON_KEY] = torch.frombuffer(bytearray(json.dumps(rest).encode()), dtype=torch.uint8)
        path = Path(filepath)
        partial = path.with_name(path.name + ".partial")
        save_file(tensors, partial)
        partial.replace(path)

    @staticmethod
    def load_from_disk(filepath: str | os.PathLike) -> "DataProto":
        """Read what `save_to_disk` wrote. Raises ValueError for any other file, OSError where it cannot be read."""
        tensors = load_file(filepath)
        if _JSON_KEY not in tensors:
            raise ValueError(f"{filepath} was not written by DataProto.save_to_disk")
        rest = json.loads(tensors.pop(_JSON_KEY).numpy().tobytes())
        batch = None if rest["tensor_keys"] is None else TensorDict(tensors, batch_size=[rest["rows"]])
        non_tensors = {key: object_array(values) for key, values in rest["non_tensor_batch"].items()}
        return DataProto(batch, non_tensors, rest["meta_info"])

    def _tensor_keys(self) -> set[str]:
        return set() if self.batch is None else set(self.batch.keys())


def pad_dataproto_to_divisor(data: DataProto, size_divisor: int) -> tuple[DataProto, int]:
    """Repeat rows from the start until the length divides; returns (padded, number of rows added).

    The added rows are real samples: drop them with `unpad_dataproto` before they reach a loss or a mean. Raises
    ValueError for an empty batch.
    """
    pad_size = -len(data) % size_divisor
    if len(data) == 0:
        raise ValueError("an empty batch has no row to pad with")
    if pad_size == 0:
        return data, 0
    return data[np.arange(len(data) + pad_size) % len(data)], pad_size


def unpad_dataproto(data: DataProto, pad_size: int) -> DataProto:
    """Drop the last `pad_size` rows, the ones `pad_dataproto_to_divisor` added."""
    return data[: len(data) - pad_size] if pad_size else data


def _one_object_per_row(value: np.ndarray | list) -> np.ndarray:
    if isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 1:
        return value
    return object_array(value.tolist() if isinstance(value, np.ndarray) else value)


def _pick(source: dict[str, Any], keys: Iterable[str] | None) -> dict[str, Any]:
    return dict(source) if keys is None else {key: source[key] for key in keys}


def _cat_rows(key: str, tensors: list[torch.Tensor]) -> torch.Tensor:
    shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
    if len(shapes) > 1:
        raise ValueError(f"cannot concatenate {key!r}: rows have shapes {sorted(shapes)}; pad them to one length first")
    return torch.cat(tensors)


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs.to(ours.device))
    if isinstance(ours, np.ndarray) and isinstance(theirs, np.ndarray):
        return len(ours) == len(theirs) and all(map(_same, ours.tolist(), theirs.tolist()))
    return type(ours) is type(theirs) and bool(ours == theirs)


def _tensor_from_bytes(data: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if data.size == 0:
        return torch.empty(shape, dtype=dtype)
    # Ray hands out read-only views of shared memory; a tensor over one would let an in-place operation crash.
    data = data if data.flags.writeable else data.copy()
    return torch.from_numpy(data).view(dtype).view(shape)


def _plain(key: str, value: Any) -> Any:
    """The JSON form of a value; TypeError where it would not come back as it went."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(key, entry) for entry in value]
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: _plain(key, entry) for name, entry in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{key!r} holds a {type(value).__name__}, which cannot be saved; JSON values only")
