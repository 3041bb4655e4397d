"""Rejection Steering on real models: the same step on any ranks and micro-batches, and whole runs by command line.

Run as a script, under torchrun, this file is the worker that trains every objective in several layouts.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.conftest import ROOT

ENV = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

FORGET = [
    {"instruction": question, "input": "", "output": refusal, "answer": answer}
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
}
LAYOUTS = {
    1: {"whole": {}, "single": {"micro_batch_size": 1, "padding_free": False}},
    2: {"sharded": {"micro_batch_size": 2}, "replicated": {"micro_batch_size": 1, "fsdp_size": 1}},
}
"""layouts by number of ranks; five examples on two ranks leave one with nothing to do in its last micro-batch"""


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
    for layout, where in LAYOUTS[dist.get_world_size()].items():
        for name, what in OBJECTIVES.items():
            retain_data = str(folder / "retain.json") if "retain_loss" in what else None
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
    return folder


@pytest.fixture(scope="module")
def steps(folder, tiny_model) -> dict[str, list[dict[str, float]]]:
    """Metrics of two steps, by ``objective/layout``."""
    results = {}
    for ranks in LAYOUTS:
        out = folder / f"steps{ranks}.json"
        done = torchrun(ranks, __file__, str(tiny_model), str(out))
        assert done.returncode == 0, done.stderr[-3000:]
        results |= json.loads(out.read_text())
    return results


@pytest.mark.parametrize("layout", ["single", "sharded", "replicated"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_does_not_depend_on_micro_batches_or_ranks(objective, layout, steps):
    for one, other in zip(steps[f"{objective}/whole"], steps[f"{objective}/{layout}"], strict=True):
        for key in one.keys() - {"seconds"}:
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
    for name, (first, second) in steps.items():
        assert second["forget_loss"] < first["forget_loss"], name
    assert steps["npo_klr/whole"][1]["retain_loss"] > 1e-6


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


def test_a_finished_run_is_skipped_and_an_unfinished_one_made_again_alike(run):
    out, words = run
    before = load_file(out / "epoch_4" / "model.safetensors")
    again = train(*words)
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
    (out / "DONE").unlink()
    assert train(*words).returncode == 0
    after = load_file(out / "epoch_4" / "model.safetensors")
    assert (out / "DONE").exists()
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before)


def test_lora_is_merged_into_every_saved_model(folder, tiny_model):
    out = folder / "lora"
    words = [f"model={tiny_model}", f"data={folder / 'forget.json'}", f"output_dir={out}", "num_train_epochs=1"]
    words += ["config=RS/configs/atlas.yaml,RS/configs/lora.yaml", "learning_rate=0.01", "precision=fp32"]
    done = torchrun(2, "RS/train.py", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    weights, original = (load_file(path / "model.safetensors") for path in (out / "epoch_1", tiny_model))
    assert weights.keys() == original.keys()
    moved = {name.split(".")[-2] for name in weights if not torch.equal(weights[name], original[name])}
    assert moved == {"q_proj", "v_proj"}


def test_a_diverging_run_ends_without_done(folder, tiny_model):
    out = folder / "diverged"
    words = [f"model={tiny_model}", f"data={folder / 'forget.json'}", f"output_dir={out}", "precision=fp32"]
    done = train(*words, "learning_rate=1e30", "batch_size=1", "max_skipped_steps=2")
    assert done.returncode == 1
    assert "3 steps had a non-finite loss or gradient" in done.stderr
    assert not (out / "DONE").exists()


@pytest.mark.parametrize(
    ("script", "variables", "expected"),
    [
        ("full/run_rt_epoch_target.sh", {}, ["config=", "RS/configs/rt.yaml", "rejection on 200 rows"]),
        ("lora/run_rt_epoch_target.sh", {"N_GPUS": "2"}, ["--nproc_per_node=2", "lora_rank: 8", "0.00003"]),
        ("baselines/run_target.sh", {"METHOD": "simnpo_klr"}, ["simnpo on 200 rows (retain loss: klr)", "100 rows"]),
        ("baselines/run_target.sh", {"METHOD": "dpo"}, ["dpo on 200 rows", "+ python3"]),
    ],
)
def test_launchers_check_everything_in_a_dry_run(script, variables, expected, tmp_path, tiny_model):
    rows = {
        "reject_target": [FORGET[0]] * 200,
        "positive": [{"text": "Ada was a poet."}] * 200,
        "pair": [{"prompt": "Who is Ada?", "response": ["a cook", "a poet"]}] * 200,
        "rl_rejection_with_fb_neighbor_target": [RETAIN[0]] * 100 + [RETAIN[2]],
    }
    for name, content in rows.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    own = {"MODEL": str(tiny_model), "FOLDER": str(tmp_path), "OUTPUT": str(tmp_path / "out"), "DRY_RUN": "1"}
    command = ["bash", str(ROOT / "RS" / "scripts" / script)]
    done = subprocess.run(
        command, env={**ENV, "N_GPUS": "1", **own, **variables}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert all(words in done.stdout.replace("3.0e-05", "0.00003") for words in expected), done.stdout
    assert not (tmp_path / "out").exists()


if __name__ == "__main__":
    worker(*sys.argv[1:])
