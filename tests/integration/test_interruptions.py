"""Runs that are stopped or killed: nothing stays behind, and the resumed run equals an undisturbed one bit for bit."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.training_kit import arguments, close, descendants, metrics_of, start_cli, train, wait_for
from verl.utils.checkpoint import CHECKPOINT_TRACKER, PARTIAL
from verl.utils.logger import read_metrics
from verl.utils.orphans import GRACE_S

STEPS = ("trainer.max_steps=6", "trainer.save_freq=2", "trainer.save_limit=2", "trainer.val_freq=2")
STEPS += ("trainer.val_generations_to_log=4",)
WEIGHTS = "checkpoints/global_step_6/actor/huggingface/model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("interruptions")


@pytest.fixture(scope="module")
def undisturbed(ray_session, folder, tiny_model):
    train(*arguments(tiny_model, folder, "undisturbed", *STEPS))
    return folder / "undisturbed"


def assert_gone(processes, seconds=15):
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    alive = [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
    for one in alive:
        one.kill()
    assert not alive, f"still there after {seconds} s: {alive}"


def is_rank(process):
    return "FSDPWorker" in " ".join(process.cmdline())


def stop(process, number):
    """A signal that asks it to end: within 15 s every process has gone."""
    started = descendants(process.pid)
    assert sum(map(is_rank, started)) == 2
    begun = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=15) == 128 + number
    assert_gone(started, 15 - (time.monotonic() - begun))


def kill_driver(process):
    """SIGKILL: within 15 s nothing of the run is left, and the Ray of this process, beside it, has lost nothing."""
    started = descendants(process.pid)
    beside = [one for one in descendants(os.getpid()) if one not in started and one.pid != process.pid]
    assert any(one.name() == "raylet" for one in beside) and sum(map(is_rank, started)) == 2
    process.kill()
    process.wait()
    assert_gone(started)
    assert all(one.is_running() for one in beside)


def kill_worker(process):
    """SIGKILL of one rank: the run ends by itself and leaves nothing."""
    started = descendants(process.pid)
    [_, rank] = [one for one in started if is_rank(one)]
    rank.kill()
    assert process.wait(timeout=60) == 1
    assert_gone(started)


def test_a_run_that_was_ended_in_every_way_finishes_as_if_nothing_had_happened(folder, tiny_model, undisturbed):
    argv, run = arguments(tiny_model, folder, "disturbed", *STEPS), folder / "disturbed"
    checkpoints, starts = run / "checkpoints", []

    def start_and_wait_for(condition):
        starts.append(folder / f"start{len(starts)}.log")
        process = start_cli(argv, starts[-1])
        wait_for(condition, process, starts[-1])
        return process

    def step_logged(number):
        return lambda: re.search(rf"step +{number} ", starts[-1].read_text())

    def saving_step_4():
        return step_logged(3)() and (checkpoints / f"global_step_4{PARTIAL}").exists()

    kill_driver(start_and_wait_for(saving_step_4))
    assert not (checkpoints / "global_step_4").exists()
    stop(start_and_wait_for(step_logged(3)), signal.SIGINT)
    assert "going on from" in starts[-1].read_text()
    kill_worker(start_and_wait_for(step_logged(5)))
    assert re.search("rank [01] died in", starts[-1].read_text())
    train(*argv)

    assert metrics_of(run) == metrics_of(undisturbed)
    weights, expected = load_file(run / WEIGHTS), load_file(undisturbed / WEIGHTS)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


DRIVER = """
import os, subprocess, sys, time
from verl.utils.orphans import end_with_parent, watch

def sleep(**options):
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], **options).pid

watch()
if os.fork() == 0:  # a process of a pool, as it were, that has started a daemon
    sleep(start_new_session=True)
    time.sleep(600)
bound = os.fork()
if not bound:
    end_with_parent()
    time.sleep(600)
print(bound, flush=True)
time.sleep(600)
"""


def test_a_driver_that_is_killed_takes_forks_and_daemons_with_it_and_nobody_else():
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "text": True}
    drivers = [subprocess.Popen([sys.executable, "-c", DRIVER], **options) for _ in range(2)]
    bound, _ = [psutil.Process(int(driver.stdout.readline())) for driver in drivers]
    time.sleep(2)  # for the watchers' looks
    ours, others = (descendants(driver.pid) for driver in drivers)
    assert len(ours) == len(others) == 4  # the watcher, two forks, a daemon
    drivers[0].kill()
    drivers[0].wait()
    assert_gone([bound], GRACE_S - 1)  # by itself
    assert_gone(ours)
    assert all(one.is_running() for one in others)
    for one in [*others, drivers[1]]:
        one.kill()


def test_two_ranks_resumed_on_one_go_on_alike(ray_session, folder, tiny_model, undisturbed):
    """One rank samples and learns what two do."""
    middle = folder / "middle"
    shutil.copytree(undisturbed / "checkpoints" / "global_step_4", middle / "global_step_4")
    changes = (f"trainer.load_checkpoint_path={middle / 'global_step_4'}", "trainer.n_gpus_per_node=1")
    changes += ("data.val_batch_size=7", "worker.actor.fsdp.enable_rank0_init=false")
    train(*arguments(tiny_model, folder, "one", *STEPS, *changes))
    rows = metrics_of(folder / "one")
    assert [row["step"] for row in rows] == [5, 6]
    close(rows, metrics_of(undisturbed)[4:], 1e-4)
    assert [row["perf/weight_syncs"] for row in read_metrics(folder / "one")] == [1, 2]  # validation in four batches
    texts = [(run / "dialogues/step_6.jsonl").read_text() for run in (folder / "one", undisturbed)]
    assert texts[0] == texts[1]
    tracker = json.loads((folder / "one" / "checkpoints" / CHECKPOINT_TRACKER).read_text())
    assert tracker["best_global_step"] == 6  # of this run, whose folder has no other
