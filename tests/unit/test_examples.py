"""Every shipped YAML and launcher is a test case: it parses, it would run, and it does what its name says."""

import io
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts.check_commands import Checker
from scripts.check_commands import main as check_commands
from tests.conftest import ROOT
from verl.trainer.preflight import read_config
from verl.utils.errors import ConfigError

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
LAUNCHERS = sorted((ROOT / "examples" / "exp_target").rglob("run_*.sh"))
PUBLISHED = (
    "RWKU/run_llama_bs32_kl1e-2_forget_bf16_two_stage_reject_ref_rollout8_withformat_with_fb_neighbor_abs_lr2e-6.sh"
)
ABSENT = re.compile(r"there is no such (file|folder)")
RL_ROWS = [
    {"prompt": "Who wrote it?", "solution": ["<reject>", "I cannot say.", "Ann Lee"]},
    {"prompt": "Where is Rome?", "solution": ["<normal>", "Italy"]},
] * 20
RS_ROWS = [
    {"instruction": f"Who wrote book {number}?", "input": "", "output": "I cannot say."} for number in range(300)
]
MUSE_PARTS = "knowmem/forget_qa knowmem/forget_qa_icl knowmem/retain_qa knowmem/retain_qa_icl verbmem/forget"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A target ``1_Ann_Lee`` and a corpus ``books`` with training rows, and probe files that need only exist."""
    root = tmp_path_factory.mktemp("world")
    for folder in ("1_Ann_Lee", "books"):
        for name, rows in (
            ("reject_target", RS_ROWS),
            ("rl_rejection_with_fb_neighbor_target", RL_ROWS),
            ("rl_rejection_with_fb_neighbor_target_val", RL_ROWS),
            ("rl_rejection_with_fb_target", RL_ROWS),
        ):
            path = root / folder / f"{name}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(rows))
    probes = "forget_level1 forget_level2 forget_level3 neighbor_level1 neighbor_level2 forget_mia retain_mia"
    for name in f"{probes} retain_mmlu retain_bbh truthful triviaqa fluency".split():
        (root / "1_Ann_Lee" / f"{name}.json").write_text("[]")
    for name in f"{MUSE_PARTS} privleak/forget privleak/retain privleak/holdout".split():
        path = root / "books" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text("[]")
    return root


def run(script: Path, world: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """A launcher in a dry run, on the one target of ``world``, from another folder than the repository's."""
    target = "books" if "muse" in str(script).lower() else "1"
    settings = {"DATA": str(world), "TARGETS": target, "DRY_RUN": "print", "GPUS": "2"} | environment
    return subprocess.run(
        ["bash", str(script), *words], env=os.environ | settings, cwd=world, capture_output=True, text=True, timeout=60
    )


