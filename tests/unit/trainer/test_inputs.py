"""What a run is given: settings, files and rows. Everything that is wrong is said at once, and nothing is started."""

import json
from types import SimpleNamespace

import pytest

from tests.training_kit import arguments
from tests.unit.trainer.test_dataset import config, dataset
from verl.config.checks.inert import inert_settings
from verl.config.run import PPOConfig, migrate
from verl.rows.sources import read_rows
from verl.settings.reader import word_problems
from verl.trainer.experience import TrainingError
from verl.trainer.main import main
from verl.trainer.preflight import make_plan, read_config
from verl.trainer.ray_trainer import RayPPOTrainer
from verl.trainer.resuming import resume_folder
from verl.utils.checkpoint import staging_dir
from verl.utils.errors import ConfigError
from verl.utils.tokenizer import get_tokenizer


def test_every_problem_is_listed_in_one_error_with_exit_code_2(tiny_model, tmp_path, capsys):
    wrong = [
        "data.rollout_batch_size=9",
        "worker.actor.clip_ratio_hgih=0.3",
        "algorithm.kl_penalty=low_var",
        "data.train_files=missing.json",
        "worker.rollout.tensor_parallel_size=3",
        "algorithm.rollout_is=token",
        "worker.rollout.top_p=0.9",
        "trainer.logger=[consol]",
    ]
    assert main(arguments(tiny_model, tmp_path, "run", *wrong)) == 2
    error = capsys.readouterr().err
    for text in (
        "clip_ratio_hgih=0.3: unknown key; did you mean worker.actor.clip_ratio_high",
        "must be one of kl, abs, mse, low_var_kl, full, kl+, low_var_kl+ (did you mean low_var_kl?)",
        "missing.json: there is no such file",
        "worker.actor.global_batch_size=8: must divide data.rollout_batch_size=9; for example 3",
        "worker.rollout.tensor_parallel_size=3: must divide the 2 ranks",
        "renormalise the engine's log-probabilities",
        "consol: must be one of console",
    ):
        assert text in error
    assert not (tmp_path / "run").exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(tiny_model, tmp_path, capsys):
    assert main(arguments(tiny_model, tmp_path, "run", "trainer.dry_run=true")) == 0
    output = capsys.readouterr().out
    assert "training rows        24 (12 forget, 12 boundary)" in output
    assert "samples a step       32 (16 a rank)" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Who?"}, "has no column 'solution'"),
        ({"prompt": "", "solution": ["<normal>", "x"]}, "column 'prompt' is empty"),
        ({"prompt": "Who?", "solution": ["<refuse>", "x", "y"]}, 'must be "<reject>" \\(forget\\) or "<normal>"'),
        ({"prompt": "Who?", "solution": ["<reject>", "x"]}, "must be .*target"),
        ({"prompt": "Who?", "solution": ["<normal>", "x"], "images": ["a.png"]}, "is for text models"),
    ],
)
def test_a_bad_row_is_named_with_its_number(tiny_model, tmp_path, row, message):
    good = {"prompt": "Where?", "solution": ["<normal>", "x"]}
    (tmp_path / "bad.json").write_text(json.dumps([good] * 8 + [row]))
    with pytest.raises(ConfigError, match=f"row 8: .*{message}"):
        config(tiny_model, tmp_path, f"data.train_files={tmp_path / 'bad.json'}")


def test_old_names_are_accepted_with_a_warning_that_names_the_new(tiny_model, tmp_path, caplog):
    old = ["trainer.total_episodes=3", "worker.reward.reward_type=function", "data.val_prompt_key=prompt"]
    old += ["worker.actor.ulysses_sequence_parallel_size=1", f"data.output_result_dir={tmp_path / 'elsewhere'}"]
    changed = [word for word in arguments(tiny_model, tmp_path, "run") if not word.startswith("trainer.run_dir")]
    result = read_config([*changed, *old])
    assert result.trainer.total_epochs == 3
    assert result.trainer.run_dir == str(tmp_path / "elsewhere")
    assert "trainer.total_episodes is now called trainer.total_epochs" in caplog.text
    assert "worker.reward.reward_type=function has no effect any more" in caplog.text


