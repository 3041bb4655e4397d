"""Checkpoint folders are whole or absent, the newest whole one is found, and old ones go only when they may."""

import errno
import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from verl.utils.checkpoint import (
    CHECKPOINT_TRACKER,
    find_latest_ckpt,
    get_checkpoint_tracker_filename,
    is_whole,
    read_tracker,
    remove_obsolete_ckpt,
    staging_dir,
    write_errors,
    write_tracker,
)


def save(root: Path, step: int, tracked: bool = True) -> Path:
    path = root / f"global_step_{step}"
    with staging_dir(path) as folder:
        (folder / "actor").mkdir()
        (folder / "actor" / "weights.bin").write_bytes(bytes(range(step)))
        (folder / "loader.json").write_text(str(step))
    if tracked:
        write_tracker(root, {"last_global_step": step, "best_global_step": 1})
    return path


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_folder_appears_under_its_name_only_when_filled(tmp_path):
    path = tmp_path / "global_step_3"
    with staging_dir(path) as folder:
        (folder / "a").write_text("a")
        assert not path.exists()
    assert is_whole(path) is None
    assert names(tmp_path) == ["global_step_3"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a worker died")])
def test_failed_save_leaves_nothing_and_raises_what_it_met(tmp_path, error):
    save(tmp_path, 2)
    with pytest.raises(type(error)), staging_dir(tmp_path / "global_step_4") as folder:
        (folder / "half").write_text("x")
        raise error
    assert names(tmp_path) == ["global_step_2"]


def test_full_disk_names_the_checkpoint_and_the_fix(tmp_path):
    save(tmp_path, 2)
    message = r"global_step_4 was not saved.*No space left.*save_limit"
    with pytest.raises(OSError, match=message) as raised, staging_dir(tmp_path / "global_step_4") as folder:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "x"))
    assert raised.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["global_step_2"]


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 4)
    with staging_dir(tmp_path / "global_step_4") as folder:
        (folder / "new").write_text("new")
    assert is_whole(tmp_path / "global_step_4") is None
    assert (tmp_path / "global_step_4" / "new").exists()
    assert not (tmp_path / "global_step_4" / "loader.json").exists()
    assert names(tmp_path) == ["global_step_4"]


def test_next_save_clears_what_a_killed_one_left(tmp_path):
    def save_and_die():
        with staging_dir(tmp_path / "global_step_5") as folder:
            (folder / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=save_and_die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert names(tmp_path) == ["global_step_5.partial"]
    assert find_latest_ckpt(tmp_path) == (None, None)
    save(tmp_path, 6)
    assert names(tmp_path) == ["global_step_6"]


@pytest.mark.parametrize("write", ["dcp", "torch"])
def test_libraries_that_cannot_write_raise_os_errors(tmp_path, write, monkeypatch):
    """A file size limit stands in for a full disk: DCP and torch.save raise neither OSError nor (DCP) an Exception."""
    state = {"model": {"weight": torch.zeros(1_000_000)}}
    monkeypatch.setattr(
        sys, "dont_write_bytecode", True
    )  # the limit would cut off the bytecode of what is imported now
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="cannot be written"), write_errors(tmp_path):
            if write == "dcp":
                dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
            else:
                torch.save(state, tmp_path / "x.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_other_runtime_errors_pass_through(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"), write_errors(tmp_path):
        raise RuntimeError("shapes do not match")


def truncate(folder: Path) -> None:
    os.truncate(folder / "actor" / "weights.bin", 1)


def drop_file(folder: Path) -> None:
    (folder / "loader.json").unlink()


def tear_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": {"act')


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(truncate, "1 bytes instead of 7"), (drop_file, "loader.json is missing"), (tear_manifest, "cannot be read")],
)
def test_broken_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, damage, reason):
    save(tmp_path, 3)
    older, newest = save(tmp_path, 5), save(tmp_path, 7)
    damage(newest)
    assert reason in is_whole(newest)
    with caplog.at_level(logging.WARNING):
        path, info = find_latest_ckpt(tmp_path)
    assert path == str(older)
    assert info == {"last_global_step": 5, "best_global_step": 1}
    assert str(newest) in caplog.text and reason in caplog.text


def test_latest_is_by_number_not_by_spelling(tmp_path):
    save(tmp_path, 9)
    newest = save(tmp_path, 10)
    assert find_latest_ckpt(tmp_path)[0] == str(newest)


def test_tracker_rules_which_step_is_last(tmp_path):
    save(tmp_path, 2)
    save(tmp_path, 4, tracked=False)
    assert find_latest_ckpt(tmp_path) == (
        str(tmp_path / "global_step_2"),
        {"last_global_step": 2, "best_global_step": 1},
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"last_global',
        b"\xff\xfe",
        b"null",
        b"[4]",
        b"{}",
        b'{"last_global_step": "4"}',
        b'{"last_global_step": true}',
    ],
)
def test_a_torn_tracker_falls_back_to_the_newest_whole_checkpoint(tmp_path, caplog, content):
    save(tmp_path, 2)
    newest = save(tmp_path, 4)
    truncate(save(tmp_path, 6))
    tracker = tmp_path / CHECKPOINT_TRACKER
    tracker.write_bytes(content)
    assert find_latest_ckpt(tmp_path) == (str(newest), {"last_global_step": 4})
    assert f"{tracker} is torn (" in caplog.text and "global_step_6 is passed over" in caplog.text
    caplog.clear()
    assert find_latest_ckpt(tmp_path, quiet=True)[0] == str(newest)
    assert not caplog.text
    tracker.unlink()
    tracker.mkdir()  # not even a file
    assert read_tracker(tmp_path) == {} and f"{tracker} is torn (IsADirectoryError" in caplog.text


