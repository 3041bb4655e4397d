"""Whether a folder holds a run already, which state it goes on from, and several runs in one command."""

import json
import logging
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from RS import resuming, trainer
from RS.config import RSConfig
from RS.train import main, read_runs, train_runs
from RS.trainer import RSTrainer
from RS.utils.data import Example
from verl.settings.reader import to_yaml
from verl.utils.checkpoint import TRAINER_STATE, staging_dir
from verl.utils.errors import ConfigError, DataError

EXAMPLES = [Example([1, 2], [3]), Example([1], [4, 5])]
SPELT = {"model": "folder/../model", "data": ["./rows.json"], "retain_data": ["./kept.json"]}


@pytest.fixture
def config(tmp_path) -> RSConfig:
    return RSConfig("model", "rows.json", str(tmp_path / "out"), retain_loss="klr", retain_data="kept.json")


def write_run(config: RSConfig, *, done: bool, state: int | None = None) -> Path:
    """What a run leaves; a state without weights."""
    folder = Path(config.output_dir)
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    if done:
        (folder / "DONE").write_text("")
    if state is not None:
        with staging_dir(folder / "state" / f"step_{state}") as partial:
            entries = {"step": state, "examples": resuming.digest(EXAMPLES, None)}
            (partial / TRAINER_STATE).write_text(json.dumps(entries))
    return folder


@pytest.mark.parametrize("left", [{"done": True}, {"done": False, "state": 3}, {"done": False}])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"micro_batch_size": 1, "padding_free": False, "fsdp_size": 1, "max_skipped_steps": 9}, None),
        (SPELT, None),
        ({"learning_rate": 0.5}, ["learning_rate: 1e-05 -> 0.5"]),
        ({"data": ["rows.json", "more.json"]}, ["data: rows.json -> ['rows.json', 'more.json']"]),
        ({"retain_data": None, "seed": 2}, ["retain_data: kept.json -> None", "seed: 1 -> 2"]),
        ({"chat_template_kwargs": {"a": 1}}, ["chat_template_kwargs: {} -> {'a': 1}"]),
    ],
)
def test_another_run_is_refused_where_there_is_something_to_lose(left, changes, expected, config):
    write_run(config, **left)
    if not expected or left == {"done": False}:
        assert resuming.is_done(replace(config, **changes)) == left["done"]
        return
    with pytest.raises(ConfigError) as raised:
        resuming.is_done(replace(config, **changes))
    title, *lines = str(raised.value).splitlines()
    assert title.startswith(f"output_dir={config.output_dir}: holds a run of other settings, which is ")
    assert ("unfinished" in title) != left["done"] and "give another output_dir" in title
    assert lines == [f"  - {line}" for line in expected]


def test_a_setting_that_the_run_did_not_know_had_its_default(config):
    (write_run(config, done=True) / "config.yaml").write_text("model: model\nold: 1\nlearning_rate: 1.0e-05\n")
    assert resuming.changed_settings(replace(config, retain_loss="none", retain_data=None)) == []
    assert resuming.changed_settings(config) == ["retain_loss: none -> klr", "retain_data: None -> kept.json"]


@pytest.mark.parametrize("text", ["{", "[]\n1: 2", "1", ""])
def test_settings_that_cannot_be_read_are_named(text, config):
    (write_run(config, done=True) / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"out: the settings of the run there cannot be read .*config.yaml"):
        resuming.is_done(config)


def test_the_newest_whole_state_counts(config):
    folder = write_run(config, done=False, state=3)
    torn = folder / "state" / "step_6"
    with staging_dir(torn) as partial:
        (partial / TRAINER_STATE).write_text('{"step": 6}')
    assert resuming.find_state(config) == torn
    (torn / TRAINER_STATE).write_text("{")
    (folder / "state" / "step_9.partial").mkdir()
    assert resuming.find_state(config) == folder / "state" / "step_3"
    resuming.remove_state(config)
    assert resuming.find_state(config) is None and sorted(path.name for path in folder.iterdir()) == ["config.yaml"]


@pytest.mark.parametrize(
    ("forget", "retain"),
    [(EXAMPLES[::-1], None), ([EXAMPLES[0], replace(EXAMPLES[1], response=[4, 6])], None), (EXAMPLES, EXAMPLES)],
)
def test_a_run_does_not_go_on_with_other_examples(forget, retain, config):
    write_run(config, done=False, state=3)
    state = resuming.find_state(config)
    resuming.check_examples(config, state, EXAMPLES, None)
    with pytest.raises(DataError, match=r"data=rows.json: the rows, .* are not what they were .*step_3 goes on"):
        resuming.check_examples(config, state, forget, retain)


