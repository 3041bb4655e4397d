"""Every step reaches every logger, files survive kills and resumes, and nothing waits for a network."""

import json
import logging
import math
import sys
import types

import numpy as np
import pytest
import torch

from verl.trainer.dialogues import log_generations
from verl.utils.logger import Tracker, available, read_metrics


def tracker(run_dir, *names, resume_step=None):
    return Tracker(list(names), run_dir, "project", "experiment", {"trainer": {"seed": 1}}, resume_step=resume_step)


def write_steps(run_dir, steps, resume_step=None, value=0.5):
    target = tracker(run_dir, "file", resume_step=resume_step)
    for step in steps:
        target.log({"reward/overall": value}, step)
    target.close()


def steps(run_dir):
    return [row["step"] for row in read_metrics(run_dir)]


def test_row_is_on_disk_when_log_returns(tmp_path):
    target = tracker(tmp_path / "new" / "folder", "file")
    target.log({"reward/overall": np.float32(0.25), "actor/lr": torch.tensor(2.0)}, 3)
    assert read_metrics(tmp_path / "new" / "folder") == [{"step": 3, "reward/overall": 0.25, "actor/lr": 2.0}]
    target.close()


def test_nan_and_infinity_stay_valid_json_and_come_back(tmp_path):
    target = tracker(tmp_path, "file")
    target.log({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0}, 1)
    target.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    row = read_metrics(tmp_path)[0]
    assert math.isnan(row["a"]) and (row["b"], row["c"], row["d"]) == (math.inf, -math.inf, 1.0)


def test_resume_drops_only_rows_beyond_the_step(tmp_path):
    write_steps(tmp_path, [1, 2, 2, 3, 4])
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines()[:3]
    write_steps(tmp_path, [3, 4, 5], resume_step=2, value=0.75)
    assert steps(tmp_path) == [1, 2, 2, 3, 4, 5]
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[:3] == kept
    assert read_metrics(tmp_path)[3]["reward/overall"] == 0.75


def test_resume_at_the_end_leaves_the_file_as_it_is(tmp_path):
    write_steps(tmp_path, [1, 2])
    before = (tmp_path / "metrics.jsonl").stat().st_ino
    write_steps(tmp_path, [], resume_step=2)
    assert (tmp_path / "metrics.jsonl").stat().st_ino == before and steps(tmp_path) == [1, 2]