@pytest.mark.parametrize("others", [[2, 6], [6, 8]])
def test_a_tracker_that_names_no_whole_checkpoint_falls_back_to_the_newest_before_it_or_of_all(
    tmp_path, caplog, others
):
    """Later ones may be of a branch that the run has left."""
    for step in others:
        save(tmp_path, step)
    write_tracker(tmp_path, {"last_global_step": 4})
    assert find_latest_ckpt(tmp_path)[0] == str(tmp_path / f"global_step_{2 if 2 in others else 8}")
    assert "global_step_4, which does not exist" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("trainer_state.json", bytes(12), "trainer_state.json cannot be read"),
        ("trainer_state.json", b"[1, 2, 3]", "trainer_state.json names no step"),
        ("trainer_state.json", b'{"step": "4"}', "trainer_state.json names no step"),
        ("replay.safetensors", bytes(64), "replay.safetensors cannot be read"),
    ],
)
def test_a_driver_s_file_that_is_torn_in_its_full_size_is_noticed(tmp_path, name, content, reason):
    """Zeros where a file was: what a machine that went down leaves."""
    older, newest = tmp_path / "global_step_2", tmp_path / "global_step_4"
    for path in (older, newest):
        with staging_dir(path) as folder:
            save_file({"responses": torch.zeros(2)}, folder / "replay.safetensors")
            (folder / "trainer_state.json").write_text('{"step": 4}')
            if path == newest:
                (folder / name).write_bytes(content)
    assert is_whole(older) is None and reason in is_whole(newest)
    assert find_latest_ckpt(tmp_path)[0] == str(older)


@pytest.mark.parametrize("content", ["", "[]", '{"files": []}', '{"files": {"actor/weights.bin": "7"}}'])
def test_a_manifest_that_is_none_makes_no_checkpoint_whole(tmp_path, content):
    path = save(tmp_path, 7)
    (path / "manifest.json").write_text(content)
    assert is_whole(path)


def test_first_save_counts_even_if_killed_before_the_tracker(tmp_path):
    path = save(tmp_path, 2, tracked=False)
    assert find_latest_ckpt(tmp_path) == (str(path), {"last_global_step": 2})


def test_nothing_to_find(tmp_path):
    assert find_latest_ckpt(tmp_path / "absent") == (None, None)
    assert find_latest_ckpt(tmp_path) == (None, None)


def test_folder_from_elsewhere_is_taken_on_the_trackers_word(tmp_path):
    (tmp_path / "global_step_8" / "actor").mkdir(parents=True)
    assert get_checkpoint_tracker_filename(str(tmp_path)) == str(tmp_path / CHECKPOINT_TRACKER)
    (tmp_path / CHECKPOINT_TRACKER).write_text(json.dumps({"last_global_step": 8}))
    assert find_latest_ckpt(str(tmp_path)) == (str(tmp_path / "global_step_8"), {"last_global_step": 8})


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (-1, 5, [5, 10, 15, 20]),
        (0, 5, [5, 10, 15, 20]),
        (3, 20, [10, 15, 20]),
        (3, 5, [5, 15, 20]),  # the best counts towards the limit
        (2, 5, [5, 20]),
        (1, 5, [5, 20]),  # but is kept beyond it
        (1, 20, [20]),
        (9, 5, [5, 10, 15, 20]),
    ],
)
def test_save_limit_keeps_the_newest_and_the_best(tmp_path, limit, best, kept):
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    remove_obsolete_ckpt(tmp_path, 20, best, limit)
    assert names(tmp_path) == sorted(f"global_step_{step}" for step in kept)


def test_later_checkpoints_and_other_folders_stay(tmp_path):
    """After resuming from an older step, what lies ahead is not this call's to remove."""
    for step in (5, 10, 30):
        save(tmp_path, step)
    (tmp_path / "global_step_5_notes").mkdir()
    remove_obsolete_ckpt(tmp_path, 10, 10, 1)
    assert names(tmp_path) == ["global_step_10", "global_step_30", "global_step_5_notes"]


@pytest.mark.parametrize("state", ["absent", "broken"])
def test_nothing_is_removed_before_the_new_one_is_whole(tmp_path, caplog, state):
    save(tmp_path, 5)
    save(tmp_path, 10)
    if state == "broken":
        truncate(save(tmp_path, 15))
    remove_obsolete_ckpt(tmp_path, 15, 5, 1)
    assert {"global_step_5", "global_step_10"} <= set(names(tmp_path))
    assert "no old checkpoint is removed" in caplog.text
