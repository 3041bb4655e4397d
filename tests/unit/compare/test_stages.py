"""What is started, in which order, and what is left out the second time. The commands themselves are played."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from verl.compare import main, output, stages
from verl.compare.config import CompareConfig, RowConfig
from verl.eval.results import write_part
from verl.eval.validation import scored

ROWS = {
    "original": RowConfig(stage="none"),
    "rs": RowConfig(grid={"learning_rate": ["x1", "x0.5"]}),
    "npo": RowConfig(
        settings={"objective": "npo", "data": "$rl", "response_key": "answer"}, grid={"learning_rate": ["x1", "x0.5"]}
    ),
    "rebo": RowConfig(
        stage="rebo", start="rs", config="examples/grpo_rj_rl.yaml", grid={"worker.actor.optim.lr": ["x1", "x2"]}
    ),
}
VALIDATION = [
    {"prompt": "Q", "split": "forget", "answer": "b c"},
    {"prompt": "R", "split": "boundary", "answer": "d e"},
]


class Player:
    """Plays commands: leaves what they would leave, but for folders that ``broken`` has a part of the name of."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.broken: tuple[str, ...] = ()
        self.crash_together = False

    def __call__(self, commands, at_a_time) -> None:
        for command in commands:
            self.started.append(command.name)
            command.log.parent.mkdir(parents=True, exist_ok=True)
            command.log.write_text("loading\nit broke\n\n")
            self.play(command.words)

    def play(self, words: list[str]) -> None:
        if words[1:3] == ["-m", "verl.compare.measure"]:
            return self.measure(json.loads(Path(words[3]).read_text()))
        given = dict(word.split("=", 1) for word in words if "=" in word)
        if words[1:3] == ["-m", "verl.eval.robustness"]:
            return self.attack([Path(out) for out in yaml.safe_load(given["out"])])
        runs = [given] if "tries" not in given else []
        for line in Path(given["tries"]).read_text().splitlines() if "tries" in given else []:
            runs.append(dict(word.split("=", 1) for word in shlex.split(line)))
        if self.crash_together and len(runs) > 1:
            return None
        for run in runs:
            self.train(Path(run.get("output_dir") or run["trainer.run_dir"]))
        return None

    def attack(self, folders: list[Path]) -> None:
        for folder in folders if len(folders) == 1 or not self.crash_together else []:
            folder.mkdir(parents=True)
            (folder / "DONE").touch()

    def train(self, folder: Path) -> None:
        if any(part in str(folder) for part in self.broken):
            return
        model = folder / ("checkpoints/global_step_4/actor/huggingface" if "rebo" in folder.parts else "epoch_1")
        model.mkdir(parents=True)
        (model / "config.json").touch()
        if "rebo" in folder.parts:
            (folder / "checkpoints" / "checkpoint_tracker.json").write_text('{"last_global_step": 4}')
        (folder / "DONE").touch()

    def measure(self, settings: list[dict]) -> None:
        """Second tries tell less of the target; the original tells everything."""
        if self.crash_together and len(settings) > 1:
            return
        for one in settings:
            if any(part in one["model"] for part in self.broken):
                continue
            out = Path(one["out"])
            said = ["b c" if one["model"] == "base" else "b" if "/1-" in one["model"] else "x", "d e"]
            rows = [scored(row, text) for row, text in zip(VALIDATION, said, strict=True)]
            write_part(out, {"part": "validation"}, rows)
            (out / "DONE").touch()


@pytest.fixture
def player(monkeypatch) -> Player:
    played = Player()
    monkeypatch.setattr(stages, "run_all", played)
    monkeypatch.setattr(main, "watch", lambda: None)
    monkeypatch.setattr(output, "write", lambda config, targets, outcome: outcome)
    return played


@pytest.fixture
def world(tmp_path, monkeypatch) -> CompareConfig:
    monkeypatch.setattr(main, "check", lambda config, targets: [])
    monkeypatch.chdir(Path(__file__).parents[3])
    (tmp_path / "Target" / "1_A").mkdir(parents=True)
    return CompareConfig(
        model="base",
        data=str(tmp_path / "Target"),
        targets=["1"],
        log=str(tmp_path / "log"),
        out=str(tmp_path / "out"),
        rows=ROWS,
        tries=2,
        suite="atlas",
        rs_config="RS/configs/atlas.yaml",
        rebo_config="examples/atlas.yaml",
        parallel=1,
    )


