"""run_rwku.sh on the real stack with a tiny model: a target as RWKU and RULE published it, behind a broken one.

And run_demo.sh where it is given a wrong word.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from data.atlas.people import build_world
from data.atlas.world import write_world
from data.prepare_rwku import RL_FILE, RS_FILE, VAL_FILE, PrepareConfig, prepare
from tests.conftest import ROOT

SMALL = ["trainer.max_steps=2", "trainer.val_freq=1", "trainer.save_freq=1", "data.rollout_batch_size=4"]
SMALL += ["worker.actor.global_batch_size=4", "worker.rollout.n=2", "data.max_prompt_length=160"]
SETTINGS = {
    "CONFIG": "examples/grpo_rj_rl.yaml,examples/atlas.yaml",
    "RS_CONFIG": "RS/configs/atlas.yaml",
    "RS_EPOCH": "1",
    "RS_ARGS": "num_train_epochs=1",
    "EVAL_ARGS": "bootstrap_samples=20",
    "TARGETS": "0 1",
    "GPUS": "1",
}
ROWS_A_FILE = 4
RWKU_PARTS = {"forget", "neighbor", "mia", "memorization", "mmlu", "bbh", "truthfulqa", "triviaqa", "fluency"}

REWARD_FILE = """
REWARD_TYPE = "batch"

def compute_score(reward_inputs, preset):
    return [{"overall": min(1.0, one["response"].count("e") / 4)} for one in reward_inputs]
"""
"""A reward that a random model earns now and then, so that ReBO moves the weights."""


@pytest.fixture
def targets(request, tmp_path) -> tuple[Path, Path]:
    """Folders of a published target, or of one of Atlas' where there is none, and of one whose RS file is broken.

    Of what is trained on or asked, the first rows are left: a published target is a million characters a model.
    """
    folder = tmp_path / "Target"
    try:
        source = next((request.getfixturevalue("shared_data") / "RWKU" / "Target").glob("1_*"))
    except pytest.skip.Exception:
        write_world(build_world(3), tmp_path)
    else:
        prepare(PrepareConfig(str(source), out=str(tmp_path)))
        rows = {name: len(json.loads((folder / source.name / name).read_text())) for name in (RL_FILE, VAL_FILE)}
        assert (sum(rows.values()), rows[VAL_FILE]) == (1200, 120)
    [good] = folder.glob("1_*")
    for path in good.glob("*.json"):
        content = json.loads(path.read_text())
        if isinstance(content, list):
            path.write_text(json.dumps(content[: 40 if path.name in (RS_FILE, RL_FILE) else ROWS_A_FILE]))
    broken = shutil.copytree(good, folder / "0_Nobody")
    (broken / RS_FILE).write_text("[")
    return good, broken


def test_a_published_target_from_its_folder_to_the_tables_behind_a_broken_one(tmp_path, targets, long_tiny_model):
    """Preparation, RS, two steps of ReBO, every part of RWKU for three models in one process, both tables."""
    good, broken = targets
    (tmp_path / "reward.py").write_text(REWARD_FILE)
    places = {"LOG_ROOT": f"{tmp_path}/log", "RS_ROOT": f"{tmp_path}/log/rs", "RESULTS": f"{tmp_path}/results"}
    reward = f"worker.reward.reward_function={tmp_path}/reward.py:compute_score"
    environment = os.environ | SETTINGS | places | {"MODEL": str(long_tiny_model), "DATA": str(good.parent)}
    command = ["bash", str(ROOT / "run_rwku.sh"), reward, *SMALL]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"== finished: 1 ({good.name})" in done.stdout
    [log] = re.findall(rf"FAILED: {broken.name}: rs failed, (\S+)", done.stdout)
    assert "is not valid JSON" in Path(log).read_text()

    folders = [tmp_path / "results" / row / good.name for row in ("base", "rs", "grpo_rj_rl")]
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    assert all(set(document["parts"]) == RWKU_PARTS for document in results)
    assert len({document["model"]["weights_sha256"] for document in results}) == 3
    assert results[-1]["selection"]["chosen_on_validation"] is True
    for kind, published in (("rule", "ReBO-GRPO"), ("rwku", "RT (full)")):
        table = (tmp_path / f"results/tables/grpo_rj_rl_{kind}/table.md").read_text()
        rows = [line.split("|")[1].strip() for line in table.split("\n") if line.startswith("| ")]
        assert {"Original", "RS", "ReBO", f"{published} (published)"} <= set(rows), table
    stages = [tmp_path / "log/rs" / good.name, tmp_path / "log/grpo_rj_rl" / good.name, *folders]
    assert all((folder / "DONE").is_file() for folder in stages)  # a second launch leaves them alone


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
