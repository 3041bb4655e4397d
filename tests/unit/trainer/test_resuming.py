"""Going on with other settings: what may change acts, what the checkpoint is bound to is refused, and both are said."""

import json
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from tests.training_kit import arguments
from verl.config.run import PPOConfig
from verl.config.worker import OptimConfig
from verl.models.checkpointing import load_role, save_training_state
from verl.models.optim import build_optimizer, build_scheduler
from verl.rows.sources import read_rows
from verl.settings.reader import to_dict
from verl.trainer import ray_trainer
from verl.trainer.main import main
from verl.trainer.preflight import read_config
from verl.trainer.ray_trainer import RayPPOTrainer
from verl.trainer.resuming import FIXED, changed_settings, check_steps_left, contents, resume_problems
from verl.utils.checkpoint import staging_dir
from verl.utils.errors import ConfigError

BEST = {"best_global_step": 2, "best_val_reward_score": 0.5}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def loaded(tiny_model, files) -> PPOConfig:
    return read_config(arguments(tiny_model, files, "run"))


@pytest.fixture
def config(loaded, tmp_path) -> PPOConfig:
    return changed(loaded, "trainer.run_dir", str(tmp_path / "run"))


def changed(config: Any, key: str, value: Any) -> Any:
    """``config`` with another value of the setting ``key``."""
    section, _, rest = key.partition(".")
    return replace(config, **{section: changed(getattr(config, section), rest, value) if rest else value})


def checkpoint_of(run: PPOConfig, **entries: Any) -> Path:
    """What a run leaves after step 4, without its weights; ``entries`` of the state may be others."""
    folder = run.trainer.checkpoint_folder / "global_step_4"
    state = {
        "step": 4,
        "loader": {"epoch": 1, "position": 8, "prompts": 24, "seed": 1},
        "kl": {"kl_coef": 0.3},
        "best": BEST,
        "reward_errors": 0,
        "config": to_dict(run),
        "contents": contents(run, read_rows(run.data.train_files)),
    }
    with staging_dir(folder) as partial:
        (partial / "actor" / "dcp").mkdir(parents=True)
        (partial / "trainer_state.json").write_text(json.dumps(state | entries))
    return folder


MAY_CHANGE = {
    "data.val_files": "",
    "worker.actor.optim.lr": 2e-3,
    "worker.actor.optim.weight_decay": 0.5,
    "worker.actor.optim.betas": [0.8, 0.9],
    "worker.actor.optim.lr_scheduler_type": "cosine",
    "worker.actor.optim.lr_warmup_steps": 3,
    "worker.actor.clip_ratio_high": 0.4,
    "worker.actor.micro_batch_size_per_device_for_update": 2,
    "worker.actor.dynamic_batching": False,
    "worker.actor.offload.offload_params": True,
    "worker.actor.model.lora.alpha": 8,  # there are no adapters
    "worker.critic.global_batch_size": 4,  # there is no critic
    "worker.rollout.temperature": 0.7,
    "worker.rollout.gpu_memory_utilization": 0.5,
    "worker.reward.num_cpus": 2,
    "algorithm.kl_coef": 0.1,
    "algorithm.kl_type": "adaptive",
    "algorithm.adv_estimator": "rloo",
    "algorithm.retain_loss": "klr",
    "algorithm.retain_coef": 0.5,
    "trainer.n_gpus_per_node": 1,
    "trainer.max_steps": 9,
    "trainer.save_freq": 1,
    "trainer.logger": ["console", "tensorboard"],
}
MUST_NOT = {
    "data.seed": 7,
    "data.shuffle": False,
    "data.rollout_batch_size": 16,
    "data.max_prompt_length": 63,
    "data.max_response_length": 15,
    "data.prompt_key": "question",
    "data.extra_prompt": "Listen.",
    "data.chat_template_kwargs": {"enable_thinking": False},
    "worker.rollout.n": 2,
    "worker.rollout.seed": 7,
    "worker.actor.global_batch_size": 4,
    "worker.actor.ppo_epochs": 2,
    "worker.actor.model.model_path": "other/model",
    "worker.actor.model.tokenizer_path": "other/model",
    "worker.actor.model.lora.rank": 8,
    "worker.actor.optim.strategy": "adamw_bf16",
    "worker.ref.model.model_path": "other/model",
}


