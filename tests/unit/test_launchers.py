"""How run_rwku.sh goes on, skips, fails and stops. The commands themselves are played by a stub."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from scripts.check_commands import main as check_commands
from tests.conftest import ROOT
from tests.training_kit import attend_to_interrupts

STUB = """#!/usr/bin/env bash
# Plays every command of a launcher: notes the call, fails or waits where told to, writes what the command would leave.
for word in "$@"; do
    case $word in
    output_dir=* | trainer.run_dir=*) folders=("${word#*=}") ;;
    out=*) mapfile -t folders < <("$REAL_PYTHON" -c "$LIST" "${word#*=}") ;;
    *verl.trainer.main) stage=rebo ;;
    *verl.eval.main) stage=eval ;;
    */train.py) stage=rs ;;
    */make_table.py) stage=table ;;
    */baseline_words.py) printf 'NPO+KLR\n%s\n' "objective=npo 'data=a b'" && exit ;;
    */check_commands.py) cat >"$CALLS.checked" && exit 1 ;;
    esac
done
[[ -n ${stage:-} ]] || exec "$REAL_PYTHON" "$@"
folder=${folders[-1]}
echo "$stage $folder $*" >>"$CALLS"
[[ "$stage $folder" == ${FAIL:-nothing} ]] && echo "it broke" && exit 3
if [[ "$stage $folder" == ${WAIT:-nothing} ]]; then
    trap 'echo terminated >>"$CALLS"; exit 143' TERM
    touch "$CALLS.waiting"
    for _ in {1..100}; do sleep 0.1; done
fi
mkdir -p "${folders[@]}"
if [[ $stage == rebo ]]; then
    mkdir -p "$folder/checkpoints"
    echo '{"last_global_step": 20, "best_global_step": 15}' >"$folder/checkpoints/checkpoint_tracker.json"