def test_old_names_are_moved_whatever_stands_at_the_new(tmp_path):
    old = "data: {output_result_dir: 2025_01_15, val_prompt_key: yes}\n"
    for section, problem in {"": [], " 3": ["trainer=3: must be a section with keys"]}.items():
        (tmp_path / "a.yaml").write_text(f"{old}trainer:{section}\n")
        found = word_problems(PPOConfig, [f"config={tmp_path / 'a.yaml'}"], migrate)
        assert [one.split(",")[0] for one in found] == problem


def test_rules_noise_rollout_is_told_its_new_place(tiny_model, tmp_path, capsys):
    old = ["worker.noise_rollout.enabled=true", "worker.noise_rollout.noise_ratio=0.25"]
    assert main(arguments(tiny_model, tmp_path, "run", *old, "worker.noise_rollout.noise_prompt=Think.")) == 2
    error = capsys.readouterr().err
    assert "'noise_ratio': 0.25}: is now worker.rollout.noise_rollout" in error and "noise_prompt" not in error
    with pytest.raises(ConfigError, match=r"in place of \{\}; write the name"):
        config(tiny_model, tmp_path, "data.extra_prompt=Forget {} now.")


def test_rules_released_preset_key_reaches_the_reward(tiny_model, tmp_path):
    words = [word for word in arguments(tiny_model, tmp_path, "run") if not word.startswith("worker.reward")]
    preset = "worker.reward.score_function=forget_two_stage_abs_target"
    reward = read_config([*words, preset]).worker.reward
    assert reward.reward_function_kwargs == {"preset": "forget_two_stage_abs_target"}
    with pytest.raises(ConfigError, match="did you mean forget_two_stage_abs_target"):
        read_config([*words, preset[:-1]])