def test_what_may_change_is_said_and_not_refused(config):
    folder, prefix = (
        checkpoint_of(config),
        f"going on from {config.trainer.checkpoint_folder}/global_step_4 with another ",
    )
    assert changed_settings(config) == [] == resume_problems(config, readable=True)
    other = config
    for key, value in MAY_CHANGE.items():
        other = changed(other, key, value)
    assert resume_problems(other, readable=True) == []
    lines = changed_settings(changed(other, "trainer.load_checkpoint_path", str(folder)))
    assert all(line.startswith(prefix) for line in lines)
    assert {line[len(prefix) :].split(":")[0] for line in lines} == MAY_CHANGE.keys()
    assert f"{prefix}worker.actor.optim.lr: 0.001 -> 0.002" in lines
    assert f"{prefix}worker.actor.optim.betas: [0.9, 0.999] -> [0.8, 0.9]" in lines


@pytest.mark.parametrize("key", MUST_NOT)
def test_what_must_not_change_is_refused_with_the_reason(key, config):
    folder, value = checkpoint_of(config), MUST_NOT[key]
    [problem] = resume_problems(changed(config, key, value), readable=True)
    reason = next(reason for fixed, reason in FIXED.items() if f"{key}.".startswith(f"{fixed}."))
    before = attrgetter(key)(config)
    assert problem.startswith(f"{key}={value}: it was {before} in the run that {folder} goes on, and {reason}; set it ")
    assert problem.endswith(f"worker.actor.model.model_path={folder}/actor/huggingface")


def test_every_fixed_setting_is_one(config):
    assert [key for key in FIXED if attrgetter(key)(config) is config] == []


def test_a_model_under_another_spelling_of_its_path_is_the_same(config, tiny_model, monkeypatch):
    checkpoint_of(config)
    monkeypatch.chdir(tiny_model.parent)
    assert resume_problems(changed(config, "worker.actor.model.model_path", "./model"), readable=True) == []


@pytest.mark.parametrize(("key", "name"), [("train_files", "rows.json"), ("format_prompt", "prompt.jinja")])
def test_the_data_are_known_by_their_content(key, name, config, files, tmp_path):
    (tmp_path / "prompt.jinja").write_text("{{ content }}")
    (tmp_path / "rows.json").write_text((files / "rows.json").read_text())
    config = changed(config, "data.format_prompt", str(tmp_path / "prompt.jinja"))
    config = changed(config, "data.train_files", str(tmp_path / "rows.json"))
    folder, path = checkpoint_of(config), tmp_path / name
    moved = path.rename(tmp_path / f"moved_{name}")
    assert resume_problems(changed(config, f"data.{key}", str(moved)), readable=True) == []
    path.write_text(moved.read_text().replace("Who wrote book 7?", "Who wrote it?").replace("{{", "Answer: {{"))
    [problem] = resume_problems(config, readable=True)
    assert problem.startswith(f"data.{key}={path}: its content is not what it was in the run that {folder} goes on, ")
    assert resume_problems(config, readable=False) == []  # what cannot be read has been reported


def test_the_command_line_says_what_differs_and_refuses_in_a_dry_run_too(config, tiny_model, files, caplog, capsys):
    folder = checkpoint_of(config)
    words = [*arguments(tiny_model, files, "run"), f"trainer.run_dir={config.trainer.run_dir}", "trainer.dry_run=true"]
    with caplog.at_level("INFO"):
        assert main([*words, "worker.actor.optim.lr=5e-4", "trainer.max_steps=4"]) == 0
    assert f"going on from {folder} with another worker.actor.optim.lr: 0.001 -> 0.0005" in caplog.messages
    assert main([*words, "data.seed=2"]) == 2
    assert "data.seed=2: it was 1 in the run that" in capsys.readouterr().err
    assert main([*words, "trainer.max_steps=3"]) == 2
    assert f"trainer.max_steps=3: means 3 steps, and {folder} is at step 4; set at least 4" in capsys.readouterr().err


