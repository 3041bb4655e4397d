"""Fixtures of the integration tests: Atlas with its pretrained model, and one Ray for all runs in this process."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training_kit import ROOT, environment


@pytest.fixture(scope="session")
def atlas() -> Path:
    """A quickly made Atlas, built where it is not there yet (half a minute, or two)."""
    subprocess.run([sys.executable, "data/atlas/pretrain.py", "epochs=3"], cwd=ROOT, env=environment(), check=True)
    return ROOT / "data" / "atlas" / "build" / "seed0_epochs3"


@pytest.fixture(scope="session")
def atlas_target(atlas) -> Path:
    """The folder of Atlas target 1."""
    return next((atlas / "Target").glob("1_*"))


@pytest.fixture(scope="session")
def atlas_rs_model(atlas, atlas_target, tmp_path_factory) -> Path:
    """The Atlas model after Rejection Steering on target 1."""
    out = tmp_path_factory.mktemp("rs")
    words = [f"model={atlas / 'base'}", f"data={atlas_target / 'reject_target.json'}", f"output_dir={out}"]
    command = [sys.executable, "RS/train.py", "config=RS/configs/atlas.yaml", *words]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True)
    return out / "epoch_3"


@pytest.fixture(scope="session")
def ray_session():
    """Ray in this process, for tests that build trainers themselves."""
    import ray

    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        address="local",
        num_cpus=4,  # two ranks and two reward processes
        include_dashboard=False,
        object_store_memory=300 * 2**20,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