def test_settings_without_effect_are_named(tiny_model, tmp_path):
    warnings = inert_settings(
        config(
            tiny_model,
            tmp_path,
            "algorithm.lam=0.95",
            "worker.critic.cliprange_value=0.2",
            "worker.actor.fsdp.use_orig_params=true",
            "algorithm.kl_target=0.2",
            "worker.ref.model.trust_remote_code=true",
        )
    )
    assert [warning.split(":")[0] for warning in warnings] == [
        "worker.actor.fsdp.use_orig_params=True",
        "worker.ref.model.trust_remote_code=True",
        "worker.critic=(section)",
        "algorithm.lam=0.95",
        "algorithm.kl_target=0.2",
    ]
    assert inert_settings(config(tiny_model, tmp_path)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["worker.actor.ulysses_size=3"], "ulysses_size=3: must divide the 2 ranks .* for example 2"),
        (["worker.actor.ulysses_size=0"], "ulysses_size=0: must be greater than 0"),
        (
            ["worker.actor.ulysses_size=2", "worker.actor.padding_free=false"],
            "ulysses_size=2: shares packed rows; set padding_free=true",
        ),
        (
            ["worker.actor.ulysses_size=4", "trainer.n_gpus_per_node=4"],
            r"ulysses_size=4: cannot share the model's 2 heads \(1 of keys and values\); for example 2",
        ),
        (
            ["worker.actor.ulysses_size=2", "algorithm.adv_estimator=gae", "worker.critic.global_batch_size=8"],
            "worker.critic.ulysses_size=1: actor and critic get the same shares of a batch; set 2",
        ),
        (
            ["worker.actor.model.lora.rank=600"],
            "lora_weights=adapter: vLLM takes ranks up to 512, and worker.actor.model.lora.rank=600; set merged",
        ),
        (
            ["worker.actor.model.lora.rank=8", "worker.actor.model.lora.target_modules=q_proj,lm_head"],
            "lora_weights=adapter: vLLM takes adapters of the layers only, .*q_proj,lm_head.*; set merged",
        ),
        (
            ["worker.actor.clip_ratio_low=-0.1"],
            "worker.actor.clip_ratio_low=-0.1: must be 0 or greater",  # EasyR1's CISPO launcher has 0
        ),
        (
            ["worker.actor.fsdp.torch_dtype=bf16"],
            "worker.actor.fsdp.torch_dtype=bf16: adamw would round most of a small update away; set null",
        ),
        (
            ["worker.actor.model.lora.rank=8", "worker.actor.optim.strategy=adamw_bf16"],
            "worker.actor.optim.strategy=adamw_bf16: saves memory on full training only; set adamw under LoRA",
        ),
    ],
)
def test_ways_to_spread_the_work_that_cannot_be(tiny_model, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(tiny_model, tmp_path, *changes)


def test_ranks_that_share_samples_need_fewer_of_them(tiny_model, tmp_path):
    odd = ["data.rollout_batch_size=1", "worker.actor.global_batch_size=1", "worker.rollout.n=3"]
    with pytest.raises(ConfigError, match="global_batch_size=1: times worker.rollout.n=3 must divide over 2 ranks"):
        config(tiny_model, tmp_path, *odd)
    assert config(tiny_model, tmp_path, *odd, "worker.actor.ulysses_size=2").data_parallel_size == 1


def test_the_plan_counts_as_easyr1_does(tiny_model, tmp_path):
    words = ["trainer.max_steps=null", "trainer.total_epochs=2", "data.rollout_batch_size=8"]
    settings = config(tiny_model, tmp_path, *words, "worker.actor.global_batch_size=4")
    plan = make_plan(settings, read_rows(settings.data.train_files), [])
    assert (plan.steps_per_epoch, plan.total_steps) == (3, 6)
    assert (plan.samples_per_step, plan.samples_per_rank, plan.updates_per_step) == (32, 16, 2)


def test_only_a_single_update_of_the_sampling_policy_is_exactly_on_policy(tiny_model, tmp_path):
    assert config(tiny_model, tmp_path).exactly_on_policy
    for change in ("worker.actor.global_batch_size=4", "worker.actor.ppo_epochs=2", "algorithm.use_kl_loss=false"):
        assert not config(tiny_model, tmp_path, change).exactly_on_policy


THINKING = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking is false %}<|end|>{% endif %}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.icl_type=train"], "icl_type=train: acts on rows that are questions by mode; set data.mode=mode"),
        (["data.mode=mode"], "row 0: mode=None: must be qa or completion"),
        (["data.mode=mode", "data.icl_type=forget"], "there is no .*knowmem/forget_qa_icl.json"),
    ],
)
def test_modes_that_cannot_be(tiny_model, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(tiny_model, tmp_path, *changes)


def test_where_a_run_goes_on_from_is_known_before_it_starts(tiny_model, tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "global_step_2"
    named = f"trainer.load_checkpoint_path={folder}"
    with pytest.raises(ConfigError, match="load_checkpoint_path.*there is no such folder; give a whole"):
        config(tiny_model, tmp_path, named)
    with staging_dir(folder) as partial:
        (partial / "actor" / "huggingface").mkdir(parents=True)
        (partial / "trainer_state.json").write_text('{"step": 2}')
    for words, fix in ((["trainer.find_last_checkpoint=true"], "set false, or another"), ([named], "set null")):
        with pytest.raises(ConfigError, match=f"global_step_2 has no training state.*{fix}"):
            config(tiny_model, tmp_path, *words)
    config(tiny_model, tmp_path, "trainer.find_last_checkpoint=false")
    (folder / "actor" / "dcp").mkdir()
    assert resume_folder(config(tiny_model, tmp_path).trainer) == folder


def test_a_wrong_best_key_ends_the_run_at_its_first_validation(tiny_model, tmp_path, monkeypatch):
    words = ("trainer.val_before_train=true", "trainer.best_key=val/reward/acc")
    settings = config(tiny_model, tmp_path, *words)
    rows = dataset(tiny_model, tmp_path)
    trainer = RayPPOTrainer(settings, get_tokenizer(str(tiny_model)), rows, rows, total_steps=3)
    monkeypatch.setattr(trainer, "validate", lambda: {"val/reward/overall": 1.0})
    with pytest.raises(TrainingError, match="best_key=val/reward/acc: .*it gave val/reward/overall"):
        trainer.fit()


def test_an_override_that_the_model_would_ignore_is_refused(tiny_model, tmp_path, capsys):
    words = ["worker.actor.model.override_config.rms_norm_epz=1e-3"]
    assert main(arguments(tiny_model, tmp_path, "run", *words)) == 2
    assert "rms_norm_epz=0.001: LlamaConfig has no such entry; did you mean rms_norm_eps?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("role", ["actor", "critic", "ref"])
def test_shards_divide_over_the_ranks(tiny_model, tmp_path, role):
    with pytest.raises(ConfigError, match=rf"worker\.{role}\.fsdp\.fsdp_size=3: must divide the 2 ranks, or be -1"):
        config(tiny_model, tmp_path, f"worker.{role}.fsdp.fsdp_size=3")


def test_the_best_step_is_one_that_was_saved(tiny_model, tmp_path, monkeypatch):
    settings = config(tiny_model, tmp_path, "trainer.val_freq=1", "trainer.save_freq=2")
    rows = dataset(tiny_model, tmp_path)
    tokenizer = get_tokenizer(str(tiny_model))
    trainer = RayPPOTrainer(settings, tokenizer, rows, rows, total_steps=5)
    assert tokenizer.decode(trainer.ends) == "<|eos|><|end|>"  # what counts as the end of a response
    trainer.tracker = SimpleNamespace(log=lambda metrics, step: None)
    scores, saved = iter([9.0, 1.0, 8.0, 3.0, 2.0]), []
    monkeypatch.setattr(trainer, "train_step", dict)
    monkeypatch.setattr(trainer, "validate", lambda: {"val/reward/overall": next(scores)})
    monkeypatch.setattr(trainer, "save_checkpoint", lambda: saved.append(trainer.step))
    settings.trainer.run_folder.mkdir()
    trainer.fit()
    assert saved == [2, 4, 5]
    assert trainer.best == {"best_global_step": 4, "best_val_reward_score": 3.0}


def test_validation_needs_rows(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match="val_only=true: there is nothing to validate"):
        config(tiny_model, tmp_path, "trainer.val_only=true", "data.val_files=")


def test_sequences_beyond_the_models_positions_are_refused(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match="needs 664 positions, the model has 512; set at most 448"):
        config(tiny_model, tmp_path, "data.max_response_length=600")


def test_a_path_may_have_a_comma_and_an_empty_word_is_empty_text(tiny_model, tmp_path):
    folder = tmp_path / "10_Prince_Harry,_Duke_of_Sussex"
    folder.mkdir()
    rows = [{"prompt": "a", "answer": "b"}]
    (folder / "rows.json").write_text(json.dumps(rows))
    assert read_rows(str(folder / "rows.json")) == rows
    assert config(tiny_model, tmp_path, "data.val_files=").data.val_files == ""


@pytest.mark.parametrize(("ranks", "hint"), [(3, "for example make it 6"), (16, "for example 8")])
def test_a_batch_that_does_not_divide_gets_a_number_that_does(tiny_model, tmp_path, ranks, hint):
    words = [f"trainer.n_gpus_per_node={ranks}", "worker.actor.global_batch_size=2"]
    with pytest.raises(ConfigError, match=f"must divide over {ranks} ranks; .*{hint}"):
        config(tiny_model, tmp_path, *words)


def test_a_model_that_is_nowhere_is_named_with_exit_code_2(tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ["worker.actor.model.model_path=nobody/has-this", "trainer.logger=[]"]
    assert main(arguments(tiny_model, tmp_path, "run", *words)) == 2
    assert "model nobody/has-this: is neither a folder with a tokenizer nor" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