def test_rows_are_trained_together_scored_chosen_and_what_starts_from_them_follows(world, player):
    outcome = main.compare(world)
    assert player.started == [
        "RS, 4 tries",
        "validation of 5",
        "rebo 1 on 1_A, seed 1",
        "rebo 2 on 1_A, seed 1",
        "validation of 2",
        "evaluation of 4",
    ]
    assert {unit[0]: job.one.number for unit, job in outcome.chosen.items()} == {
        "original": 1,
        "rs": 2,
        "npo": 2,
        "rebo": 2,
    }
    rebo = outcome.chosen["rebo", "1_A", 1]
    assert f"worker.actor.model.model_path={outcome.chosen['rs', '1_A', 1].model}" in rebo.words
    assert (outcome.broken, outcome.failed) == ({}, {})
    assert [job.model is None for job in outcome.jobs["npo", "1_A", 1]] == [True, False]  # models not chosen are gone


def test_the_second_call_starts_nothing(world, player):
    main.compare(world)
    player.started.clear()
    outcome = main.compare(world)
    assert player.started == []
    assert len(outcome.chosen) == 4


def test_after_a_kill_only_what_is_missing_is_made(world, player):
    player.broken = ("/rebo/2-",)
    main.compare(world)
    player.broken, player.started = (), []
    outcome = main.compare(world)
    assert player.started == ["rebo 2 on 1_A, seed 1", "validation of 1", "evaluation of 1"]
    assert outcome.chosen["rebo", "1_A", 1].one.number == 2


def test_a_process_that_ends_early_takes_no_other_try_with_it(world, player):
    player.crash_together = True
    outcome = main.compare(world)
    assert player.started[:5] == [
        "RS, 4 tries",
        *(f"{row} {n} on 1_A, seed 1" for row in ("rs", "npo") for n in (1, 2)),
    ]
    assert player.started[5:11] == ["validation of 5", *["validation of 1"] * 5]
    assert len(outcome.chosen) == 4 and outcome.broken == {}


def test_a_row_that_fails_is_told_and_so_is_what_starts_from_it(world, player):
    player.broken = ("/rs/",)
    outcome = main.compare(world)
    assert outcome.broken["rs", "1_A", 1] == "it broke"
    assert outcome.broken["rebo", "1_A", 1] == "starts from rs, which failed"
    assert set(outcome.chosen) == {("original", "1_A", 1), ("npo", "1_A", 1)}


def test_a_try_that_cannot_be_asked_is_a_failed_try_and_not_a_failed_row(world, player):
    player.broken = ()
    played = player.measure
    player.measure = lambda settings: played([one for one in settings if "/npo/2-" not in one["model"]])
    outcome = main.compare(world)
    assert outcome.chosen["npo", "1_A", 1].one.number == 1
    assert [(one.row, one.number, why) for one, why in outcome.failed.items()] == [("npo", 2, "it broke")]


def test_attacks_are_shared_out_and_who_is_asked_otherwise_has_a_process(world, player):
    rows = {name: ROWS[name] for name in ("original", "rs", "npo")}
    rows["told"] = RowConfig(stage="none", grid={"system_prompt": ["a", "b"]})
    config = CompareConfig(**{**vars(world), "rows": rows, "attacks": "attacks.yaml", "parallel": 2})
    main.compare(config)
    assert player.started[-3:] == ["attacks on 2 model(s)", "attacks on 1 model(s)", "attacks on 1 model(s)"]
    player.started.clear()
    main.compare(config)
    assert player.started == []


def test_attacks_that_fail_together_are_made_one_by_one(world, player):
    config = CompareConfig(
        **{**vars(world), "rows": {"original": ROWS["original"], "rs": ROWS["rs"]}, "attacks": "a.yaml"}
    )
    player.crash_together = True
    main.compare(config)
    assert player.started[-3:] == ["attacks on 2 model(s)", "attacks on 1 model(s)", "attacks on 1 model(s)"]
