"""Checkpoint folders: written whole, found again, thinned out. Loading and saving weights is the workers' part."""

from .files import (
    CHECKPOINT_TRACKER,
    REPLAY_STATE,
    TRAINER_STATE,
    find_latest_ckpt,
    get_checkpoint_tracker_filename,
    is_whole,
    read_state,
    read_tracker,
    remove_obsolete_ckpt,
    staging_dir,
    write_errors,
    write_tracker,
)

__all__ = [
    "CHECKPOINT_TRACKER",
    "REPLAY_STATE",
    "TRAINER_STATE",
    "find_latest_ckpt",
    "get_checkpoint_tracker_filename",
    "is_whole",
    "read_state",
    "read_tracker",
    "remove_obsolete_ckpt",
    "staging_dir",
    "write_errors",
    "write_tracker",
]