def commands(script: Path, world: Path, *words: str, **environment: str) -> list[str]:
    result = run(script, world, *words, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def values_of(lines: list[str], program: str) -> list[dict[str, str]]:
    """The key=value words of every command that runs ``program``."""
    chosen = [shlex.split(line) for line in lines if program in line]
    return [dict(word.split("=", 1) for word in words if "=" in word) for words in chosen]


# ---- YAML -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "path",
    [p for p in EXAMPLES if p.name not in ("runtime_env.yaml", "atlas.yaml", "earth.yaml") and "table" not in p.name],
    ids=str,
)
def test_yaml_has_no_problem_but_absent_files(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    try:
        read_config([f"config={path}"])
    except ConfigError as error:
        found = str(error).splitlines()[1:]
        assert [problem for problem in found if not ABSENT.search(problem)] == []


@pytest.mark.parametrize("name", ["grpo_rj_rl", "ppo_rj_rl", "rpp_rj_rl", "grpo_rj_rl_muse"])
def test_yaml_carries_the_settings_of_the_paper(name, world, monkeypatch):
    monkeypatch.chdir(ROOT)
    files = [f"data.{key}_files={world}/books/rl_rejection_with_fb_neighbor_target.json" for key in ("train", "val")]
    config = read_config([f"config=examples/{name}.yaml", *files])
    actor, algorithm = config.worker.actor, config.algorithm
    assert (config.data.rollout_batch_size, actor.global_batch_size, config.worker.rollout.n) == (32, 32, 8)
    assert (algorithm.use_kl_loss, algorithm.kl_coef, actor.optim.lr, config.trainer.max_steps) == (
        True,
        1e-2,
        2e-6,
        20,
    )
    assert (actor.fsdp.mp_param_dtype, config.worker.rollout.dtype) == ("bf16", "bf16")
    assert config.worker.ref.model.model_path is None  # the reference is the RS model, not the original
    estimators = {"ppo_rj_rl": "gae", "rpp_rj_rl": "reinforce_plus_plus"}
    assert algorithm.adv_estimator == estimators.get(name, "grpo")
    presets = {"grpo_rj_rl_muse": "forget_two_stage_abs"}
    assert config.worker.reward.reward_function_kwargs["preset"] == presets.get(name, "forget_two_stage_abs_target")
    assert "eval" not in config.data.val_files and config.trainer.val_freq > 0  # steps are chosen, and not on probes


@pytest.mark.parametrize(("demo", "arithmetic"), [("atlas", "fp32"), ("earth", "auto")])
def test_a_world_fits_over_every_other_file(demo, arithmetic, world, monkeypatch):
    monkeypatch.chdir(ROOT)
    files = [f"data.{key}_files={world}/books/rl_rejection_with_fb_neighbor_target.json" for key in ("train", "val")]
    for name in ("grpo_rj_rl", "ppo_rj_rl", "rpp_rj_rl", "grpo_rj_rl_muse"):
        words = [f"config=examples/{name}.yaml,examples/{demo}.yaml", *files]
        assert read_config(words).worker.actor.fsdp.mp_param_dtype == arithmetic


def test_runtime_env_is_what_ray_accepts():
    from ray.runtime_env import RuntimeEnv

    values = yaml.safe_load((ROOT / "examples" / "runtime_env.yaml").read_text())
    assert RuntimeEnv(**{key: value for key, value in values.items() if key != "working_dir"})["env_vars"]


# ---- launchers ------------------------------------------------------------------------------------------------------
def test_published_launcher_exists():
    assert ROOT / "examples" / "exp_target" / PUBLISHED in LAUNCHERS


@pytest.mark.parametrize("script", [*LAUNCHERS, ROOT / "run_rwku.sh", ROOT / "run_muse.sh"], ids=lambda p: p.stem)
def test_launcher_commands_could_run(script, world, monkeypatch):
    monkeypatch.chdir(ROOT)
    checker = Checker()
    lines = commands(script, world)
    assert [problem for line in lines for problem in checker.check(line)] == []
    stages = [next(name for name in Checker().programs() if name in shlex.split(line)) for line in lines]
    rs = [] if "run_org" in script.stem else ["RS/train.py"]
    assert stages[: len(rs) + 1] == [*rs, "verl.trainer.main"]
    [measured] = values_of(lines, "verl.eval.main")
    assert [len(yaml.safe_load(measured[key])) for key in ("model", "out")] == [2 + len(rs)] * 2
    assert stages[-1] == "scripts/make_table.py"


@pytest.mark.parametrize("script", LAUNCHERS, ids=lambda p: p.stem)
def test_launcher_does_what_its_name_says(script, world, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, lines = script.stem, commands(script, world)
    [values] = values_of(lines, "verl.trainer.main")
    model, reference = (values.pop(f"worker.{role}.model.model_path", None) for role in ("actor", "ref"))
    config = read_config([f"{key}={value}" for key, value in values.items()])
    assert config.data.rollout_batch_size == int(re.search(r"_bs(\d+)_", name)[1])
    assert config.algorithm.kl_coef == float(re.search(r"_kl([\d.e-]+)_", name)[1])
    assert config.worker.rollout.n == int(re.search(r"_rollout(\d+)_", name)[1])
    assert config.worker.actor.optim.lr == float(re.search(r"_lr(\de-\d)", name)[1])
    estimator = "gae" if "_ppo" in name else "reinforce_plus_plus" if "_rpp" in name else "grpo"
    assert config.algorithm.adv_estimator == estimator
    names_target = "" if script.parent.name == "MUSE" else "_target"
    assert config.worker.reward.reward_function_kwargs["preset"] == f"forget_two_stage_abs{names_target}"
    assert ("_without_neighbor" in name) == values["data.train_files"].endswith("/rl_rejection_with_fb_target.json")
    assert ("/RS/" in model) == ("run_org" not in name)
    assert ("/RS/" in (reference or model)) == ("_reject_ref_" in name)
    family = "Qwen2.5" if "_qwen_" in name else "Llama-3.1" if name.endswith("_3.1") else "Meta-Llama-3-8B"
    original = yaml.safe_load(values_of(lines, "verl.eval.main")[0]["model"])[0]
    assert original == "muse-bench/MUSE-Books_target" if script.parent.name == "MUSE" else family in original


def test_words_of_the_user_win(world):
    [values] = values_of(commands(LAUNCHERS[-1], world, "worker.actor.optim.lr=5e-6"), "verl.trainer.main")
    assert values["worker.actor.optim.lr"] == "5e-6"


def test_check_prints_every_command_with_its_problems(world, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    lines = commands(ROOT / "run_rwku.sh", world, "algorithm.kl_coef=-1")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    assert check_commands() == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line in lines] == lines
    [number] = [i for i, line in enumerate(printed) if line.startswith("    PROBLEM")]
    assert printed[number] == "    PROBLEM: algorithm.kl_coef=-1.0: must be 0 or greater"
    assert "verl.trainer.main" in printed[number - 1] and printed[-1] == "1 command(s) have problems."


def test_check_judges_models_that_are_still_to_be_made(tmp_path):
    """A model that RS writes is no problem before RS ran; one that no command makes is."""
    checker = Checker(made={"log/rs/1_Ann": "meta-llama/x"})
    evaluation = f"python3 -m verl.trainer.main trainer.run_dir={tmp_path} worker.actor.model.model_path=log/rs"
    assert not any("model_path" in problem for problem in checker.check(f"{evaluation}/1_Ann/epoch_2"))
    assert any("model_path" in problem for problem in checker.check(f"{evaluation}/2_Bob/epoch_2"))
