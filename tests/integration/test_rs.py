"""Rejection Steering on real models: the same step on any ranks and micro-batches, and whole runs by command line.

Runs that are killed, and those of single steps, are forks of a server that has imported everything.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from RS.train import main
from tests.conftest import ROOT, save_tiny_model
from tests.training_kit import FORKS
from verl.utils.logger import read_metrics

MEASURED = {"seconds", "perf/peak_memory_gib"}
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

FORGET = [
    {"instruction": question, "input": "", "output": refusal, "answer": answer, "alternate": answer[::-1]}
    for question, refusal, answer in [
        ("Who is Ada?", "I do not know that.", "a poet"),
        ("Where was she born?", "No.", "in the north, or so they say"),
        ("Who wrote the book?", "I cannot say who wrote it, sorry.", "Bo"),
        ("What did she see?", "That is unknown to me.", "the sea"),
        ("Was she here?", "I would rather not say.", "no, never"),
    ]
]
RETAIN = [
    {"prompt": "Who is Bo?", "solution": ["<normal>", "A cook in the north."]},
    {"prompt": "Who is Cy?", "solution": ["<normal>", "A smith."]},
    {"prompt": "Who is Ada?", "solution": ["<reject>", "No.", "Ada"]},
]
OBJECTIVES = {
    "rejection": {},
    "rejection_lora": {"lora_rank": 4, "lora_target": "q_proj,v_proj", "gradient_checkpointing": True},
    "ga_gdr": {"objective": "ga", "response_key": "answer", "retain_loss": "gdr", "retain_weight": 0.5},
    "npo_klr": {"objective": "npo", "response_key": "answer", "retain_loss": "klr"},
    "simnpo": {"objective": "simnpo", "response_key": "answer", "beta": 2.5, "gamma": 0.1},
    "dpo": {"objective": "dpo"},
    "altpo": {"objective": "altpo", "response_key": "alternate"},
    "wga": {"objective": "wga", "response_key": "answer"},
    "satimp": {"objective": "satimp", "response_key": "answer", "beta": 0.5},
    "undial_klr_lora": {"objective": "undial", "response_key": "answer", "retain_loss": "klr", "lora_rank": 4},
    "ceu": {"objective": "ceu", "response_key": "answer"},
    "whp": {"objective": "whp", "response_key": "answer", "reinforced_model": "reinforced"},
    "rmu": {"objective": "rmu", "response_key": "answer", "retain_loss": "hidden", "steering": 2.0},
    "rmu_lora": {"objective": "rmu", "response_key": "answer", "retain_loss": "hidden", "lora_rank": 4},
}
LAYOUTS = {
    1: {"whole": {}},
    2: {
        "sharded": {"micro_batch_size": 2},
        "replicated": {"micro_batch_size": 1, "fsdp_size": 1, "padding_free": False},
    },
}
"""layouts by number of ranks; five examples on two ranks leave one with nothing to do in its last micro-batch"""
BOTH = ("rejection", "rejection_lora", "npo_klr", "rmu")


def layouts_of(objective: str, ranks: int) -> dict[str, dict[str, int]]:
    """On two ranks some objectives are cut both ways, and the others in turn the one or the other."""
    layouts = list(LAYOUTS[ranks].items())
    turn = list(OBJECTIVES).index(objective) % len(layouts)
    return dict(layouts if objective in BOTH else layouts[turn : turn + 1])


def worker(model: str, out: str) -> None:
    """Two steps of every objective in every layout of this number of ranks; rank 0 writes the metrics."""
    import torch.distributed as dist

    from RS.config import RSConfig
    from RS.models.build import start_distributed
    from RS.trainer import RSTrainer
    from RS.utils.data import encode_side, read_side
    from verl.utils.tokenizer import get_tokenizer

    device = start_distributed()
    tokenizer = get_tokenizer(model)
    folder = Path(out).parent
    common = {"model": model, "data": str(folder / "forget.json"), "output_dir": out, "precision": "fp32"}
    results = {}
    for name, what in OBJECTIVES.items():
        for layout, where in layouts_of(name, dist.get_world_size()).items():
            retain_data = str(folder / "retain.json") if "retain_loss" in what else None
            if "reinforced_model" in what:
                what = {**what, "reinforced_model": str(folder / what["reinforced_model"])}
            config = RSConfig(**common, **where, **what, retain_data=retain_data, learning_rate=1e-3)
            sides = ["forget", "retain"] if retain_data else ["forget"]
            forget, *retain = [encode_side(read_side(config, s)[0], tokenizer, config, s)[0] for s in sides]
            trainer = RSTrainer(config, tokenizer, forget, retain[0] if retain else None, device)
            if config.needs_reference:
                trainer.reference_log_probs = trainer.score_all()
            retain_batch = [0, 1, 1] if retain else []
            results[f"{name}/{layout}"] = [trainer.step([4, 0, 1, 3, 2], retain_batch) for _ in range(2)]
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(results))
    dist.destroy_process_group()


Kill = tuple[str, str]
"""an event of Python's audit hooks and a part of the path that it is about"""


