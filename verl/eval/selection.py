"""Which checkpoint validation chose, and which step a checkpoint is: recorded in results.json, shown in tables."""

import re
from pathlib import Path
from typing import Any

from verl.utils.checkpoint import CHECKPOINT_TRACKER, find_latest_ckpt, read_tracker
from verl.utils.errors import DataError

STEP = re.compile(r"global_step_(\d+)")


def chosen_checkpoint(run: Path) -> Path:
    """Hugging Face folder of the step that a ReBO run's validation chose; without validation, of the last step.

    Raises:
        DataError: the run has no finished checkpoint.
    """
    tracker = run / "checkpoints" / CHECKPOINT_TRACKER
    if not tracker.is_file():
        raise DataError(
            f"rebo={run}: has no {tracker.relative_to(run)}; give the folder of a run that saved a checkpoint"
        )
    steps = read_tracker(tracker.parent) or find_latest_ckpt(tracker.parent, quiet=True)[1]
    if not steps:
        raise DataError(f"rebo={run}: {tracker.relative_to(run)} is torn, and no checkpoint beside it is whole")
    step = steps.get("best_global_step", steps["last_global_step"])
    return tracker.parent / f"global_step_{step}" / "actor" / "huggingface"


def selection(model: str | Path) -> dict[str, Any] | None:
    """What the trainer's tracker says about a checkpoint below ``global_step_N``; None for any other model.

    Returns:
        ``step``, ``best_step`` (the best on the validation split, None if no validation ran), ``best_score`` (that
        step's validation score) and ``chosen_on_validation``.
    """
    for folder in (Path(model), *Path(model).parents):
        if match := STEP.fullmatch(folder.name):
            return _from_tracker(int(match[1]), folder.parent / CHECKPOINT_TRACKER)
    return None


def _from_tracker(step: int, tracker: Path) -> dict[str, Any]:
    info = read_tracker(tracker.parent)
    score = info.get("best_val_reward_score")
    best = info.get("best_global_step") if score is not None else None
    return {"step": step, "best_step": best, "best_score": score, "chosen_on_validation": best == step}
