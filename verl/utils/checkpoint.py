"""Checkpoint folders: whole or absent, found again after a crash, thinned out without losing the last good one.

A save fills ``global_step_N.partial``, lists its files in ``manifest.json``, renames the folder, and only then writes
``checkpoint_tracker.json``. A run killed at any moment therefore leaves the old checkpoints, or these and the new one.
All ranks must see the same file system. What is inside the folders is the workers' business. File contents are not
hashed: sizes catch torn and missing files at no cost, flipped bits are the disk's to catch.
"""

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .atomic import write_json

CHECKPOINT_TRACKER = "checkpoint_tracker.json"
MANIFEST = "manifest.json"
TRAINER_STATE, REPLAY_STATE = "trainer_state.json", "replay.safetensors"
PARTIAL = ".partial"

logger = logging.getLogger(__name__)


def get_checkpoint_tracker_filename(root_path: str) -> str:
    """Path of the file that names the last checkpoint under ``root_path``."""
    return str(Path(root_path) / CHECKPOINT_TRACKER)


def write_tracker(root_path: str | Path, info: dict[str, Any]) -> None:
    """Point the tracker at a checkpoint that is whole; the last act of a save.

    Args:
        info: at least ``last_global_step``; EasyR1 adds ``best_global_step``, ``best_val_reward_score`` and
            ``last_actor_path``.
    """
    write_json(get_checkpoint_tracker_filename(str(root_path)), info)


@contextmanager
def staging_dir(path: str | Path) -> Iterator[Path]:
    """The folder to fill for the checkpoint ``path``: it takes that name when the block ends, or goes if it raises.

    Raises:
        OSError: the block or the rename could not write, for example because the disk is full. The message names the
            checkpoint; those saved before are untouched.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    try:
        _remove_leftovers(path)
        partial.mkdir(parents=True)
        yield partial
        write_json(partial / MANIFEST, {"files": _sizes(partial)})
        if path.exists():  # the same step saved again; the old one leaves under a name that the next save clears away
            path.rename(path.with_name(f"{path.name}.replaced{PARTIAL}"))
        partial.rename(path)
        _remove_leftovers(path)
    except OSError as error:
        message = f"the checkpoint {path} was not saved, earlier ones are untouched: {_reason(error)}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message += "; free space, lower trainer.save_limit or set trainer.save_model_only=true"
        raise OSError(error.errno or errno.EIO, message) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # after a rename there is nothing left under this name


@contextmanager
def write_errors(path: str | Path) -> Iterator[None]:
    """Makes a failed write into ``path`` an OSError, whichever library tried to write.

    Without it a full disk ends a worker in ways nobody catches: torch.distributed.checkpoint raises a BaseException,
    torch.save a RuntimeError out of its zip writer, safetensors an exception of its own.
    """
    from torch.distributed.checkpoint.api import CheckpointException  # takes seconds, and a configuration's check none

    try:
        yield
    except CheckpointException as error:
        reason = "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items())
        raise _write_error(path, reason) from error
    except SafetensorError as error:
        raise _write_error(path, str(error)) from error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
            raise
        raise _write_error(path, str(error)) from error


def is_whole(path: str | Path) -> str | None:
    """None if every file that the checkpoint's manifest lists is there in its full size, else what is wrong."""
    path = Path(path)
    if not path.is_dir():
        return "there is no such folder"
    if not (path / MANIFEST).is_file():
        return f"it has no {MANIFEST}, so it was not written by this trainer or not to its end"
    try:
        listed = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} cannot be read"
    found = _sizes(path)
    for name, size in listed:
        if found.get(name) != size:
            return f"{name} has {found[name]} bytes instead of {size}" if name in found else f"{name} is missing"
    return _unreadable(path, found)