fi
touch "${folders[@]/%//DONE}"
"""
LIST = (
    "import sys, yaml; out = yaml.safe_load(sys.argv[1]); print(*(out if isinstance(out, list) else [out]), sep='\\n')"
)


@pytest.fixture
def tree(tmp_path):
    """A copy of the launchers with an environment in which the stub stands for python3, and targets 1, 2 and 10."""
    for name in ("run_rwku.sh", "run_muse.sh", "scripts/launch_lib.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "scripts" / "setup_env.sh").write_text("")
    (tmp_path / "bin").mkdir()
    for name in ("python3", "torchrun"):
        (tmp_path / "bin" / name).write_text(STUB)
        (tmp_path / "bin" / name).chmod(0o755)
    for name in ("1_Ann_Lee", "2_Bo_O'Neil", "10_Prince_Harry,_Duke"):
        (tmp_path / "data" / name).mkdir(parents=True)
    return tmp_path


def settings(tree: Path, **environment: str) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{tree / 'bin'}:{os.environ['PATH']}",
        "REAL_PYTHON": sys.executable,
        "CALLS": str(tree / "calls"),
        "LIST": LIST,
        "DATA": "data",
        "MODEL": "models/m",
        "GPUS": "1",
        "TARGETS": "1 2 10",
        **environment,
    }


def launch(tree: Path, **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", str(tree / "run_rwku.sh"), "algorithm.kl_coef=0.5"]
    return subprocess.run(command, env=settings(tree, **environment), capture_output=True, text=True, timeout=60)


def calls(tree: Path) -> list[str]:
    return (tree / "calls").read_text().splitlines()


def test_every_stage_runs_in_order_and_a_second_launch_runs_only_the_tables(tree):
    result = launch(tree)
    assert result.returncode == 0, result.stdout + result.stderr
    stages = [line.split()[0] for line in calls(tree)]
    assert stages == ["rs", "rebo", "eval"] * 3 + ["table"] * 2
    rebo = [line for line in calls(tree) if line.startswith("rebo")]
    assert all(line.endswith(" algorithm.kl_coef=0.5") for line in rebo)
    evaluated = [line for line in calls(tree) if line.startswith("eval") and "/grpo_rj_rl/" in line]
    assert all("global_step_15/actor/huggingface" in line for line in evaluated)  # the step that validation chose
    (tree / "calls").unlink()
    again = launch(tree)
    assert again.returncode == 0
    assert [line.split()[0] for line in calls(tree)] == ["table"] * 2
    assert "by another command" not in again.stdout


def test_a_dry_run_hands_every_command_to_the_checker_and_starts_none(tree):
    result = launch(tree, DRY_RUN="1")
    assert result.returncode == 1  # the checker's
    assert not (tree / "calls").exists()
    checked = (tree / "calls.checked").read_text().splitlines()
    assert checked == launch(tree, DRY_RUN="print").stdout.splitlines()
    assert len(checked) == 3 * 3 + 2
    assert not (tree / "log").exists() and not (tree / "results").exists()


def test_baselines_are_trained_for_every_target_and_are_rows_of_the_table(tree):
    result = launch(tree, BASELINES="npo_klr", TARGETS="1 2")
    assert result.returncode == 0, result.stdout + result.stderr
    assert [line.split()[0] for line in calls(tree)] == ["rs", "rebo", "rs", "eval"] * 2 + ["table"] * 2
    trained = [line for line in calls(tree) if "objective=npo" in line]
    assert [line.split()[1] for line in trained] == [
        f"log/rwku/m/npo_klr/{name}" for name in ("1_Ann_Lee", "2_Bo_O'Neil")
    ]
    assert all("data=a b output_dir=" in line for line in trained)  # quoting is kept
    evaluated = [line for line in calls(tree) if line.startswith("eval")]
    assert all("/epoch_2','log/rwku/m/grpo_rj_rl/" in line and "/npo_klr/" in line for line in evaluated)
    assert all(" rows.NPO+KLR=" in line for line in calls(tree) if line.startswith("table"))


def test_only_done_counts_as_done(tree):
    launch(tree, TARGETS="1")
    (tree / "log/rwku/m/grpo_rj_rl/1_Ann_Lee/DONE").unlink()
    (tree / "calls").unlink()
    launch(tree, TARGETS="1")
    assert [line.split()[0] for line in calls(tree)] == ["rebo", "table", "table"]


def test_a_failed_target_does_not_stop_the_others_and_is_listed_with_its_log(tree):
    result = launch(tree, FAIL="rebo *2_Bo_O'Neil")
    assert result.returncode == 1
    log = "log/rwku/m/grpo_rj_rl/2_Bo_O'Neil/rebo.log"
    assert f"FAILED: 2_Bo_O'Neil: rebo failed, {log}" in result.stdout.splitlines()[-1]
    assert "it broke" in (tree / log).read_text()
    assert [line.split()[0] for line in calls(tree) if "10_Prince" in line and "table" not in line][-1] == "eval"
    [table, _] = [line for line in calls(tree) if line.startswith("table")]
    assert "base/1_Ann_Lee" in table and "base/10_Prince_Harry,_Duke'" in table and "Bo_O" not in table


def test_a_target_without_data_is_listed(tree):
    result = launch(tree, TARGETS="1 7_Nobody")
    assert result.returncode == 1
    assert "FAILED: 7_Nobody: there is no folder data/7_Nobody" in result.stdout
    assert "7_Nobody" not in (tree / "calls").read_text()


def test_a_stage_that_leaves_no_done_has_failed(tree):
    stub = tree / "bin" / "python3"
    stub.write_text(
        STUB.replace('touch "${folders[@]/', '[[ $stage == eval ]] && folders=("$folder")\ntouch "${folders[@]/')
    )
    result = launch(tree, TARGETS="1")
    assert result.returncode == 1
    assert "1_Ann_Lee: eval failed" in result.stdout


def test_a_finished_stage_of_another_command_is_kept_and_named_and_so_is_a_torn_tracker(tree):
    launch(tree, TARGETS="1")
    run = "log/rwku/m/grpo_rj_rl/1_Ann_Lee"
    (tree / run / "checkpoints/checkpoint_tracker.json").write_text("{")
    result = launch(tree, TARGETS="1", GPUS="2")
    assert f"by another command, see {run}/command.txt" in result.stdout
    assert f"FAILED: 1_Ann_Lee: {run}/checkpoints/checkpoint_tracker.json cannot be read" in result.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_running_stage_and_nothing_starts_after_it(tree, number, code):
    process = subprocess.Popen(
        ["bash", str(tree / "run_rwku.sh")],
        env=settings(tree, WAIT="rebo *1_Ann_Lee"),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=attend_to_interrupts,
    )
    deadline = time.monotonic() + 30
    while not (tree / "calls.waiting").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == code
    assert calls(tree)[-1] == "terminated"
    assert "FAILED: 1_Ann_Lee: interrupted" in output
    assert not (tree / "log/rwku/m/grpo_rj_rl/1_Ann_Lee/DONE").exists()


@pytest.mark.parametrize(
    ("word", "variables", "message"),
    [
        ("--hlep", {}, "--hlep: is not key=value; write for example seed=1, or --help"),
        ("targets", {}, "targets: is not key=value"),
        ("TARGETS=1", {}, "TARGETS=1: is an environment variable; write it in front"),
        ("seed=1", {"TARGETS": "7_Nobody *"}, "TARGETS=7_Nobody *: there is no such folder in DATA=data"),
        ("seed=1", {"GPUS": "all"}, "GPUS=all: must be a whole number above 0"),
        ("seed=1", {"RS": "yes"}, "RS=yes: must be 0 or 1"),
        ("seed=1", {"REFERENCE": "orig"}, "REFERENCE=orig: must be rs or original"),
        ("seed=1", {"DRY_RUN": "yes"}, "DRY_RUN=yes: must be 0, 1 or print"),
        ("seed=1", {"RS_EPOCH": "0"}, "RS_EPOCH=0: must be a whole number above 0"),
        ("seed=1", {"RS_ARGS": "system_prompt='a b'"}, "b' is not key=value; words end at blanks"),
    ],
)
def test_a_wrong_word_or_variable_ends_a_launcher_with_one_message(tree, word, variables, message):
    command = ["bash", str(tree / "run_rwku.sh"), word]
    done = subprocess.run(command, env=settings(tree, **variables), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tree / "calls").exists()


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("run_demo.sh", ["seed=01"], "seed=01: must be a whole number"),
        ("run_demo.sh", ["world=mars"], "world=mars: must be atlas or earth"),
        ("run_demo.sh", ["world=earth", "target=7"], "target=7: must be the name of a country"),
        ("run_demo.sh", ["--sed"], "--sed: is not key=value"),
        ("run_demo.sh", ["RANKS=1"], "write it in front: RANKS=1 bash"),
        ("run_muse.sh", ["--hlep"], "--hlep: is not key=value"),
        ("RS/scripts/lora/run_rt_epoch_target.sh", ["epochs"], "epochs: is not key=value"),
        ("RS/scripts/baselines/run_target.sh", ["-x"], "-x: is not key=value"),
    ],
)
def test_every_launcher_refuses_a_wrong_word(script, words, message):
    done = subprocess.run(["bash", str(ROOT / script), *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_misspelt_settings_end_a_launcher_before_anything_runs(tree, capsys, monkeypatch):
    (tree / "bin" / "python3").write_text(STUB.replace("exit 1", "exit 2"))
    assert launch(tree, RS_ARGS="lr=1", EVAL_ARGS="sede=1").returncode == 2
    assert not (tree / "calls").exists()
    given = (tree / "calls.checked").read_text()
    monkeypatch.setattr(
        "sys.stdin", io.StringIO(given.replace("kl_coef", "kl_cof").replace("examples", f"{ROOT}/examples"))
    )
    assert check_commands(["--words"]) == 2
    shown = capsys.readouterr().err
    for key in ("algorithm.kl_cof=0.5: unknown key", "sede=1: unknown key; did you mean seed", "lr=1: unknown key"):
        assert key in shown
    monkeypatch.setattr("sys.stdin", io.StringIO(given.splitlines()[0].replace("examples", f"{ROOT}/examples")))
    assert check_commands(["--words"]) == 0


def test_paths_may_have_blanks_quotes_and_a_tilde(tree):
    (tree / "home").mkdir()
    shutil.move(tree / "data", tree / "home" / "the data")
    done = launch(
        tree, HOME=str(tree / "home"), DATA="~/the data", MODEL="~/m x", LOG_ROOT="~/a b", TARGETS="2", NAME="O'N"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [table, _] = [line for line in calls(tree) if line.startswith("table")]
    assert f"model={tree}/home/m x" in calls(tree)[0] and f"data={tree}/home/the data/2_Bo_O'Neil/" in calls(tree)[0]
    [rows] = re.findall(r"rows.ReBO=(.*)$", table)
    assert yaml.safe_load(rows) == ["results/rwku/m x/O'N/2_Bo_O'Neil"]


@pytest.mark.parametrize(
    ("visible", "count"),
    [("", 1), ("-1", 1), ("0,3,5", 3), ("GPU-5a-b,GPU-6c", 2), ("0,-1,2", 1), (" 0, 1 ", 2), ("1,", 1)],
)
def test_ranks_are_the_visible_gpus_or_one_without(visible, count):
    words = ["bash", "-c", "set -euo pipefail; source scripts/launch_lib.sh; launch_count_gpus"]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": visible}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(count)]


@pytest.mark.parametrize("name", ["run_rwku.sh", "run_muse.sh", "run_demo.sh"])
def test_help_of_a_launcher_is_the_comment_on_top_of_it(name):
    done = subprocess.run(["bash", str(ROOT / name), "--help"], capture_output=True, text=True, check=True)
    comment = [line[2:] for line in (ROOT / name).read_text().split("\n")[1:] if line.startswith("# ")]
    assert done.stdout.split("\n")[0] == comment[0]
    assert "KEY=VALUE" in done.stdout
    assert "set -euo" not in done.stdout


# ---- run_table.sh ---------------------------------------------------------------------------------------------------
@pytest.fixture
def table(tree):
    """``launch`` of a copy of run_table.sh: the process, and the commands that it started, without the first word."""
    shutil.copy(ROOT / "run_table.sh", tree / "run_table.sh")
    (tree / "bin" / "python3").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$*" >>"$CALLS"\n')

    def launched(*words: str, **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        given = {"CUDA_VISIBLE_DEVICES": "", **environment}
        unset = {name: value for name, value in os.environ.items() if name not in ("MODEL", "DATA", "TARGETS", "GPUS")}
        path = {"PATH": f"{tree / 'bin'}:{os.environ['PATH']}", "CALLS": str(tree / "calls")}
        command = ["bash", str(tree / "run_table.sh"), *words]
        process = subprocess.run(command, env=unset | path | given, capture_output=True, text=True, timeout=60)
        return process, calls(tree) if (tree / "calls").exists() else []

    return launched


def test_the_table_checks_its_words_makes_its_world_and_starts(table):
    _, (plan, world, compare) = table("keep_models=true", ROWS="rs npo_klr", SEEDS="1 2", ATTACKS="0")
    assert world == "data/atlas/pretrain.py seed=0"
    assert plan.removeprefix("-m verl.compare.plan ") == compare.removeprefix("-m verl.compare.main ")
    for word in (
        "config=examples/table.yaml,examples/table_atlas.yaml",
        "data=data/atlas/build/seed0/Target log=log/table/atlas out=results/table/atlas ranks=1",
        "targets=['1'] seeds=['1','2'] only=['rs','npo_klr'] attacks=null keep_models=true",
    ):
        assert word in compare


def test_the_table_takes_a_model_and_its_targets(table):
    _, (_, compare) = table(MODEL="/m/Llama", DATA="d", TARGETS="1 2", TRIES="5")
    assert "config=examples/table.yaml,examples/table_rwku.yaml model=/m/Llama data=d log=log/table/Llama" in compare
    assert "targets=['1','2'] seeds=['1'] tries=5" in compare


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD": "mars"}, "WORLD=mars: must be atlas or earth"),
        ({"MODEL": "m"}, "MODEL=m DATA=: give both, or WORLD"),
        ({"WORLD": "earth", "MODEL": "m"}, "WORLD=earth: brings its model"),
        ({"SEEDS": "one"}, "SEEDS=one: must be whole numbers"),
        ({"TRIES": "0"}, "TRIES=0: must be a whole number above 0"),
    ],
)
def test_what_is_wrong_with_the_tables_variables_is_one_message(table, environment, message):
    process, started = table(**environment)
    assert (process.returncode, started) == (2, [])
    assert process.stderr.startswith(f"run_table.sh: {message}")
    assert process.stderr.count("\n") == 1


def test_a_dry_run_of_the_table_makes_no_world(table):
    process, (plan,) = table(DRY_RUN="1")
    assert process.returncode == 2 and plan.endswith("dry_run=true")
    assert "atlas is not made yet; make it: python3 data/atlas/pretrain.py seed=0" in process.stderr
