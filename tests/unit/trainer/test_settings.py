"""Settings of a run that cannot be, and the environment: each is named with its value, the rule and the fix."""

import os
import re

import pytest

from tests.unit.trainer.test_dataset import config, dataset
from verl.estimate.dry_run import describe
from verl.trainer.data_loader import PromptLoader
from verl.utils.environment import set_defaults, whole_variable
from verl.utils.errors import ConfigError


def test_how_validation_samples_is_checked_like_the_rest(tiny_model, tmp_path):
    key = "worker.rollout.val_override_config"
    wrong = {
        f"{key}.temprature=0.5": f"{key}.temprature=0.5: unknown key; did you mean {key}.temperature?",
        f"{key}.n=0": f"{key}.n=0: must be greater than 0",
        f"{key}.n=half": f"{key}.n='half': must be a whole number",
        f"{key}={{temperature: -1}}": f"{key}.temperature=-1.0: must be 0 (greedy) or greater",
        f"{key}={{top_p: 0}}": f"{key}.top_p=0.0: must lie in (0, 1]",
        f"{key}.top_k=0": f"{key}.top_k=0: must be -1 (all tokens) or at least 1",
        f"{key}=greedy": f"{key}='greedy': must be a section with keys",
    }
    for word, message in wrong.items():
        with pytest.raises(ConfigError, match=re.escape(message)):
            config(tiny_model, tmp_path, word)
    settings = config(tiny_model, tmp_path, f"{key}={{temperature: 0, n: 2}}", "worker.rollout.top_p=0.5")
    sampling = [settings.val_rollout(name) for name in ("n", "temperature", "top_p", "top_k")]
    assert sampling == [2, 0.0, 0.5, -1]


@pytest.mark.parametrize("name", ["WANDB_MODE", "VLLM_CPU_KVCACHE_SPACE", "WORLD_SIZE"])
def test_an_empty_environment_variable_counts_as_not_set(tiny_model, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "")
    settings = config(tiny_model, tmp_path, "trainer.logger=[console,wandb]")
    assert describe(settings, [{"prompt": "p"}])[-1].startswith("seconds of a step")
    assert whole_variable(name, 3) == 3
    set_defaults(**{name: "x"})
    assert os.environ[name] == "x"
    set_defaults(**{name: "y"})
    assert os.environ[name] == "x"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WANDB_MODE", "onlin", "WANDB_MODE=onlin must be one of online, offline"),
        ("VLLM_CPU_KVCACHE_SPACE", "1.5", "VLLM_CPU_KVCACHE_SPACE=1.5: must be a whole number; unset this"),
    ],
)
def test_an_environment_variable_that_cannot_be_is_named(tiny_model, tmp_path, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        config(tiny_model, tmp_path, "trainer.logger=[console,wandb]")


@pytest.mark.parametrize("seed", [-1, 2**43])
def test_seeds_leave_room_for_epochs_and_steps(tiny_model, tmp_path, seed):
    with pytest.raises(ConfigError, match=f"data.seed={seed}: must lie in"):
        config(tiny_model, tmp_path, f"data.seed={seed}")
    rows = dataset(tiny_model, tmp_path)
    assert len(PromptLoader(rows, shuffle=True, seed=2**43 - 1).next(8)) == 8


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("worker.actor.optim.weight_decay=-1", "worker.actor.optim.weight_decay=-1.0: must be 0 or greater"),
        ("worker.actor.optim.lr_warmup_steps=-1", "worker.actor.optim.lr_warmup_steps=-1: must be 0 or greater"),
        ("trainer.val_generations_to_log=-1", "trainer.val_generations_to_log=-1: must be 0 or greater"),
        ("worker.reward.num_cpus=1e9", "num_cpus=1000000000: each is a process; set at most 1024"),
        ("trainer.n_gpus_per_node=4096", "n_gpus_per_node=4096: each is a process; set at most 1024"),
        ("algorithm.replay.ratio=1e300", "algorithm.replay.ratio=1e+300: must lie in [0, 1000]; 0 is off"),
        ("worker.reward.reward_function=rows.json:f", "rows.json is no Python file; give path.py:function"),
        ("data.max_prompt_length=600", "the model has 512; set data.max_prompt_length below 512"),
        ("trainer.run_dir=rows.json/run", "trainer.run_dir=rows.json/run: rows.json is a file; give a folder"),
        ("trainer.ray_timeline=rows.json/t", "trainer.ray_timeline=rows.json: rows.json is a file; give a folder"),
        (f"trainer.experiment_name={'x' * 300} trainer.run_dir=null", "must be a path, of at most 4095 bytes and 255"),
    ],
)
def test_numbers_and_places_that_cannot_be(tiny_model, tmp_path, monkeypatch, word, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(message)):
        config(tiny_model, tmp_path, *word.split(" "))