def read_state(path: str | Path) -> dict[str, Any]:
    """What the driver wrote into a checkpoint.

    Raises:
        ValueError: there is nothing, or nothing that a driver wrote.
    """
    try:
        state = json.loads((Path(path) / TRAINER_STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"its {TRAINER_STATE} cannot be read ({error})") from error
    if not isinstance(state, dict) or type(state.get("step")) is not int:
        raise ValueError(f"its {TRAINER_STATE} names no step")
    return state


def read_tracker(path: str | Path) -> dict[str, Any]:
    """The tracker's content; empty where there is none, or with a warning one that names no step."""
    notes: list[str] = []
    info = _tracker(Path(path), notes)
    for note in notes:
        logger.warning("%s", note)
    return info


def _tracker(path: Path, notes: list[str]) -> dict[str, Any]:
    tracker = path / CHECKPOINT_TRACKER
    try:
        info = json.loads(tracker.read_text(encoding="utf-8"))
        if type(info["last_global_step"]) is int:
            return info
        reason = f"last_global_step={info['last_global_step']!r}"
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    notes.append(f"{tracker} is torn ({reason}); the newest whole checkpoint beside it counts")
    return {}


def find_latest_ckpt(
    path: str | Path, directory_format: str = "global_step_{}", *, quiet: bool = False
) -> tuple[str | None, dict[str, Any] | None]:
    """The newest whole checkpoint that the tracker under ``path`` admits, and the tracker's content.

    A broken folder is passed over with a warning for the newest whole one before it, and if there is none for the
    newest of all; ``last_global_step`` of the returned content always names the step found. Without a tracker (killed
    during the very first save), or with a torn one, every folder counts. A folder that has no manifest comes from
    elsewhere and cannot be judged: as in EasyR1 it is returned if the tracker names it, but only where no whole one
    exists.

    Args:
        quiet: without the warnings.

    Returns:
        ``(folder, tracker content)``, or ``(None, None)``.
    """
    notes: list[str] = []
    found = _find_latest(Path(path), directory_format, notes)
    for note in [] if quiet else notes:
        logger.warning("%s", note)
    return found


def _find_latest(path: Path, directory_format: str, notes: list[str]) -> tuple[str | None, dict[str, Any] | None]:
    info = _tracker(path, notes)
    steps = _saved_steps(path, directory_format)
    last = info.get("last_global_step", max(steps, default=0))
    named = path / directory_format.format(last)
    if info and last not in steps:
        notes.append(f"{path / CHECKPOINT_TRACKER} names {named}, which does not exist")
    # Later ones than the tracker's are of a branch that the run had left, or were being written when it was killed.
    for step in sorted(steps, key=lambda step: (step <= last, step), reverse=True):
        folder = path / directory_format.format(step)
        reason = is_whole(folder)
        if reason is None:
            return str(folder), {**info, "last_global_step": step}
        notes.append(f"checkpoint {folder} is passed over: {reason}")
    if info and named.is_dir() and not (named / MANIFEST).exists():
        notes.append(f"no checkpoint under {path} can be checked; taking {named} as the tracker says")
        return str(named), info
    return None, None


def remove_obsolete_ckpt(
    path: str | Path,
    global_step: int,
    best_global_step: int,
    save_limit: int = -1,
    directory_format: str = "global_step_{}",
) -> None:
    """Remove the oldest checkpoints before ``global_step`` until ``save_limit`` are left, itself and the best counted.

    The best one stays even where the limit is 1, and nothing goes while the folder of ``global_step`` is missing or
    broken. A limit of 0 or less keeps all.
    """
    path = Path(path)
    current = path / directory_format.format(global_step)
    if save_limit <= 0 or not path.is_dir():
        return
    if not current.is_dir() or ((current / MANIFEST).exists() and is_whole(current) is not None):
        logger.warning("no old checkpoint is removed, since %s is not whole: %s", current, is_whole(current))
        return
    older = sorted((step for step in _saved_steps(path, directory_format) if step < global_step), reverse=True)
    best_is_older = best_global_step in older
    older = [step for step in older if step != best_global_step]
    for step in older[max(save_limit - 1 - best_is_older, 0) :]:
        _remove(path / directory_format.format(step))


def _saved_steps(path: Path, directory_format: str) -> set[int]:
    pattern = re.compile(re.escape(directory_format).replace(r"\{\}", r"(\d+)"))
    names = [folder.name for folder in path.iterdir() if folder.is_dir()] if path.is_dir() else []
    return {int(match[1]) for name in names if (match := pattern.fullmatch(name))}


def _remove(folder: Path) -> None:
    doomed = folder.with_name(folder.name + PARTIAL)
    try:
        folder.rename(doomed)  # first, so that a kill in the middle leaves no half folder under a good name
        shutil.rmtree(doomed)
        logger.info("removed the old checkpoint %s", folder)
    except OSError as error:
        logger.warning("the old checkpoint %s could not be removed: %s", folder, error)


def _remove_leftovers(path: Path) -> None:
    """Clear away what killed saves and removals of any step left beside ``path``."""
    for leftover in path.parent.glob(path.name.rstrip("0123456789") + "*" + PARTIAL):
        shutil.rmtree(leftover)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below ``folder`` but the manifest, by its relative path."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.stat().st_size for file in files if file != folder / MANIFEST}


def _unreadable(folder: Path, names: Iterable[str]) -> str | None:
    """Which of the driver's files is torn in spite of its size, as a machine that went down may leave it."""
    if TRAINER_STATE in names:
        try:
            read_state(folder)
        except ValueError as error:
            return str(error)
    if REPLAY_STATE in names:
        try:
            with safe_open(folder / REPLAY_STATE, "pt"):
                return None
        except SafetensorError as error:
            return f"its {REPLAY_STATE} cannot be read ({error})"
    return None


def _reason(error: OSError) -> str:
    return ": ".join(str(part) for part in (error.strerror or error, error.filename) if part)


def _write_error(path: str | Path, reason: str) -> OSError:
    folder = next(parent for parent in (Path(path), *Path(path).absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    code = errno.ENOSPC if free < 2**20 or "No space left" in reason else errno.EIO
    return OSError(code, f"{os.fspath(path)} cannot be written ({free / 2**30:.1f} GiB free): {reason}")