def test_resume_after_a_kill_in_the_middle_of_a_row(tmp_path):
    write_steps(tmp_path, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rewa')
    assert steps(tmp_path) == [1, 2]
    write_steps(tmp_path, [3], resume_step=2)
    assert steps(tmp_path) == [1, 2, 3]


def test_new_run_in_a_used_folder_keeps_the_earlier_rows(tmp_path, caplog):
    write_steps(tmp_path, [1, 2])
    write_steps(tmp_path, [1])
    write_steps(tmp_path, [1])
    assert steps(tmp_path) == [1]
    assert len((tmp_path / "metrics.1.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "metrics.2.jsonl").exists() and "metrics.1.jsonl" in caplog.text


def test_console_shows_chosen_metrics_in_aligned_columns(tmp_path, caplog):
    target = tracker(tmp_path, "console")
    with caplog.at_level(logging.INFO):
        target.log({"reward/overall": 0.5, "actor/grad_norm": 12.3456, "timing_s/other": 1.0}, 7)
        target.log({"reward/overall": 0.123456, "actor/grad_norm": 1.0}, 12)
        target.log({"loss": 2.0}, 13)
    first, second, third = [record.getMessage() for record in caplog.records]
    assert first == "step     7 | reward 0.5       | grad 12.35"
    assert second == "step    12 | reward 0.1235    | grad 1"
    assert third == "step    13 | loss 2"


def test_tensorboard_holds_the_curve_and_a_resume_purges_what_follows(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for resume_step, logged, value in [(None, (1, 2, 3), 1.0), (1, (2,), 5.0)]:
        target = tracker(tmp_path, "tensorboard", resume_step=resume_step)
        for step in logged:
            target.log({"reward/overall": value}, step)
        target.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/overall")] == [(1, 1.0), (2, 5.0)]


@pytest.fixture
def fake_wandb(monkeypatch):
    """Records what the real library would be asked; ``logged_in`` and ``reachable`` are the world outside."""
    module = types.ModuleType("wandb")
    module.Error = type("Error", (Exception,), {})
    module.calls, module.logged_in, module.reachable = [], False, True
    module.Settings = lambda **settings: settings
    module.login = lambda prompt, verify: module.logged_in

    def init(**arguments):
        module.calls.append(arguments)
        if arguments["mode"] == "online" and not module.reachable:
            raise module.Error("no answer")
        return types.SimpleNamespace(log=lambda metrics, step: None, finish=lambda: None)

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return module


@pytest.mark.parametrize(
    ("logged_in", "variable", "mode"),
    [(False, None, "offline"), (True, None, "online"), (True, "offline", "offline"), (False, "disabled", "disabled")],
)
def test_wandb_is_online_only_where_it_may_be(tmp_path, monkeypatch, fake_wandb, logged_in, variable, mode):
    fake_wandb.logged_in = logged_in
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    tracker(tmp_path, "wandb").close()
    assert [call["mode"] for call in fake_wandb.calls] == [mode]


def test_wandb_without_a_server_goes_offline_with_a_warning(tmp_path, fake_wandb, caplog):
    fake_wandb.logged_in, fake_wandb.reachable = True, False
    tracker(tmp_path, "wandb").close()
    assert [call["mode"] for call in fake_wandb.calls] == ["online", "offline"]
    assert "no answer" in caplog.text


def test_wandb_resume_keeps_the_run_and_a_new_run_does_not(tmp_path, fake_wandb):
    for resume_step in (None, 4, None):
        tracker(tmp_path, "wandb", resume_step=resume_step).close()
    first, resumed, new = [call["id"] for call in fake_wandb.calls]
    assert first == resumed != new


def test_real_wandb_without_a_key_writes_an_offline_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for variable in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    target = tracker(tmp_path, "wandb")
    target.log({"reward/overall": 0.5}, 1)
    target.close()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_availability(monkeypatch):
    assert available("console") is None and available("file") is None
    assert "tensorboard" in available("tensorbord")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert available("swanlab") == "swanlab is not installed; pip install swanlab, or leave it out"
    assert available("file") is None


def test_close_twice_and_double_names(tmp_path):
    target = tracker(tmp_path, "file", "file")
    target.log({"x": 1.0}, 1)
    target.close()
    target.close()
    assert steps(tmp_path) == [1]


def test_dialogues(tmp_path):
    samples = [
        {
            "prompt": "Who is <Ann>?",
            "response": "I'm sorry.\n\nI won't say.",
            "ground_truth": ["<reject>", "I can't answer.", "Ann"],
            "split": "forget",
            "reward": {"overall": np.float32(1.0), "refusal": math.nan},
        },
        {"prompt": "And Bo?", "response": "", "ground_truth": "A painter.", "split": "boundary", "reward": 0.0},
    ]
    path = log_generations(tmp_path, 20, samples)
    assert path == tmp_path / "dialogues" / "step_20.md"
    text = path.read_text()
    assert "## 1. forget: overall 1, refusal nan" in text and "## 2. boundary: overall 0" in text
    assert "> Who is \\<Ann>?" in text and "> I'm sorry.  \n>   \n> I won't say." in text
    assert "> \\<reject> · I can't answer. · Ann" in text and "> (empty)" in text
    rows = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 20 and rows[0]["reward"] == {"overall": 1.0, "refusal": "nan"}
    assert rows[0]["prompt"] == "Who is <Ann>?" and rows[1]["response"] == ""