def test_steps_by_epochs_may_end_before_the_checkpoint_too(config):
    checkpoint_of(config)
    config = changed(changed(config, "trainer.max_steps", None), "trainer.total_epochs", 1)
    with pytest.raises(ConfigError, match="total_epochs=1: means 3 steps, and .* is at step 4; set at least 4"):
        check_steps_left(config, 3)
    check_steps_left(config, 4)
    check_steps_left(changed(config, "trainer.val_only", True), 3)


def test_checkpoints_of_earlier_versions_go_on(config):
    """Without a configuration, with a part of it, and with settings that have gone."""
    checkpoint_of(config, config={}, contents={})
    assert resume_problems(changed(config, "data.seed", 7), readable=True) == []
    checkpoint_of(config, config={"data": {"seed": 1, "gone": 3}}, contents={"data.gone": "x"})
    assert changed_settings(config) == [] == resume_problems(config, readable=True)
    assert len(resume_problems(changed(config, "data.seed", 7), readable=True)) == 1


def test_what_a_checkpoint_lacks_is_named(config):
    folder = checkpoint_of(config)
    critic = changed(config, "algorithm.adv_estimator", "gae")
    [problem] = resume_problems(critic, readable=True)
    assert problem.startswith(f"algorithm.adv_estimator=gae: {folder} has no critic to go on with; ")
    replay = changed(config, "algorithm.replay.ratio", 1.0)
    assert resume_problems(replay, readable=True) == []
    save_file({"responses": torch.zeros(1, 1)}, folder / "replay.safetensors")  # of a run without a reference
    [problem] = resume_problems(replay, readable=True)
    assert problem.startswith("algorithm.replay.ratio=1.0: the groups stored in")
    save_file({name: torch.zeros(1, 1) for name in ("responses", "ref_log_probs")}, folder / "replay.safetensors")
    assert resume_problems(replay, readable=True) == []


@pytest.fixture
def trainer_of(monkeypatch):
    """A trainer whose ranks, prompts and loggers do nothing; what is logged lands in its ``logged``."""
    monkeypatch.setattr(ray_trainer, "stop_token_ids", lambda *_: [2])

    def build(config: PPOConfig, total_steps: int = 9) -> RayPPOTrainer:
        monkeypatch.setattr(ray_trainer, "PromptLoader", lambda *_, **__: SimpleNamespace(load_state_dict=len))
        trainer = RayPPOTrainer(config, None, SimpleNamespace(rows=[]), [{}], total_steps=total_steps)
        trainer.workers, trainer.experience = SimpleNamespace(all=lambda *_: None), SimpleNamespace()
        trainer.logged = []
        trainer.tracker = SimpleNamespace(log=lambda metrics, step: trainer.logged.append(step))
        monkeypatch.setattr(trainer, "validate", lambda: {"val/reward/overall": 1.0})
        trainer._resume()
        return trainer

    return build


def test_a_finished_run_that_goes_further_is_not_done(config, trainer_of):
    done = checkpoint_of(config).parents[1] / "DONE"
    done.write_text("4\n")
    trainer_of(config, 4).fit()
    assert done.read_text() == "4\n"  # nothing was left to train
    with pytest.raises(AttributeError):  # in a step, for want of ranks
        trainer_of(config, 5).fit()
    assert not done.exists()


def test_a_checkpoint_can_be_validated_only(config, trainer_of):
    done = checkpoint_of(config).parents[1] / "DONE"
    done.write_text("4\n")
    trainer = trainer_of(changed(config, "trainer.val_only", True))
    trainer.fit()
    assert trainer.logged == [4] and done.exists()


