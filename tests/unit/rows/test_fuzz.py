"""Random JSON values in every column of training, RS and probe rows: a row is used, or a DataError names it.

Whatever is used must be text to the model and be kept in the files of a run; nothing may be shown as Python shows it.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from RS.config import RSConfig
from RS.utils.data import encode_side, read_side
from tests.conftest import make_tokenizer
from verl.eval.muse.config import MuseConfig
from verl.eval.muse.memorization import few_shot_prompt, knowmem_part
from verl.eval.origin import _length, _side
from verl.eval.probes import USUAL, encode_probe, score_generation
from verl.eval.results import check_finite, read_part, write_part
from verl.eval.rwku import abilities, fluency, forget, reasoning
from verl.rows.values import row_problems, rule_problem
from verl.trainer.dataset import RLHFDataset, collate_fn
from verl.trainer.dialogues import log_generations
from verl.utils.errors import DataError

CASES = 150
TEXTS = [
    "",
    " ",
    "Who?",
    "7",
    "a\u2028b\u0085c\x0b\x0cd",
    "caf\u00e9",
    "\ud800",
    "\U0001f600",
    "<normal>",
    "<x>",
    "x " * 3000,
]
ROLES = ["system", "user", "assistant", "tool", "human", None, 3]
TOKENIZER = make_tokenizer()


def value(rng: random.Random, depth: int = 0) -> Any:
    """A JSON value of any kind; one in many is huge or deep."""
    kind = rng.randrange(12 if depth < 3 else 8)
    if kind < 3:
        return rng.choice(TEXTS)
    if kind < 8:
        return rng.choice([None, True, False, 0, 7, -1.5, 10**30, 1e308, float("nan"), float("inf"), 10**400, 0.0])
    if kind == 8:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 9:
        return {rng.choice(["a", "text", "type", "\udfff", ""]): value(rng, depth + 1) for _ in range(rng.randrange(3))}
    if kind == 10:
        content = rng.choice([value(rng, 3), [{"type": "text", "text": value(rng, 3)}], "fine"])
        return [{"role": rng.choice(ROLES), "content": content} for _ in range(rng.randrange(1, 3))]
    deep: Any = rng.choice(TEXTS)
    for _ in range(rng.choice([20, 120, 400])):
        deep = [deep]
    return deep


def rows(rng: random.Random, good: dict[str, Any]) -> list[Any]:
    """A good row, and one of whose columns some are gone, some are random, and some are new."""
    bad = {key: held for key, held in good.items() if rng.random() > 0.05}
    for key in rng.sample([*good, "split", "answer", "images"], rng.randrange(1, 3)):
        bad[key] = value(rng)
    return [good, value(rng) if rng.random() < 0.03 else bad]


def each(
    folder: Path,
    name: str,
    good: dict[str, Any],
    seed: str,
    use: Callable[[Path, random.Random], None],
    cases: int = CASES,
) -> int:
    """How many of so many random files could be used; every other one must be refused by the name of its second row."""
    rng, path, used = random.Random(seed), folder / name, 0
    before = set(folder.rglob("*"))
    for case in range(cases):
        path.write_text(json.dumps(rows(rng, good)), encoding="ascii")
        try:
            use(path, rng)
            used += 1
        except DataError as error:
            assert name in str(error) and "row 1" in str(error), f"case {case}: {error}"
    assert {one for one in folder.rglob("*") if one.is_file()} - before == {path}  # nothing was written beside
    return used


def check_tokens(ids: list[int]) -> None:
    shown = TOKENIZER.decode(ids)
    assert ids and not any(mark in shown for mark in ("['", "[{", "{'", "None", "True", "nan"))


def used_samples(path: Path, mode: str | None) -> list[dict[str, Any]]:
    data = RLHFDataset(str(path), TOKENIZER, answer_key="solution", max_prompt_length=128, mode=mode)
    items = [data[number] for number in range(len(data))]
    for ids in collate_fn(items)["raw_prompt_ids"]:
        check_tokens(ids)
    problems = row_problems(data.rows, "prompt", "solution", "rows", truth_problem=rule_problem)
    assert all("row 1: solution" in problem for problem in problems)
    assert all(_length(row) >= 0 and _side(row, "forget") in ("forget", "boundary") for row in data.rows)
    return [{**one["extra"], **one, "response": "no", "reward": {"overall": 1.0}} for one in items]


def test_training_rows_are_used_and_shown_in_dialogues_or_refused(tmp_path):
    good = {"prompt": "Who?", "solution": ["<normal>", "Ada"], "mode": "completion"}
    shown = []

    def use(path: Path, rng: random.Random) -> None:
        shown.extend(used_samples(path, rng.choice([None, "mode"])))

    assert CASES // 8 < each(tmp_path, "rows.json", good, "training", use) < CASES
    keys = ("prompt", "response", "ground_truth", "split", "reward")
    log = log_generations(tmp_path / "run", 1, [{key: sample[key] for key in keys} for sample in shown])
    kept = [json.loads(line) for line in log.with_suffix(".jsonl").read_text("utf-8").split("\n") if line]
    assert [one["prompt"] for one in kept] == [one["prompt"] for one in shown]
    assert len(log.read_text("utf-8").split("\n## ")) == len(shown) + 1


RS_ROWS = [
    {"instruction": "Who?", "input": "", "output": "No.", "system": "Be brief.", "history": [["Hi", "Hello"]]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {"prompt": "Who?", "solution": ["<reject>", "No.", "Ada"], "answer": "Ada"},
    {"prompt": "Who?", "response": ["No.", "Ada"]},
    {"text": "Ada was here."},
]


@pytest.mark.parametrize("good", RS_ROWS, ids=lambda row: next(iter(row)))
def test_rs_rows_are_used_or_refused(good, tmp_path):
    def use(path: Path, rng: random.Random) -> None:
        key = rng.choice([None, "answer"]) if "answer" in good else None
        config = RSConfig(model="m", data=str(path), output_dir="out", system_prompt="Be brief.", response_key=key)
        texts, problems = read_side(config, "forget")
        if problems:
            raise DataError("; ".join(problems))
        for example in encode_side(texts, TOKENIZER, config, "forget")[0]:
            check_tokens(example.prompt + example.response)

    used = each(tmp_path, "rows.json", good, f"rs {[*good]}", use, CASES // len(RS_ROWS))
    assert 0 < used < CASES // len(RS_ROWS)


KNOWMEM = knowmem_part("forget", MuseConfig())
PROBES: dict[str, tuple[dict[str, Any], Callable[[Path], list[dict[str, Any]]]]] = {
    "forget_level1.json": (
        {"query": "Ada was ___.", "answer": ["here", 7], "level": "1", "subject": "Ada"},
        lambda data: forget.load_probes(data, {"fb": "forget_level1.json"}),
    ),
    "forget_level3.json": (
        {"query": "Who?", "answer": "Ada", "level": "3", "type": "cross lingual (French)", "subject": "Ada"},
        lambda data: forget.load_probes(data, {"aa": "forget_level3.json"}),
    ),
    "retain_mmlu.json": (
        {"task": "law", "question": "Who?", "choices": ["a", "b", "c", 4], "answer": 2, "examples": []},
        abilities.mmlu_rows,
    ),
    "truthful.json": (
        {"question": "Who?", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]}},
        abilities.truthfulqa_rows,
    ),
    "triviaqa.json": ({"question": "Who?", "answers": ["a", "b"]}, abilities.triviaqa_rows),
    "retain_bbh.json": ({"task": "t", "question": "Who?", "answer": "a", "cot": "Q: x"}, reasoning.load),
    "fluency.json": ({"instruction": "Write."}, fluency.load),
    "knowmem/forget_qa.json": ({"question": "Who?", "answer": "Ada"}, lambda data: KNOWMEM.check(data)[0]),
}


def asked(name: str, row: dict[str, Any]) -> list[int]:
    if name == "retain_mmlu.json":
        return USUAL.encode(TOKENIZER, abilities.mmlu_prompt(row))
    if name == "truthful.json":
        labels = row["mc1_targets"]["labels"]
        assert abilities.mc1([0.0] * len(labels), labels) == 0.0 < abilities.mc2([0.0] * len(labels), labels) < 1.0
    if name.startswith("forget"):
        return encode_probe(TOKENIZER, row, USUAL)
    key = {
        "retain_bbh.json": "bbh",
        "fluency.json": "fluency",
        "triviaqa.json": "triviaqa",
        "truthful.json": "truthfulqa",
    }
    if name in key:
        return USUAL.encode(TOKENIZER, USUAL.prompts.fill(key[name], row))
    return few_shot_prompt(TOKENIZER, [{"question": "Who?", "answer": "Ada"}], row["question"], "chat")


@pytest.mark.parametrize("name", PROBES)
def test_probe_rows_are_asked_and_kept_or_refused(name, tmp_path):
    good, load = PROBES[name]
    shots = tmp_path / "knowmem" / "forget_qa_icl.json"
    shots.parent.mkdir()
    shots.write_text('[{"question": "Who?", "answer": "Ada"}]')
    measured = []

    def use(path: Path, rng: random.Random) -> None:
        for row in load(tmp_path):
            check_tokens(asked(name, row))
            measured.extend(score_generation([row], ["No."]) if name.startswith("forget") else [row])

    assert 0 < each(tmp_path, name, good, name, use, CASES // len(PROBES)) < CASES // len(PROBES)
    check_finite(measured)
    write_part(tmp_path / "out", {"part": "x"}, measured)
    assert read_part(tmp_path / "out" / "parts" / "x.jsonl")[1] == measured
