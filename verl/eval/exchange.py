"""Proof that an engine took over the weights of another checkpoint, from inside the engine.

Every parameter must have been loaded, and what the engine kept of the checkpoint before as it came must now be the new
one's. Leaves out what an engine fuses or packs, and checkpoints that are not in safetensors, of which nothing is known.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

ROWS = 4
"""Leading rows of each tensor that are compared."""


def first_rows(folder: Path) -> dict[str, torch.Tensor]:
    """The first rows of every tensor of a checkpoint, by its name."""
    rows = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names = file.keys()
            for name in names:
                rows[name] = file.get_slice(name)[:ROWS] if file.get_slice(name).get_shape() else file.get_tensor(name)
    return rows


def held(model: torch.nn.Module, rows: Mapping[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that an engine's model has as they stand in ``rows``, in its own type."""
    mine = dict(model.named_parameters())
    same = {name: mine[name][:ROWS] for name in rows.keys() & mine.keys() if mine[name].dim()}
    return {name for name, kept in same.items() if torch.equal(kept.cpu(), rows[name].to(kept.dtype))}


def left_out(model: Any) -> set[str]:
    """Parameters that the last load gave no value; none where the model does not tell what it loads."""
    loaded = model.last_loaded
    return set() if loaded is None else {name for name, _ in model.named_parameters()} - loaded