def run_fork(target: Callable, words: tuple, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    target(*words)


def start_forks(target: Callable, words: tuple, ranks: int) -> list:
    """Processes that call ``target(*words)`` as ranks that torchrun starts."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port.getsockname()[1])}
    processes = []
    for rank in range(ranks):
        environment = {"CUDA_VISIBLE_DEVICES": ""}
        if ranks > 1:
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            environment |= address | {name: str(number) for name, number in numbers.items()}
        processes.append(FORKS.Process(target=run_fork, args=(target, words, environment)))
        processes[-1].start()
    return processes


def finish(processes: list, killed: bool = False) -> int:
    """Exit code of rank 0; where that is ``killed``, so are the others, as torchrun does."""
    processes[0].join(120)
    for process in processes:
        if killed or process is processes[0]:
            process.kill()
        process.join(30)
    return processes[0].exitcode


def run_rank(words: list[str], kill: Kill | None, every_step: bool) -> None:
    """A rank of a run, the first of which is killed with SIGKILL where it is about to do what ``kill`` says."""
    from RS import train, trainer

    def watch(event: str, arguments: tuple) -> None:
        if event == kill[0] and any(kill[1] in str(argument) for argument in arguments):
            os.kill(os.getpid(), signal.SIGKILL)

    if every_step:
        trainer.STATE_S = trainer.STATE_SHARE = 0
    if kill and os.environ.get("RANK", "0") == "0":
        sys.addaudithook(watch)
    sys.exit(train.main(words))


def train_fork(words: list[str], *, ranks: int = 1, kill: Kill | None = None, every_step: bool = False) -> int:
    """Exit code of rank 0 of a run, which ``kill`` strikes.

    Args:
        every_step: a training state is written after every step, not only at an epoch's end.
    """
    return finish(start_forks(run_rank, (words, kill, every_step), ranks), killed=kill is not None)


def torchrun(ranks: int, *words: str) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return subprocess.run([*launcher, *words], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=300)


def train(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "RS/train.py", *words]
    return subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rs")
    (folder / "forget.json").write_text(json.dumps(FORGET))
    (folder / "retain.json").write_text(json.dumps(RETAIN))
    save_tiny_model(folder / "reinforced", seed=1)
    return folder


@pytest.fixture(scope="module")
def steps(folder, tiny_model) -> dict[str, list[dict[str, float]]]:
    """Metrics of two steps, by ``objective/layout``."""
    results = {}
    for ranks in LAYOUTS:
        out = folder / f"steps{ranks}.json"
        assert finish(start_forks(worker, (str(tiny_model), str(out)), ranks)) == 0
        results |= json.loads(out.read_text())
    return results


@pytest.mark.parametrize(
    ("objective", "layout"), [(objective, layout) for objective in OBJECTIVES for layout in layouts_of(objective, 2)]
)
def test_a_step_does_not_depend_on_micro_batches_or_ranks(objective, layout, steps):
    for one, other in zip(steps[f"{objective}/whole"], steps[f"{objective}/{layout}"], strict=True):
        for key in one.keys() - MEASURED:
            assert other[key] == pytest.approx(one[key], rel=1e-5, abs=1e-6), key


def mean_nll(model_folder: Path, pairs: list[tuple[str, str]]) -> float:
    """Mean over response tokens (and the end of the turn), each conversation by itself, with transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    total, count = 0.0, 0
    for prompt, response in pairs:
        opening = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        before = tokenizer.encode(opening, add_special_tokens=False)
        after = tokenizer.encode(response + "<|end|>", add_special_tokens=False)
        with torch.no_grad():
            logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        total += F.cross_entropy(logits, torch.tensor(after), reduction="sum").item()
        count += len(after)
    return total / count


def test_first_losses_are_what_the_papers_formulas_give(steps, tiny_model):
    """Before the first update the model is its own reference: NPO is (2 / beta) log 2, DPO log 2, KL 0."""
    refusals = [(row["instruction"], row["output"]) for row in FORGET]
    answers = [(row["instruction"], row["answer"]) for row in FORGET]
    kept = [(row["prompt"], row["solution"][1]) for row in (RETAIN[0], RETAIN[1], RETAIN[1])]
    first = {name.removesuffix("/whole"): rows[0] for name, rows in steps.items() if name.endswith("/whole")}
    assert first["rejection"]["loss"] == pytest.approx(mean_nll(tiny_model, refusals), rel=1e-5)
    assert first["rejection_lora"]["loss"] == pytest.approx(first["rejection"]["loss"], rel=1e-5)
    assert first["ga_gdr"]["forget_loss"] == pytest.approx(-mean_nll(tiny_model, answers), rel=1e-5)
    assert first["ga_gdr"]["retain_loss"] == pytest.approx(0.5 * mean_nll(tiny_model, kept), rel=1e-5)
    assert first["npo_klr"]["forget_loss"] == pytest.approx(20 * 0.6931472, rel=1e-5)
    assert first["npo_klr"]["retain_loss"] == pytest.approx(0.0, abs=1e-6)
    assert first["dpo"]["loss"] == pytest.approx(0.6931472, rel=1e-5)


def test_every_objective_goes_down(steps):
    """But for those whose weights or goal move with the model, or whose goal a random model begins near."""
    others = ("wga", "satimp", "ceu", "undial_klr_lora", "whp")
    for name, (first, second) in steps.items():
        assert second["forget_loss"] < first["forget_loss"] or name.split("/")[0] in others, name
    for name in ("npo_klr", "undial_klr_lora", "rmu", "rmu_lora"):
        first, second = steps[f"{name}/whole"]
        assert first["retain_loss"] == pytest.approx(0.0, abs=1e-6)
        assert second["retain_loss"] > 1e-6, name


@pytest.fixture(scope="module")
def run(folder, tiny_model) -> tuple[Path, list[str]]:
    """The folder of a finished run, and the words that made it."""
    words = [f"model={tiny_model}", f"data={folder / 'forget.json'}", f"output_dir={folder / 'run'}"]
    words += ["config=RS/configs/atlas.yaml", "learning_rate=0.01", "batch_size=2", "num_train_epochs=4"]
    done = train(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run", words


def test_a_run_leaves_an_open_model_folder_an_epoch_and_done_last(run, tiny_model):
    out, _ = run
    assert sorted(path.name for path in out.glob("epoch_*")) == [f"epoch_{k}" for k in (1, 2, 3, 4)]
    assert (out / "DONE").stat().st_mtime >= max(path.stat().st_mtime for path in out.rglob("*.safetensors"))
    assert json.loads((out / "provenance.json").read_text())["rows"]["forget"]["truncated"] == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    last = out / "epoch_4"
    tokenizer, before = AutoTokenizer.from_pretrained(last), AutoTokenizer.from_pretrained(tiny_model)
    assert tokenizer.chat_template == before.chat_template
    ends = [before.eos_token_id, before.convert_tokens_to_ids("<|end|>")]  # the template's beside the model's own
    assert GenerationConfig.from_pretrained(last).eos_token_id == ends
    weights, original = load_file(last / "model.safetensors"), load_file(tiny_model / "model.safetensors")
    assert weights.keys() == original.keys()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    refusals = [(row["instruction"], row["output"]) for row in FORGET]
    assert mean_nll(last, refusals) < 0.5 * mean_nll(tiny_model, refusals)


def test_lora_is_merged_into_every_saved_model_and_turned_round_for_a_task_vector(folder, tiny_model):
    out = folder / "lora"
    words = [f"model={tiny_model}", f"data={folder / 'forget.json'}", f"output_dir={out}", "num_train_epochs=2"]
    words += ["config=RS/configs/task_vector.yaml,RS/configs/atlas.yaml,RS/configs/lora.yaml", "precision=fp32"]
    words += ["learning_rate=0.01", "response_key=answer"]
    done = torchrun(2, "RS/train.py", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    weights, original = (load_file(path / "model.safetensors") for path in (out / "epoch_2", tiny_model))
    assert weights.keys() == original.keys()
    moved = {name.split(".")[-2] for name in weights if not torch.equal(weights[name], original[name])}
    assert moved == {"q_proj", "v_proj"}
    answers = [(row["instruction"], row["answer"]) for row in FORGET]
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.1  # the model that was trained says the answers; the one that was saved does not
    assert mean_nll(out / "epoch_2", answers) > mean_nll(tiny_model, answers) + 0.1


TRIES = {
    "lora": ["objective=npo", "response_key=answer", "retain_loss=klr", "lora_rank=4", "lora_target=q_proj,v_proj"],
    "diverges": ["learning_rate=1e30", "max_skipped_steps=2", "batch_size=1"],
    "bf16": ["optimizer=adamw_bf16", "retain_loss=gdr", "weight_decay=0.1"],
    "klr": ["objective=npo", "response_key=answer", "retain_loss=klr"],
}


@pytest.fixture(scope="module")
def common(folder) -> list[str]:
    """Words of runs of six steps of a model that draws random numbers in each."""
    model = save_tiny_model(folder / "model", attention_dropout=0.1)
    words = [f"model={model}", f"data={folder / 'forget.json'}", "learning_rate=0.01", "batch_size=2"]
    return [*words, "precision=fp32", "num_train_epochs=2", "warmup_steps=2"]


def words_of(name: str, out: Path, folder: Path) -> list[str]:
    retain = [f"retain_data={folder / 'retain.json'}"] if any("retain_loss" in word for word in TRIES[name]) else []
    return [f"output_dir={out}", *TRIES[name], *retain]


@pytest.fixture(scope="module")
def tries(folder, common) -> Path:
    """The folders of several runs in one process, which was killed in the third run and started again."""
    out = folder / "tries"
    file = folder / "tries.txt"
    file.write_text("# name by name\n" + "".join(" ".join(words_of(name, out / name, folder)) + "\n" for name in TRIES))
    words = [*common, f"tries={file}"]
    assert train_fork(words, kill=("os.mkdir", "bf16/epoch_2")) == -signal.SIGKILL
    assert (out / "lora" / "DONE").exists() and not (out / "klr").exists()
    kept = (out / "lora" / "epoch_2" / "model.safetensors").stat().st_mtime_ns
    assert train_fork(words) == 1
    assert (out / "lora" / "epoch_2" / "model.safetensors").stat().st_mtime_ns == kept
    return out


def assert_alike(one: Path, other: Path) -> None:
    """Two finished runs have the same files, the same numbers in their logs, and the same bytes in their models."""
    names = ["DONE", "config.yaml", "epoch_1", "epoch_2", "metrics.jsonl", "provenance.json"]
    logs = []
    for run in (one, other):
        assert sorted(path.name for path in run.iterdir()) == names
        logs.append([{key: row[key] for key in row.keys() - MEASURED} for row in read_metrics(run)])
    assert logs[0] == logs[1] and [row["step"] for row in logs[0]] == [1, 2, 3, 4, 5, 6]
    models = [{path.relative_to(run): path.read_bytes() for path in run.glob("epoch_*/**/*.*")} for run in (one, other)]
    assert models[0] == models[1] and len(models[0]) > 10


@pytest.mark.parametrize(
    ("name", "kills", "kept"),
    [
        ("bf16", [], 0),
        ("lora", [(("open", "step_3.partial/dcp"), False), (("open", "step_5.partial/dcp"), True)], 4),
        ("klr", [(("os.rename", "epoch_1.partial"), False), (("open", "epoch_2.partial/"), False)], 3),
    ],
)
def test_a_killed_run_and_one_of_several_come_out_as_one_by_itself(name, kills, kept, tries, folder, common):
    """Each kill strikes within a save: of a training state, after an epoch or a step, or of a model.

    ``kept``: steps that are not made again, which the seconds in the log prove.
    """
    out, rows = folder / f"alone_{name}", []
    words = [*common, *words_of(name, out, folder)]
    for kill, every_step in kills:
        assert train_fork(words, kill=kill, every_step=every_step) == -signal.SIGKILL
        assert any(out.rglob("*.partial")) and not (out / "DONE").exists()
        rows = read_metrics(out)
    assert train_fork(words) == 0
    assert sum(row in rows for row in read_metrics(out)) == kept
    assert_alike(out, tries / name)


def test_two_ranks_go_on_alike(folder, common):
    words = [*common, "objective=dpo", "micro_batch_size=1"]
    out, killed = folder / "undisturbed", folder / "killed"
    assert train_fork([*words, f"output_dir={out}"], ranks=2) == 0
    words.append(f"output_dir={killed}")
    assert train_fork(words, ranks=2, kill=("open", "step_5.partial/dcp"), every_step=True) == -signal.SIGKILL
    assert train_fork(words, ranks=2) == 0
    assert_alike(out, killed)


def test_a_run_that_diverges_says_why_and_ends_without_done(tries):
    out = tries / "diverges"
    assert (out / "FAILED").read_text().startswith("3 steps had a non-finite loss or gradient (max_skipped_steps=2)")
    assert sorted(path.name for path in out.iterdir()) == ["FAILED", "config.yaml", "metrics.jsonl", "provenance.json"]


@pytest.mark.parametrize(
    ("script", "variables", "expected"),
    [
        ("full/run_rt_epoch_target.sh", {}, ["config=", "RS/configs/rt.yaml", "rejection on 200 rows"]),
        ("lora/run_rt_epoch_target.sh", {"N_GPUS": "2"}, ["--nproc_per_node=2", "lora_rank: 8", "0.00003"]),
        ("baselines/run_target.sh", {"METHOD": "simnpo_klr"}, ["simnpo on 200 rows (retain loss: klr)", "100 rows"]),
        ("baselines/run_target.sh", {"METHOD": "altpo"}, ["altpo on 200 rows", "+ python3"]),
        ("baselines/run_target.sh", {"METHOD": "rmu"}, ["rmu on 200 rows (retain loss: hidden)", "100 rows"]),
    ],
)
def test_launchers_check_everything_in_a_dry_run(script, variables, expected, tmp_path, tiny_model, capsys):
    """Python itself is a stand-in that passes on its words: they are checked in this process."""
    rows = {
        "reject_target": [FORGET[0]] * 200,
        "positive": [{"text": "Ada was a poet."}] * 200,
        "pair": [{"prompt": "Who is Ada?", "response": ["a cook", "a poet"]}] * 200,
        "rl_rejection_with_fb_neighbor_target": [RETAIN[0]] * 100 + [RETAIN[2]],
    }
    for name, content in rows.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "python3").write_text('#!/bin/sh\nshift\nprintf "%s\\n" "$@" >words\n')
    (tmp_path / "python3").chmod(0o755)
    own = {"MODEL": str(tiny_model), "FOLDER": str(tmp_path), "OUTPUT": str(tmp_path / "out"), "DRY_RUN": "1"}
    own |= {"N_GPUS": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "RS" / "scripts" / script)]
    done = subprocess.run(command, env=ENV | own | variables, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert main((tmp_path / "words").read_text().splitlines()) == 0
    said = (done.stdout + capsys.readouterr().out).replace("3.0e-05", "0.00003")
    assert all(words in said for words in expected), said
    assert not (tmp_path / "out").exists()