@pytest.mark.parametrize(
    ("key", "value", "coefficient", "best"),
    [
        ("trainer.save_freq", 1, 0.3, BEST),
        ("algorithm.kl_coef", 0.2, 0.2, BEST),
        ("algorithm.kl_target", 0.5, 0.3, BEST),
        ("algorithm.kl_type", "fixed", 0.01, BEST),
        ("trainer.best_key", "val/reward/refusal", 0.3, {}),
        ("worker.reward.reward_function_kwargs", {"letter": "a"}, 0.3, {}),
    ],
)
def test_the_coefficient_and_the_best_step_come_back_unless_their_settings_changed(
    key, value, coefficient, best, config, trainer_of
):
    config = changed(config, "algorithm.kl_type", "adaptive")
    checkpoint_of(config)
    trainer = trainer_of(changed(config, key, value))
    assert (trainer.step, trainer.kl.kl_coef, trainer.best) == (4, coefficient, best)


class Role:
    """A line with its optimiser and its schedule over ten steps, as a worker has them."""

    def __init__(self, **settings: Any) -> None:
        torch.manual_seed(0)
        self.module = torch.nn.Linear(4, 1).to(torch.bfloat16 if "strategy" in settings else torch.float32)
        config = OptimConfig(**{"lr": 0.1, "lr_scheduler_type": "cosine"} | settings)
        optimizer = build_optimizer(self.module, config)
        scheduler = build_scheduler(optimizer, config, 10)
        self.stepper = SimpleNamespace(module=self.module, optimizer=optimizer, scheduler=scheduler, skipped=0)

    def train(self, steps: int) -> list[torch.Tensor]:
        for step in range(steps):
            for param in self.module.parameters():
                param.grad = param.detach() * (step + 1)
            self.stepper.optimizer.step()
            self.stepper.scheduler.step()
        return [param.detach().clone() for param in self.module.parameters()]


@pytest.fixture
def saved(tmp_path):
    """Saves the role given to it after four steps, under a process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def save(role: Role) -> Path:
        role.train(4)
        save_training_state(role.stepper, tmp_path / "dcp")
        return tmp_path

    yield save
    dist.destroy_process_group()


@pytest.mark.parametrize("settings", [{}, {"strategy": "adamw_bf16", "betas": [0.9, 0.99]}])
def test_an_optimiser_with_the_same_settings_goes_on_bit_for_bit(settings, saved):
    role, other = Role(**settings), Role(**settings)
    load_role(other, saved(role))
    assert all(map(torch.equal, role.train(3), other.train(3)))
    assert role.stepper.scheduler.get_last_lr() == other.stepper.scheduler.get_last_lr()


def test_an_optimiser_s_settings_are_those_of_now_and_its_moments_those_of_before(saved):
    role, other = Role(), Role(lr=0.5, weight_decay=0.3, betas=[0.5, 0.6], min_lr_ratio=0.1, lr_warmup_steps=8)
    folder = saved(role)
    load_role(other, folder)
    [group] = other.stepper.optimizer.param_groups
    assert group["lr"] == other.stepper.scheduler.get_last_lr()[0] == 0.5 * 4 / 8  # the new warm-up after four steps
    assert (group["weight_decay"], group["betas"]) == (0.3, (0.5, 0.6))
    states = (one.stepper.optimizer.state[one.module.weight] for one in (role, other))
    for before, now in zip(*(state.items() for state in states), strict=True):
        assert before[0] == now[0] and torch.equal(before[1], now[1])
    other.stepper.scheduler.step()
    assert other.stepper.scheduler.get_last_lr() == [0.5 * 5 / 8]


def test_moments_are_kept_in_the_types_that_the_betas_of_now_need(saved):
    """bf16 holds an average of beta 0.9, and never moves one of beta 0.999."""
    other = Role(strategy="adamw_bf16", betas=[0.99, 0.9])
    load_role(other, saved(Role(strategy="adamw_bf16", betas=[0.9, 0.999])))
    state = other.stepper.optimizer.state[other.module.weight]
    assert (state["exp_avg"].dtype, state["exp_avg_sq"].dtype) == (torch.float32, torch.bfloat16)
    assert state["exp_avg"].any() and state["step"] == 4
