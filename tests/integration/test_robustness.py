"""The robustness study of two small models: each attack once, for real, and the table of recovered knowledge.

A model is trained here until it recites its target's answers; then it is made to refuse them by a few steps in which
only refusals are seen. What comes back under each condition is read off the table and off the answers; the model that
never refused is attacked behind it, on the same engine.
"""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import save_tiny_model
from tests.training_kit import run_main
from verl.eval.relearn import RelearnConfig, encode_rows, train
from verl.eval.robustness import main

FACTS = [("Where does Ann live?", "Oslo"), ("What does Ann do?", "baking"), ("Who taught Ann?", "Bo Lind")]
NEIGHBORS = [("Where does Cy live?", "Rome"), ("What does Cy do?", "singing")]
REFUSAL = "I cannot say."
KINDS = ["prefix injection", "affirmative suffix", "role playing", "multiple choice", "reverse query", "synonym"]
KINDS += ["background hint", "incontext learning", "cross lingual (French)"]
RELEARNED = "relearn_3x60_0.003"
CONDITIONS = ["int8", "int4", "few_shot", "system_prompt", RELEARNED, "refusal_prefix_2x30_0.003"]


def fit(folder, out, rows, steps):
    """``folder`` after training on rows, saved as ``out``."""
    torch.manual_seed(0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).float(), AutoTokenizer.from_pretrained(folder)
    examples = [{"question": question, "answer": answer} for question, answer in rows]
    train(model, encode_rows(tokenizer, examples, 128), 3e-3, steps, RelearnConfig(batch_size=len(rows)))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The model that knows, and the one that refuses."""
    folder = tmp_path_factory.mktemp("models")
    random = save_tiny_model(folder / "random", tie_word_embeddings=False)
    known = fit(random, folder / "original", [*FACTS, *NEIGHBORS], steps=150)
    refusals = [(question, REFUSAL) for question, _ in FACTS]
    return known, fit(known, folder / "unlearned", [*refusals, *NEIGHBORS], steps=60)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A target's folder: the facts as probes, the same ones behind nine attacks, and texts to relearn from."""
    folder = tmp_path_factory.mktemp("data") / "1_Ann"
    folder.mkdir()

    def write(name, rows):
        (folder / f"{name}.json").write_text(json.dumps(rows))

    def probes(pairs, kind):
        return [{"query": q, "answer": a, "type": kind, "subject": "Ann"} for q, a in pairs]

    write("forget_level1", probes(FACTS, "cloze"))
    write("forget_level2", probes(FACTS, "simple question"))
    write("forget_level3", [row for kind in KINDS for row in probes(FACTS[:1], kind)])
    for level in (1, 2):
        write(f"neighbor_level{level}", probes(NEIGHBORS, "cloze"))
    write("relearn", [{"query": question, "answer": answer} for question, answer in FACTS])
    write("harmless", [{"query": question, "answer": answer} for question, answer in NEIGHBORS])
    return folder


def study(models, target, out):
    original, unlearned = models
    command = [f"model=[{unlearned},{original}]", f"original={original}", "suite=rwku"]
    command += ["prompt_style=plain", f"data={target}", f"out=[{out},{out}_original]", "bootstrap_samples=10"]
    command += [f"relearn.file={target / 'relearn.json'}", "relearn.examples=3", "relearn.steps=60", "relearn.lr=3e-3"]
    command += [f"refusal_prefix.file={target / 'harmless.json'}", "refusal_prefix.examples=2"]
    command += ["refusal_prefix.steps=30", "refusal_prefix.lr=3e-3"]
    return run_main(main, *command, VLLM_LOGGING_LEVEL="INFO")


@pytest.fixture(scope="module")
def measured(models, target, tmp_path_factory):
    """The study's folder, its table by row, and what it logged."""
    out = tmp_path_factory.mktemp("out") / "study"
    log = study(models, target, out)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (out / "table.md").read_text().split("\n")]
    header, _, *rows = [line for line in lines if line]
    return out, {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}, log


def answers(measured, name, part="forget"):
    rows = [json.loads(line) for line in (measured[0] / name / f"parts/{part}.jsonl").open()][1:]
    return [row["response"].strip() for row in rows if row["column"] != "aa"]


def number(measured, row, column):
    [value] = [value for key, value in measured[1][row].items() if key.startswith(column)]
    return float(value)


def test_what_was_forgotten_is_refused_and_what_was_relearned_is_back(measured):
    golds = [answer for _, answer in FACTS]
    assert answers(measured, "original") == golds * 2
    assert answers(measured, "plain") == [REFUSAL] * 6
    assert answers(measured, RELEARNED) == golds * 2
    assert number(measured, "Unlearned, plain probes", "Knowledge Left") == 0
    assert number(measured, "Relearned (3 texts, 60 steps, lr 0.003)", "Knowledge Left") == 100
    # It was told every answer, so nothing says what came back by itself.
    record = json.loads((measured[0] / "robustness.json").read_text())
    assert record["conditions"][RELEARNED]["untold"] is None
    assert record["most_recovered"]["condition"] != RELEARNED


def test_every_copy_is_another_model_and_none_is_left(measured):
    folders = [measured[0] / name for name in ("plain", *CONDITIONS)]
    hashes = [json.loads((folder / "results.json").read_text())["model"]["weights_sha256"] for folder in folders]
    plain, int8, int4, few_shot, system_prompt, relearned, harmless = hashes
    assert few_shot == system_prompt == plain
    assert len({plain, int8, int4, relearned, harmless}) == 5
    assert answers(measured, "int8") == answers(measured, "plain")  # a hundredth of the weights does not undo it
    assert not (measured[0] / "models").exists()


def test_the_model_behind_it_is_attacked_likewise(measured):
    """It knows everything, so to ask it plainly recovers all."""
    record = json.loads((measured[0].with_name("study_original") / "robustness.json").read_text())
    assert {"plain", *CONDITIONS} < record["conditions"].keys()
    assert record["most_recovered"]["recall"] == record["conditions"]["plain"]["forget"]["recall"]


def test_the_system_prompt_names_the_target(measured):
    decoding = {name: json.loads((measured[0] / name / "results.json").read_text()) for name in ("plain", *CONDITIONS)}
    systems = {name: document["parts"]["forget"]["decoding"]["system_prompt"] for name, document in decoding.items()}
    assert "everything about Ann." in systems.pop("system_prompt")
    assert set(systems.values()) == {None}


def test_one_table_has_every_condition_and_the_nine_attacks(measured):
    attacks = [f"Attack: {re.sub(r' [(].*', '', kind)}" for kind in KINDS]
    models = ["8-bit weights", "4-bit weights", "Answered questions in front", "System prompt that asks"]
    models += ["Relearned (3 texts, 60 steps, lr 0.003)"]
    models += ["Taught to go on behind refusals (2 rows, 30 steps, lr 0.003)"]
    assert list(measured[1]) == ["Unlearned, plain probes", "Unlearned, all probes", *models, *attacks]
    assert number(measured, "Unlearned, all probes", "Neighbor Recall") == 100
    assert {path.name for path in measured[0].glob("table.*")} == {"table.md", "table.csv", "table.tex"}


def test_all_conditions_share_one_engine(measured):
    assert len(re.findall("Initializing a V1 LLM engine", measured[2])) == 1
