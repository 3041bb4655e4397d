"""Checkpoint folders: written whole, found again, thinned out. Loading and saving weights is the workers' part."""

from .files import (
    CHECKPOINT_TRACKER,
    find_latest_ckpt,
    get_checkpoint_tracker_filename,
    is_whole,
    remove_obsolete_ckpt,
    staging_dir,
    write_errors,
    write_tracker,
)

__all__ = [
    "CHECKPOINT_TRACKER",
    "find_latest_ckpt",
    "get_checkpoint_tracker_filename",
    "is_whole",
    "remove_obsolete_ckpt",
    "staging_dir",
    "write_errors",
    "write_tracker",
]
