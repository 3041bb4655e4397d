"""Fixtures of the integration tests: Atlas with its pretrained model, and one Ray for all runs in this process."""

import logging
import os
from pathlib import Path

import pytest

from data.atlas.pretrain import main as make_atlas
from RS.train import main as train_rs
from tests.conftest import ROOT


@pytest.fixture(scope="session")
def atlas() -> Path:
    """A quickly made Atlas, built where it is not there yet (half a minute, or two)."""
    assert make_atlas(["epochs=3"]) == 0
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
    assert train_rs([f"config={ROOT / 'RS/configs/atlas.yaml'}", *words]) == 0
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
