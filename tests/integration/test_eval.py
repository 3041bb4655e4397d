"""The whole RWKU suite on a small model, every score computed a second time from its definition, one text at a time.

On the real RWKU targets where they are here, else on an Atlas target: the formats are the same.
"""

import json
import math
import re
import shutil
import string
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from nltk.tokenize import NLTKWordTokenizer
from rouge import Rouge
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training_kit import run_main
from verl.eval.main import main
from verl.eval.prompts import read_prompts
from verl.eval.rwku.abilities import mmlu_prompt
from verl.utils.chat import encode_prompt

PARTS = ["forget", "neighbor", "mia", "memorization", "mmlu", "bbh", "truthfulqa", "triviaqa", "fluency"]
ROWS_A_FILE = 8
EXACT = {"rel": 1e-6, "abs": 1e-6}


@pytest.fixture(scope="module")
def target(request, tmp_path_factory) -> Path:
    """The first rows of every file of a target."""
    try:
        source = sorted((request.getfixturevalue("shared_data") / "RWKU" / "Target").iterdir())[0]
    except pytest.skip.Exception:
        source = request.getfixturevalue("atlas_target")
    folder = tmp_path_factory.mktemp("data") / source.name
    folder.mkdir()
    for path in source.glob("*.json"):
        rows = json.loads(path.read_text(encoding="utf-8"))
        (folder / path.name).write_text(json.dumps(rows[:ROWS_A_FILE]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def measured(target, long_tiny_model, tmp_path_factory):
    """(results.json, rows by part) of one run of the command line."""
    out = tmp_path_factory.mktemp("out")
    run(long_tiny_model, target, out)
    rows = {part: [json.loads(line) for line in (out / f"parts/{part}.jsonl").open()][1:] for part in PARTS}
    return json.loads((out / "results.json").read_text()), rows, out


def run(model, target, out, *words):
    places = f"model={model}", f"data={target}", f"out={out}"
    run_main(main, "suite=rwku", *places, *words)


def value(measured, part, name):
    return measured[0]["parts"][part]["metrics"][name]["value"]


def recall(response, answer):
    return Rouge(metrics=["rouge-l"]).get_scores(response.strip() or "NOANSWER", answer)[0]["rouge-l"]["r"]


@pytest.mark.parametrize(("part", "columns"), [("forget", ("fb", "qa", "aa")), ("neighbor", ("fb", "qa"))])
def test_probes_are_scored_as_the_rouge_package_does(measured, part, columns):
    rows = measured[1][part]
    by_column = {
        c: [100 * recall(row["response"], row["answer"]) for row in rows if row["column"] == c] for c in columns
    }
    for column, scores in by_column.items():
        assert value(measured, part, column) == pytest.approx(np.mean(scores), **EXACT)
    assert value(measured, part, "all_macro") == pytest.approx(
        np.mean([np.mean(s) for s in by_column.values()]), **EXACT
    )
    every = [score for scores in by_column.values() for score in scores]
    assert value(measured, part, "all_probe") == pytest.approx(np.mean(every), **EXACT)


def test_the_attacks_are_reported_one_by_one(measured, target):
    kinds = {row["type"] for row in json.loads((target / "forget_level3.json").read_text())}
    names = {name for name in measured[0]["parts"]["forget"]["metrics"] if name.startswith("aa/")}
    names = {name for name in names if not name.endswith("_rate")} - {"aa/containment"}
    assert names == {"aa/" + kind.split("(")[0].strip().replace(" ", "_") for kind in kinds}


@pytest.fixture(scope="module")
def model(long_tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(long_tiny_model)
    return AutoModelForCausalLM.from_pretrained(long_tiny_model, dtype=torch.float32).eval(), tokenizer


@torch.no_grad()
def log_softmax(model, ids):
    return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def test_membership_scores_from_their_definitions(measured, target, model):
    network, tokenizer = model
    limit = network.config.max_position_embeddings
    for side, name in (("fm", "forget_mia"), ("rm", "retain_mia")):
        scores = {"loss": [], "zlib": [], "min_k": [], "min_k_pp": []}
        for row in json.loads((target / f"{name}.json").read_text()):
            ids = [tokenizer.bos_token_id, *tokenizer.encode(row["text"], add_special_tokens=False)][:limit]
            table = log_softmax(network, ids)[:-1]
            given = table.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            mean = (table.exp() * table).sum(-1)
            deviation = ((table.exp() * table.square()).sum(-1) - mean.square()).sqrt()
            least = math.floor(0.2 * len(given)) or 1
            scores["loss"].append(-given.mean().item())
            scores["zlib"].append(-given.mean().item() / len(zlib.compress(row["text"].encode())))
            scores["min_k"].append(-given.sort().values[:least].mean().item())
            scores["min_k_pp"].append(-((given - mean) / deviation).sort().values[:least].mean().item())
        for method, values in scores.items():
            got = value(measured, "mia", f"{side}_{method}")
            assert got == pytest.approx(100 * np.mean(values), rel=1e-5), f"{side}_{method}"


def test_choices_are_picked_by_likelihood(measured):
    for row in measured[1]["mmlu"]:
        assert row["correct"] == (int(np.argmax(row["log_probs"])) == row["answer"])
    for row in measured[1]["truthfulqa"]:
        labels = row["mc1_targets"]["labels"]
        assert row["mc1"] == (labels[int(np.argmax(row["log_probs"]))] == 1)
        if "mc2_targets" in row:
            probs = np.exp(np.longdouble(row["mc2_log_probs"]))
            true = probs[np.array(row["mc2_targets"]["labels"]) == 1].sum()
            assert row["mc2"] == pytest.approx(float(true / probs.sum()))
    for part, name, key in (("mmlu", "accuracy", "correct"), ("truthfulqa", "mc1", "mc1")):
        assert value(measured, part, name) == pytest.approx(
            100 * np.mean([row[key] for row in measured[1][part]]), **EXACT
        )


def test_mmlu_letters_one_prompt_at_a_time(measured, target, model):
    network, tokenizer = model
    letters = [tokenizer.encode(f" {letter}", add_special_tokens=False)[-1] for letter in "ABCD"]
    asked = json.loads((target / "retain_mmlu.json").read_text())
    for row, question in zip(measured[1]["mmlu"], asked, strict=True):
        ids = encode_prompt(tokenizer, mmlu_prompt(question)) + tokenizer.encode("Answer:", add_special_tokens=False)
        assert row["log_probs"] == pytest.approx(log_softmax(network, ids[-4096:])[-1, letters].tolist(), abs=1e-4)
        assert sum(shot["question"] in mmlu_prompt(question) for shot in question["examples"]) == 5


def test_truthfulqa_choices_one_at_a_time(measured, model):
    network, tokenizer = model
    for row in measured[1]["truthfulqa"]:
        text = read_prompts().fill("truthfulqa", row)
        prompt = encode_prompt(tokenizer, text) + tokenizer.encode("A:", add_special_tokens=False)
        for choice, got in zip(row["mc1_targets"]["choices"], row["log_probs"], strict=True):
            answer = tokenizer.encode(f" {choice}", add_special_tokens=False)
            table = log_softmax(network, prompt + answer)[len(prompt) - 1 : -1]
            assert got == pytest.approx(table.gather(1, torch.tensor(answer)[:, None]).sum().item(), abs=1e-3)


def test_bbh_compares_whole_answers(measured):
    def folded(text):
        return re.sub(
            r"^\(([a-z])\)$", r"\1", " ".join(text.lower().replace("**", "").split()).strip("\"'`").rstrip(". ")
        )

    rows = measured[1]["bbh"]
    exact = [folded(row["prediction"]) == folded(row["answer"]) for row in rows]
    cut = [re.search(r"[tT]he answer is (.*?)\.", row["response"]) for row in rows]
    whole = [(found.group(1) if found else row["response"]).strip() for found, row in zip(cut, rows, strict=True)]
    over_characters = [
        any(squad_words(text or "NOANSWER") == squad_words(c) for c in row["answer"])
        for text, row in zip(whole, rows, strict=True)
    ]
    assert value(measured, "bbh", "exact_match") == pytest.approx(100 * np.mean(exact), **EXACT)
    assert value(measured, "bbh", "exact_match_over_characters") == pytest.approx(
        100 * np.mean(over_characters), **EXACT
    )


def squad_words(text):
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def f1(prediction, answer):
    given, wanted = squad_words(prediction), squad_words(answer)
    common = sum((Counter(given) & Counter(wanted)).values())
    if not given or not wanted:
        return float(given == wanted)
    return 0.0 if not common else 2 * common / (len(given) + len(wanted))


def test_triviaqa_is_the_best_token_f1(measured):
    scores = [max(f1(row["response"], answer) for answer in row["answers"]) for row in measured[1]["triviaqa"]]
    assert value(measured, "triviaqa", "f1") == pytest.approx(100 * np.mean(scores), **EXACT)
    same = [
        any(squad_words(row["response"]) == squad_words(a) for a in row["answers"]) for row in measured[1]["triviaqa"]
    ]
    assert value(measured, "triviaqa", "exact_match") == pytest.approx(100 * np.mean(same), **EXACT)


def entropy(words, n):
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = sum(grams.values())
    return -sum(count / total * math.log2(count / total) for count in grams.values())


def test_fluency_is_the_weighted_entropy_of_bi_and_trigrams(measured):
    scores = []
    for row in measured[1]["fluency"]:
        parts = re.split(r"(?<=[.!?])\s+", row["response"].strip())
        words = [word for part in parts for word in NLTKWordTokenizer().tokenize(part)]
        scores.append((2 / 3 * entropy(words, 2) + 4 / 3 * entropy(words, 3)) / 2)
    assert value(measured, "fluency", "entropy") == pytest.approx(100 * np.mean(scores), **EXACT)


def test_finished_parts_are_not_measured_again_and_lost_ones_are(measured, target, long_tiny_model):
    out = measured[2]
    kept, lost = out / "parts/forget.jsonl", out / "parts/mia.jsonl"
    stamp, content = kept.stat().st_mtime_ns, lost.read_text().splitlines()[1:]
    lost.unlink()
    run(long_tiny_model, target, out)
    assert kept.stat().st_mtime_ns == stamp
    assert lost.read_text().splitlines()[1:] == content


def test_wrong_inputs_are_all_named_with_exit_code_2(target, tmp_path, capsys):
    shutil.copytree(target, tmp_path / target.name)
    (tmp_path / target.name / "triviaqa.json").unlink()
    assert main(["model=nowhere/at/all", "suite=rwku", f"data={tmp_path / target.name}", "out=x"]) == 2
    error = capsys.readouterr().err
    assert "model=nowhere/at/all: is neither a folder nor a hub id" in error
    assert "has no triviaqa.json" in error