@pytest.mark.parametrize(
    ("ends", "seconds", "took", "moments", "due"),
    [
        (True, 0.0, 0.0, True, True),
        (True, 99.0, 0.0, False, False),
        (False, 59.0, 0.0, True, False),
        (False, 61.0, 0.0, True, True),
        (False, 61.0, 5.0, True, False),  # no more than a twentieth of the time goes into states
        (False, 101.0, 5.0, True, True),
    ],
)
def test_a_state_is_written_at_an_epoch_s_end_or_after_a_while(ends, seconds, took, moments, due, monkeypatch):
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: 1000.0 + seconds)
    monkeypatch.setattr(dist, "broadcast", lambda flag, source: None)
    optimizer = SimpleNamespace(state={"weight": "moments"} if moments else {})
    clocks = {"state_written": 1000.0, "state_took": took}
    assert RSTrainer._state_is_due(SimpleNamespace(optimizer=optimizer, device="cpu", **clocks), ends) == due


# ---- several runs ---------------------------------------------------------------------------------------------------
@pytest.fixture
def words(tmp_path) -> list[str]:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows.json").write_text(json.dumps([{"instruction": "Who?", "output": "No."}]))
    return [f"model={tmp_path / 'model'}", f"data={tmp_path / 'rows.json'}", "seed=7"]


def tries(folder: Path, *lines: str) -> str:
    (folder / "tries.txt").write_text("\n".join(lines))
    return f"tries={folder / 'tries.txt'}"


def test_each_line_is_a_run_over_the_common_words(words, tmp_path):
    quoted = shlex.join([f"output_dir={tmp_path / 'b c'}", "system_prompt=it's # one", "seed=3"])
    file = tries(tmp_path, "# both", f"output_dir={tmp_path / 'a'} learning_rate=1e-3", "", quoted)
    first, second = read_runs([file, *words])
    assert (first.output_dir, first.learning_rate, first.seed) == (str(tmp_path / "a"), 1e-3, 7)
    assert (second.output_dir, second.system_prompt, second.seed) == (str(tmp_path / "b c"), "it's # one", 3)


def test_all_problems_of_all_lines_come_in_one_message(words, tmp_path, capsys):
    good = f"output_dir={tmp_path / 'a'}"
    file = tries(tmp_path, good, f"{good} lerning_rate=1", f"{good} batch_size=0", "system_prompt='")
    assert main([file, *words]) == 2
    shown = capsys.readouterr().err
    assert "tries.txt: 3 line(s) have problems:" in shown
    for expected in ("line 2: ", "mean learning_rate?", "line 3: ", "batch_size=0: must be", "line 4: No closing"):
        assert expected in shown
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["# nothing"], "it has no line; give the words of a run in each"),
        (["output_dir=x", "output_dir=y/../x"], "/x: is the folder of several runs; give each one of its own"),
        (None, "cannot be read ([Errno 2] No such file or directory: "),
    ],
)
def test_runs_that_cannot_be_told_apart_or_are_none_are_refused(lines, expected, words, tmp_path, capsys):
    file = f"tries={tmp_path / 'absent'}" if lines is None else tries(tmp_path, *lines)
    assert main([*words, file]) == 2
    assert expected in capsys.readouterr().err


def test_runs_that_are_done_are_left_alone_and_lose_their_state(config, caplog):
    folder = write_run(config, done=True, state=3)
    with caplog.at_level(logging.INFO):
        assert train_runs([config]) == {}
    assert f"{folder} is finished" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == ["DONE", "config.yaml"]


def test_a_dry_run_says_what_would_become_of_each(words, tmp_path, capsys):
    file = tries(tmp_path, *(f"output_dir={tmp_path / name}" for name in "abc"))
    for config, left in zip(read_runs([*words, file]), ({"done": True}, {"done": False, "state": 2}), strict=False):
        write_run(config, **left)
    assert main([*words, file, "dry_run=true"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("3 epochs x 1 steps") == 3 and shown.count("all of that is done before") == 1
    assert shown.count(f"going on from {tmp_path / 'b' / 'state' / 'step_2'}") == 1
    assert main([*words, file, "dry_run=true", "weight_decay=0.7"]) == 2
    assert "weight_decay: 0.0 -> 0.7" in capsys.readouterr().err
