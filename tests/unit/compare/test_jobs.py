"""A try as a command: its words, its folder, its problems, and what run_rwku.sh takes for a baseline."""

import json
from pathlib import Path

import pytest

from scripts.baseline_words import BaselineConfig, baseline
from tests.conftest import ROOT
from verl.compare.config import CompareConfig, RowConfig
from verl.compare.jobs import find_targets, job_of, job_problems, needs, training_command, write_forget_rows
from verl.compare.plan import tries_of
from verl.utils.errors import ConfigError

FILES = f"{ROOT}/examples/table.yaml,{ROOT}/examples/table_rwku.yaml"


@pytest.fixture
def world(tmp_path, monkeypatch) -> CompareConfig:
    """A model that need only be named, two targets with training rows, and a row of either stage."""
    monkeypatch.chdir(ROOT)
    rows = [
        {"prompt": "Who wrote it?", "solution": ["<reject>", "I cannot say.", "Ann Lee"], "answer": "Bo"},
        {"prompt": "Where is Rome?", "solution": ["<normal>", "Italy"]},
    ] * 16
    for name in ("1_Ann_Lee", "10_Bo_Ray"):
        folder = tmp_path / "Target" / name
        folder.mkdir(parents=True)
        for file in ("rl_rejection_with_fb_neighbor_target", "rl_rejection_with_fb_neighbor_target_val"):
            (folder / f"{file}.json").write_text(json.dumps(rows))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    return CompareConfig(
        model=str(tmp_path / "base"),
        data=str(tmp_path / "Target"),
        targets=["1", "Bo_Ray"],
        log=str(tmp_path / "log"),
        out=str(tmp_path / "out"),
        rs_config="RS/configs/atlas.yaml",
        rebo_config="examples/atlas.yaml",
        rows={
            "ga": RowConfig(
                settings={"objective": "ga", "data": "$forget", "response_key": "answer"},
                grid={"learning_rate": ["x0.1", "x1", 1e-6]},
            ),
            "told": RowConfig(stage="none", grid={"system_prompt": ["Forget $subject."]}),
            "rebo": RowConfig(
                stage="rebo",
                config="examples/grpo_rj_rl.yaml",
                settings={"data.train_files": "$rl_forget"},
                grid={"worker.actor.optim.lr": ["x0.5"]},
            ),
        },
    )


def jobs_of(config: CompareConfig, name: str, start: str = "start") -> list:
    target = find_targets(config)["1_Ann_Lee"]
    return [job_of(config, one, target, start) for one in tries_of(config, name, [target.name])]


def test_targets_go_by_number_folder_or_name(world):
    assert list(find_targets(world)) == ["1_Ann_Lee", "10_Bo_Ray"]
    lost = CompareConfig(**{**vars(world), "targets": ["3", "1_Ann_Lee"]})
    with pytest.raises(ConfigError, match=r"targets=\['3'\]: .* has no such folder; it has 1_Ann_Lee, 10_Bo_Ray"):
        find_targets(lost)


def test_a_try_of_rs_has_the_worlds_settings_the_rows_and_a_factor_worked_out(world):
    first, second, third = jobs_of(world, "ga", world.model)
    rows = f"{world.data}/1_Ann_Lee/rl_rejection_with_fb_neighbor_target.json"
    assert first.words == [
        "config=RS/configs/atlas.yaml",
        f"model={world.model}",
        f"data={rows}",
        "seed=1",
        "objective=ga",
        "response_key=answer",
        "learning_rate=3.5e-05",
    ]
    assert [job.settings["learning_rate"] for job in (first, second, third)] == [3.5e-5, 3.5e-4, 1e-6]
    assert training_command(first, 1) == ["python3", "RS/train.py", *first.words, f"output_dir={first.run}"]
    assert training_command(first, 4)[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4"]
    assert job_problems(first) == []


def test_a_try_of_rebo_keeps_its_last_step_and_starts_from_the_chosen_model(world):
    [job] = jobs_of(world, "rebo")
    assert job.words[0] == "config=examples/grpo_rj_rl.yaml,examples/atlas.yaml"
    assert {"worker.actor.model.model_path=start", "trainer.val_freq=-1", "worker.actor.optim.lr=0.0001"} < set(
        job.words
    )
    assert f"data.train_files={world.log}/1_Ann_Lee/rl_forget.json" in job.words


def test_a_prompt_is_a_method_without_training(world):
    [job] = jobs_of(world, "told")
    assert job.asked == {"system_prompt": "Forget Ann Lee."}
    assert job.model == Path(world.model)


def test_other_settings_or_another_start_have_another_folder(world):
    folders = {
        job.run for job in [*jobs_of(world, "rebo", "a"), *jobs_of(world, "rebo", "b"), *jobs_of(world, "rebo", "a")]
    }
    assert len(folders) == 2
    assert all(folder.parent == Path(world.log) / "1_Ann_Lee/seed1/rebo" for folder in folders)


def test_what_a_command_would_refuse_is_told_beforehand(world):
    world.rows["ga"].settings["objectiv"] = "ga"
    with pytest.raises(ConfigError, match="did you mean objective"):
        jobs_of(world, "ga")
    [job] = jobs_of(world, "rebo", world.model)
    assert any("rl_forget.json: there is no such file" in line for line in job_problems(job))
    assert job_problems(job, files_are_there=False) == []


def test_forget_rows_alone_are_a_file_of_their_own(world):
    assert needs(world, "rebo", "rl_forget") and not needs(world, "ga", "rl_forget")
    made = Path(world.log) / "rl_forget.json"
    write_forget_rows(
        {"rl": f"{world.data}/1_Ann_Lee/rl_rejection_with_fb_neighbor_target.json", "rl_forget": str(made)}
    )
    assert [row["solution"][0] for row in json.loads(made.read_text())] == ["<reject>"] * 16


def test_a_baseline_of_run_rwku_is_the_rows_first_try(monkeypatch):
    monkeypatch.chdir(ROOT)
    name, words = baseline(BaselineConfig("npo_klr", FILES, "M", "T/1_Ann_Lee"))
    assert name == "NPO+KLR"
    assert {"config=RS/configs/rt.yaml,RS/configs/npo.yaml", "model=M", "data=T/1_Ann_Lee/positive.json"} < set(words)
    assert {"objective=npo", "retain_loss=klr", "learning_rate=2.0e-06"} < set(words)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("npo_kl", "is no row of .* did you mean npo_klr"),
        ("rebo", "is not made by RS/train.py alone"),
        ("whp", "is not made by RS/train.py alone"),
        ("in_context", "is not made by RS/train.py alone"),
    ],
)
def test_what_is_no_baseline_is_told(row, reason, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=f"BASELINES={row}: {reason}"):
        baseline(BaselineConfig(row, FILES, "M", "T/1_Ann_Lee"))
