"""EasyR1's settings, and those that do less than they say: what is taken, what is warned of, and what it means."""

from types import SimpleNamespace

import pytest

from tests.training_kit import arguments
from verl.config.checks.inert import inert_settings
from verl.config.run import PPOConfig
from verl.trainer.dataset import RLHFDataset
from verl.trainer.preflight import read_config
from verl.trainer.ray_trainer import RayPPOTrainer
from verl.utils.tokenizer import get_tokenizer


def config(model, folder, *changes):
    return read_config(arguments(model, folder, "run", *changes))


GSPO = "worker.actor.loss_type=gspo"
NARROW = ["worker.actor.clip_ratio_low=3e-4", "worker.actor.clip_ratio_high=4e-4", "worker.actor.loss_avg_mode=seq"]
NO_KL = "has no effect; disable_kl=true trains without a reference"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["algorithm.kl_penalty=kl"], ["algorithm.kl_penalty=kl: as a loss its mean gradient is zero"]),
        (["algorithm.kl_penalty=kl+"], []),
        (["algorithm.kl_penalty=null"], []),
        (["algorithm.kl_penalty=kl", "algorithm.use_kl_loss=false"], []),
        (
            ["algorithm.disable_kl=true"],  # over a YAML with a KL loss, as EasyR1's launchers do
            [f"algorithm.{key}: {NO_KL}" for key in ("use_kl_loss=True", "kl_penalty=low_var_kl", "kl_coef=0.01")],
        ),
        (
            [GSPO],
            [
                "worker.actor.clip_ratio_low=0.2: is a clip range of single tokens",
                "worker.actor.clip_ratio_high=0.3: is a clip range of single tokens",
                "worker.actor.loss_avg_mode=token: weighs a sequence by its length",
            ],
        ),
        ([GSPO, *NARROW], []),
        ([f"{GSPO}_token", *NARROW], []),
        ([GSPO, *NARROW, "worker.actor.clip_ratio_dual=2"], ["worker.actor.clip_ratio_dual=2.0: has no effect"]),
        (
            ["algorithm.adv_estimator=gae", "worker.critic.global_batch_size=8", "trainer.critic_warmup=1"],
            ["trainer.critic_warmup=1: has no effect; the actor is trained from this step on"],
        ),
        (["algorithm.adv_estimator=gae", "worker.critic.global_batch_size=8", "trainer.critic_warmup=2"], []),
    ],
)
def test_settings_that_hardly_do_what_they_say_are_warned_of(tiny_model, tmp_path, changes, expected):
    shared = ["worker.ref.fsdp.mp_param_dtype=bf16"] if "algorithm.disable_kl=true" in changes else []
    found = [
        one for one in inert_settings(config(tiny_model, tmp_path, *changes, *shared)) if "worker.critic=" not in one
    ]
    assert len(found) == len(expected)
    assert all(one.startswith(start) for one, start in zip(found, expected, strict=True))


EASYR1 = ["algorithm.kl_penalty=low_var_kl", "worker.rollout.enable_chunked_prefill=false", "trainer.max_steps=null"]
EASYR1 += ["worker.actor.model.lora.exclude_modules=.*visual.*", "data.val_batch_size=1024", "data.image_dir=null"]
NO_REFERENCE = "algorithm.disable_kl=True"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["worker.actor.loss_type=cispo", "worker.actor.clip_ratio_low=0", "worker.actor.clip_ratio_high=4"],
        [NO_REFERENCE, "algorithm.online_filtering=True", "data.mini_rollout_batch_size=4"],
        [NO_REFERENCE, "worker.actor.loss_type=gspo_token", *NARROW],
        [NO_REFERENCE, "worker.actor.loss_type=sapo"],
        ["algorithm.adv_estimator=reinforce_plus_plus", "algorithm.use_kl_loss=false", "algorithm.kl_penalty=kl"],
        [NO_REFERENCE, "worker.actor.optim.lr_warmup_steps=10", "worker.actor.clip_ratio_dual=10.0"]
        + ['worker.rollout.val_override_config={"n":16,"temperature":1.0,"top_p":0.7}']
        + ["worker.actor.optim.strategy=adamw_bf16", "worker.actor.fsdp.torch_dtype=bf16"],
        ["worker.actor.optim.lr_warmup_ratio=0.05", "trainer.logger=['console']", "data.filter_overlong_prompts=false"],
        ["worker.actor.model.lora.rank=64", "worker.actor.optim.lr=1e-5"],
    ],
)
def test_what_easyr1s_launchers_say_is_taken(tiny_model, tmp_path, words):
    algorithm = config(tiny_model, tmp_path, *EASYR1, *words).algorithm
    assert algorithm.kl_in_loss == (NO_REFERENCE not in words and "algorithm.use_kl_loss=false" not in words)


def test_a_kl_that_is_not_named_is_one_whose_gradient_is_the_kls(tiny_model, tmp_path):
    unnamed = [word for word in arguments(tiny_model, tmp_path, "run") if "kl_penalty" not in word]
    in_loss, in_reward, none = (
        read_config([*unnamed, f"algorithm.{word}"])
        for word in ("use_kl_loss=true", "use_kl_loss=false", "disable_kl=true")
    )
    assert (in_loss.algorithm.kl_estimator, in_reward.algorithm.kl_estimator) == ("low_var_kl+", "kl")
    assert (in_loss.algorithm.kl_in_loss, in_reward.algorithm.kl_in_loss) == (True, False)
    assert (none.algorithm.kl_in_loss, none.use_reference, none.reference_pass) == (False, False, None)
    assert none.exactly_on_policy


@pytest.mark.parametrize(("warmup", "trained"), [(0, [1, 2, 3]), (1, [1, 2, 3]), (2, [2, 3]), (3, [3])])
def test_the_actor_is_trained_from_the_step_that_critic_warmup_names(
    tiny_model, tmp_path, monkeypatch, warmup, trained
):
    settings = config(tiny_model, tmp_path, f"trainer.critic_warmup={warmup}")
    tokenizer = get_tokenizer(str(tiny_model))
    rows = RLHFDataset(settings.data.train_files, tokenizer, answer_key="solution")
    trainer = RayPPOTrainer(settings, tokenizer, rows, None, total_steps=3)
    trainer.experience = SimpleNamespace(collect=lambda *a: [0], add_rewards=lambda *a: None, handed_over={})
    trainer.workers, seen = SimpleNamespace(world_size=1), []
    for name in ("balance_dataproto", "batch_metrics", "Timer.metrics"):
        monkeypatch.setattr(f"verl.trainer.ray_trainer.{name}", lambda *a, **k: {})
    for name in ("_on_ranks", "_add_advantages", "_work_done"):
        monkeypatch.setattr(trainer, name, lambda *a: {})
    monkeypatch.setattr(trainer, "_update_actor", lambda *a: seen.append(trainer.step))
    monkeypatch.setattr(PPOConfig, "reference_pass", None)
    for trainer.step in (1, 2, 3):
        trainer.train_step()
    assert seen == trained
