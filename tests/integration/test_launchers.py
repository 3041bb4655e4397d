"""run_rwku.sh on the real stack with a tiny model: around a broken target, and on one that RWKU and RULE published.

And run_demo.sh where it is given a wrong word.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from data.atlas.people import build_world
from data.atlas.world import write_world
from data.prepare_rwku import RL_FILE, VAL_FILE
from tests.conftest import ROOT
from tests.training_kit import run_python

SMALL = ["trainer.max_steps=2", "trainer.val_freq=1", "trainer.save_freq=1", "data.rollout_batch_size=4"]
SMALL += ["worker.actor.global_batch_size=4", "worker.rollout.n=2", "data.max_prompt_length=160"]

TARGET = "1_Stephen_King"
LONG_PARTS = ("retain_mmlu.json", "retain_bbh.json", "forget_mia.json", "retain_mia.json", "fluency.json")
RWKU_PARTS = {"forget", "neighbor", "mia", "memorization", "mmlu", "bbh", "truthfulqa", "triviaqa", "fluency"}

REWARD_FILE = """
REWARD_TYPE = "batch"

def compute_score(reward_inputs, preset):
    return [{"overall": min(1.0, one["response"].count("e") / 4)} for one in reward_inputs]
"""
"""A reward that a random model earns now and then, so that ReBO moves the weights."""


@pytest.fixture(scope="module")
def target_folders(tmp_path_factory) -> Path:
    """Atlas' target folders; the RL file of target 2 cannot be parsed."""
    folder = tmp_path_factory.mktemp("world")
    write_world(build_world(3), folder)
    [broken] = (folder / "Target").glob("2_*/rl_rejection_with_fb_neighbor_target.json")
    broken.write_text("[")
    return folder / "Target"


def launch(folder: Path, data: Path, model: Path, **changes: str) -> subprocess.CompletedProcess:
    places = {"LOG_ROOT": f"{folder}/log", "RS_ROOT": f"{folder}/log/rs", "RESULTS": f"{folder}/results"}
    settings = {
        "MODEL": str(model),
        "DATA": str(data),
        "CONFIG": "examples/grpo_rj_rl.yaml,examples/atlas.yaml",
        "RS_CONFIG": "RS/configs/atlas.yaml",
        "RS_EPOCH": "1",
        "RS_ARGS": "num_train_epochs=1",
        "GPUS": "1",
    }
    (folder / "reward.py").write_text(REWARD_FILE)
    reward = f"worker.reward.reward_function={folder}/reward.py:compute_score"
    command = ["bash", str(ROOT / "run_rwku.sh"), reward, *SMALL]
    environment = os.environ | settings | places | changes
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=1800)


def test_from_targets_to_table_around_a_broken_target(tmp_path, target_folders, tiny_model):
    words = "parts=[forget,neighbor] prompt_style=plain bootstrap_samples=20"
    settings = {"TARGETS": "2 1", "EVAL_ARGS": words}
    first = launch(tmp_path, target_folders, tiny_model, **settings)
    good, broken = ([path.name for path in target_folders.glob(f"{number}_*")][0] for number in (1, 2))
    assert first.returncode == 1, first.stdout + first.stderr
    assert f"== finished: 1 ({good})" in first.stdout
    [log] = re.findall(rf"FAILED: {broken}: rebo failed, (\S+)", first.stdout)
    assert "is not valid JSON" in Path(log).read_text()

    results = [json.loads((tmp_path / f"results/{row}/{good}/results.json").read_text()) for row in ("base", "rs")]
    rebo = json.loads((tmp_path / f"results/grpo_rj_rl/{good}/results.json").read_text())
    assert len({document["model"]["weights_sha256"] for document in (*results, rebo)}) == 3
    assert rebo["selection"]["chosen_on_validation"] is True
    table = (tmp_path / "results/tables/grpo_rj_rl_rule/table.md").read_text()
    assert [method for method in ("Original", "RS", "ReBO") if f"| {method}" in table] == ["Original", "RS", "ReBO"]

    done = sorted(tmp_path.rglob("DONE"))
    times = [path.stat().st_mtime_ns for path in done]
    second = launch(tmp_path, target_folders, tiny_model, **settings)
    assert second.returncode == 1 and f"== finished: 1 ({good})" in second.stdout
    assert [path.stat().st_mtime_ns for path in done] == times


def test_a_published_target_from_its_folder_to_the_tables(tmp_path, shared_data, long_tiny_model):
    """Preparation, RS over all rows, two steps of ReBO, every part of RWKU (of the longest an eighth), both tables."""
    source, prepared = shared_data / "RWKU" / "Target" / TARGET, tmp_path / "Target"
    run_python("data/prepare_rwku.py", f"source={source}", f"out={tmp_path}")
    rows = {name: len(json.loads((prepared / TARGET / name).read_text())) for name in (RL_FILE, VAL_FILE)}
    assert (sum(rows.values()), rows[VAL_FILE]) == (1200, 120)
    for name in LONG_PARTS:  # a million characters for each of three models
        path = prepared / TARGET / name
        path.write_text(json.dumps(json.loads(path.read_text())[::8]))

    done = launch(tmp_path, prepared, long_tiny_model, TARGETS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    for row in ("base", "rs", "grpo_rj_rl"):
        results = json.loads((tmp_path / "results" / row / TARGET / "results.json").read_text())
        assert set(results["parts"]) == RWKU_PARTS
    for kind, published in (("rule", "ReBO-GRPO"), ("rwku", "RT (full)")):
        table = (tmp_path / f"results/tables/grpo_rj_rl_{kind}/table.md").read_text()
        assert "| ReBO |" in table and f"| {published} (published) |" in table


def test_the_demo_refuses_a_wrong_word_before_it_trains(atlas):
    before = set((ROOT / "log" / "atlas").rglob("*"))
    command = [
        "bash",
        str(ROOT / "run_demo.sh"),
        "epochs=3",
        "trainer.max_stepz=3",
        "data.train_files=nowhere.json",
        "target=20",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "trainer.max_stepz=3: unknown key; did you mean trainer.max_steps?" in done.stderr
    assert "nowhere.json: there is no such file" in done.stderr
    assert set((ROOT / "log" / "atlas").rglob("*")) == before
