"""The whole MUSE suite on small models and Atlas' book: every number a second time from its definition.

A base model (no chat template) and a chat model, on vLLM; ROUGE-L by ``rouge-score``, Min-K% one text at a time, AUC by
counting pairs. Then the table.
"""

import json

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.atlas.book import book_rows
from data.atlas.people import build_world
from scripts.make_table import main as make_table
from tests.conftest import save_tiny_model
from tests.training_kit import run_main
from verl.eval.main import main

ROWS_A_FILE = 10
LENGTHS = {"verbmem": 128, "knowmem_forget": 32, "knowmem_retain": 32}
SCORER = RougeScorer(["rougeL"], use_stemmer=False)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    folder = tmp_path_factory.mktemp("muse") / "book"
    for name, rows in book_rows(build_world(3)).items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows[:ROWS_A_FILE]))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The model, which has no chat template, and the one that was retrained."""
    folder = tmp_path_factory.mktemp("models")
    base, retrained = (
        save_tiny_model(folder / name, seed=seed, max_position_embeddings=2048) for seed, name in enumerate("ab")
    )
    (base / "chat_template.jinja").unlink()
    return base, retrained


@pytest.fixture(scope="module")
def both(models, book, tmp_path_factory):
    """Of each model, measured in one process: values and rows by part, and the folder.

    The second takes over the first one's engine. CPU kernels pack the output head; where it shares the embedding's
    weights, vLLM's reload forgets that copy, and a model would be read through the head of the one before.
    """
    out = tmp_path_factory.mktemp("out")
    folders = [out / "base", out / "chat"]
    words = [f"{key}=[{','.join(map(str, values))}]" for key, values in (("model", models), ("out", folders))]
    words += ["suite=muse", f"data={book}", f"muse.retrain_model={models[1]}"]
    assert run_main(main, *words, VLLM_LOGGING_LEVEL="INFO").count("Initializing a V1 LLM engine") == 1
    return [read_results(folder) for folder in folders]


def read_results(out):
    parts = json.loads((out / "results.json").read_text())["parts"]
    rows = {part: [json.loads(line) for line in (out / f"parts/{part}.jsonl").open()][1:] for part in parts}
    values = {part: {name: one["value"] for name, one in entry["metrics"].items()} for part, entry in parts.items()}
    return values, rows, out


@pytest.fixture(scope="module")
def measured(both):
    return both[0]


@pytest.fixture(scope="module")
def chat(both):
    return both[1]


@pytest.fixture(scope="module")
def network(models):
    return AutoModelForCausalLM.from_pretrained(models[0]).eval(), AutoTokenizer.from_pretrained(models[0])


def read(book, name):
    return json.loads((book / f"{name}.json").read_text())


def prompts(book, part) -> list[str]:
    """MUSE's prompts, written out once more."""
    if part == "verbmem":
        return [row["prompt"] for row in read(book, "verbmem/forget")]
    split = part.removeprefix("knowmem_")
    shots = [
        f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in read(book, f"knowmem/{split}_qa_icl")
    ]
    return ["".join(shots) + f"Question: {row['question']}\nAnswer: " for row in read(book, f"knowmem/{split}_qa")]


def whole(text: str) -> str:
    """Without the character that the last token begins: vLLM leaves it out, the tokenizer marks it."""
    return text.rstrip("\ufffd")


@pytest.mark.parametrize("part", LENGTHS)
def test_answers_are_the_models_greedy_ones_behind_bos(measured, network, book, part):
    model, tokenizer = network
    for text, row in list(zip(prompts(book, part), measured[1][part], strict=True))[:4]:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]])
        answer = model.generate(ids, max_new_tokens=LENGTHS[part], do_sample=False)[0, ids.shape[1] :]
        assert whole(row["response"]) == whole(tokenizer.decode(answer, skip_special_tokens=True))


def test_verbmem_is_rouge_score_f1(measured, network, book):
    tokenizer = network[1]
    scores = []
    for row, given in zip(measured[1]["verbmem"], read(book, "verbmem/forget"), strict=True):
        reference = tokenizer.decode(tokenizer.encode(given["gt"], add_special_tokens=False)[:128])
        scores.append(SCORER.score(reference, row["response"])["rougeL"].fmeasure)
    assert measured[0]["verbmem"]["f1"] == pytest.approx(100 * np.mean(scores), abs=1e-6)


@pytest.mark.parametrize("split", ["forget", "retain"])
def test_knowmem_is_rouge_score_of_what_muse_cuts(measured, book, split):
    scores = []
    for row, given in zip(measured[1][f"knowmem_{split}"], read(book, f"knowmem/{split}_qa"), strict=True):
        answer = row["response"].split("\n\n")[0].split("\nQuestion")[0].split("Question:")[0]
        scores.append(SCORER.score(given["answer"], answer)["rougeL"])
    found = measured[0][f"knowmem_{split}"]
    assert found["f1"] == pytest.approx(100 * np.mean([score.fmeasure for score in scores]), abs=1e-6)
    assert found["recall"] == pytest.approx(100 * np.mean([score.recall for score in scores]), abs=1e-6)


def direct_auc(folder, book) -> float:
    """How often a forget text's Min-K% loss is above a holdout text's, pair by pair."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    losses = {}
    for split in ("forget", "holdout"):
        losses[split] = []
        for row in read(book, f"privleak/{split}"):
            ids = torch.tensor([tokenizer.bos_token_id, *tokenizer.encode(row["text"], add_special_tokens=False)])
            with torch.no_grad():
                table = model(ids[None]).logits[0].double().log_softmax(-1)
            given = table[:-1].gather(1, ids[1:, None])[:, 0].sort().values
            losses[split].append(-given[: int(0.4 * len(given))].mean().item())
    pairs = [(a > b) + (a == b) / 2 for a in losses["forget"] for b in losses["holdout"]]
    return sum(pairs) / len(pairs)


def test_privleak_is_the_difference_of_two_aucs(measured, models, book):
    unlearned, retrained = (direct_auc(folder, book) for folder in models)
    found = measured[0]["privleak"]
    assert (found["auc"], found["auc_retrain"]) == pytest.approx((unlearned, retrained), abs=1e-6)
    assert found["privleak"] == pytest.approx(100 * (unlearned - retrained) / retrained, abs=1e-6)


def test_a_chat_model_is_asked_in_turns(chat, models, book):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(models[1]), AutoTokenizer.from_pretrained(models[1])
    shots = "".join(
        f"<|user|>{row['question']}<|end|><|assistant|>{row['answer']}<|end|>"
        for row in read(book, "knowmem/forget_qa_icl")
    )
    for row in chat[1]["knowmem_forget"][:2]:
        text = f"{shots}<|user|>{row['question']}<|end|><|assistant|>"
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        answer = model.generate(ids, max_new_tokens=32, do_sample=False)[0, ids.shape[1] :]
        assert whole(row["response"]) == whole(tokenizer.decode(answer, skip_special_tokens=True))


def test_from_results_to_the_printed_row(measured, tmp_path):
    assert make_table(["kind=muse", f"out={tmp_path}", f"rows.Original={measured[2]}"]) == 0
    [row] = [line for line in (tmp_path / "table.md").read_text().split("\n") if line.startswith("| Original |")]
    found = measured[0]
    values = [found["verbmem"]["f1"], found["knowmem_forget"]["f1"], found["privleak"]["privleak"]]
    shown = [f"{value:.1f}" for value in [*values, found["knowmem_retain"]["f1"]]]
    shown.insert(3, f"{found['privleak']['auc']:.3f}")
    assert row == f"| Original | {' | '.join(shown)} |"
