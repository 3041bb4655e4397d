"""Runs that are stopped or killed: nothing stays behind, and the resumed run equals the unkilled one bit for bit."""

import json
import os
import signal
import time
from contextlib import suppress

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.training_kit import arguments, descendants, metrics_of, run_cli, start_cli, steps_logged, wait_for

STEPS = ("trainer.max_steps=6", "trainer.save_freq=2", "trainer.save_limit=2", "trainer.val_freq=2")
WEIGHTS = "checkpoints/global_step_6/actor/huggingface/model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("interruptions")


@pytest.fixture(scope="module")
def unkilled(folder, tiny_model):
    run_cli(arguments(tiny_model, folder, "unkilled", *STEPS))
    return folder / "unkilled"


def assert_gone(processes, seconds=15):
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    alive = [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
    for one in alive:
        one.kill()
    assert not alive, f"still there after {seconds} s: {alive}"


def kill(process):
    """SIGKILL the driver: our ranks must go; Ray's own agents can outlive it, so they are cleared away here."""
    started = descendants(process.pid)
    ranks = [one for one in started if is_rank(one)]
    process.kill()
    process.wait()
    assert_gone(ranks)
    for one in started:
        with suppress(psutil.NoSuchProcess):
            one.kill()


def is_rank(process):
    return "FSDPWorker" in " ".join(process.cmdline())


def assert_same_run(run, unkilled):
    assert metrics_of(run) == metrics_of(unkilled)
    weights, expected = load_file(run / WEIGHTS), load_file(unkilled / WEIGHTS)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


def test_a_driver_killed_between_steps_resumes_as_if_nothing_had_happened(folder, tiny_model, unkilled):
    argv, run = arguments(tiny_model, folder, "driver", *STEPS), folder / "driver"
    process = start_cli(argv, folder / "driver.log")
    wait_for(lambda: steps_logged(run) >= 3, process, folder / "driver.log")
    kill(process)
    output = run_cli(argv)
    assert "going on from" in output
    assert_same_run(run, unkilled)


def test_a_driver_killed_while_saving_resumes_from_the_checkpoint_before(folder, tiny_model, unkilled):
    argv, run = arguments(tiny_model, folder, "saving", *STEPS), folder / "saving"
    process = start_cli(argv, folder / "saving.log")
    checkpoints = run / "checkpoints"

    def saving():
        return steps_logged(run) >= 3 and any("global_step_4" in path.name for path in checkpoints.iterdir())

    wait_for(saving, process, folder / "saving.log")
    kill(process)
    assert not (checkpoints / "global_step_4").exists()
    run_cli(argv)
    assert_same_run(run, unkilled)


def test_a_killed_worker_ends_the_run_with_its_rank_and_the_run_resumes_on_one_rank(folder, tiny_model, unkilled):
    argv, run = arguments(tiny_model, folder, "worker", *STEPS), folder / "worker"
    log = folder / "worker.log"
    process = start_cli(argv, log)
    wait_for(lambda: steps_logged(run) >= 3, process, log)
    started = descendants(process.pid)
    workers = [one for one in started if is_rank(one)]
    assert len(workers) == 2
    workers[1].kill()
    assert process.wait(timeout=60) == 1
    assert_gone(started)
    assert "died in" in log.read_text()
    tracker = json.loads((run / "checkpoints" / "checkpoint_tracker.json").read_text())
    assert tracker["last_global_step"] in (2, 4)
    run_cli([*argv, "trainer.n_gpus_per_node=1"])
    rows, expected = metrics_of(run), metrics_of(unkilled)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    assert rows[-1]["reward/overall"] == pytest.approx(expected[-1]["reward/overall"], rel=1e-3)
    assert rows[-1]["actor/grad_norm"] == pytest.approx(expected[-1]["actor/grad_norm"], rel=1e-3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_process_within_15_seconds(folder, tiny_model, number):
    name = number.name.lower()
    process = start_cli(arguments(tiny_model, folder, name, "trainer.max_steps=1000"), folder / f"{name}.log")
    wait_for(lambda: steps_logged(folder / name) >= 2, process, folder / f"{name}.log")
    started = descendants(process.pid)
    assert any(is_rank(one) for one in started)
    begun = time.monotonic()
    os.kill(process.pid, number)
    process.wait(timeout=15)
    assert process.returncode != 0
    assert_gone(started, 15 - (time.monotonic() - begun))
