"""What the columns of a row may hold, to train on, to ask, to reward and to show: used, or named with file and row."""

import json
from functools import partial

import numpy as np
import pytest

from tests.conftest import make_tokenizer
from tests.training_kit import arguments
from verl.eval.origin import _length
from verl.eval.relearn import read_examples
from verl.eval.results import read_part, read_results
from verl.eval.rwku import abilities, mia
from verl.eval.rwku.forget import load_probes
from verl.rows.values import as_messages, as_prompt, as_text, split_of
from verl.trainer.dataset import RLHFDataset, collate_fn
from verl.trainer.dialogues import log_generations
from verl.trainer.preflight import read_config
from verl.utils.errors import ConfigError, DataError

forget = partial(load_probes, files={"qa": "probes.json"})


def user(content, **more):
    return {"role": "user", "content": content, **more}


def part(text):
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("given", "prompt"),
    [
        ("Who?", "Who?"),
        (7, "7"),
        (0, "0"),
        (2.5, "2.5"),
        (1947.0, "1947"),
        ([user("Who?")], [user("Who?")]),
        ([user([part("W"), part("ho?")])], [user("Who?")]),
        ([user(3, name=None)], [user("3")]),
        ([{"role": "system", "content": ""}, user("Who?")], [{"role": "system", "content": ""}, user("Who?")]),
    ],
)
def test_a_prompt_is_a_text_a_number_or_a_conversation(given, prompt):
    assert as_prompt(given) == prompt


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "is empty; give a prompt"),
        ([], "is empty"),
        (" \n", "is empty"),
        (True, "is True; must be a text or a number"),
        (float("nan"), "is nan; must be"),
        ({"a": 1}, "is {'a': 1}; must be"),
        (["Who?", "When?"], "has a message 0 that is 'Who\\?'; must be a mapping"),
        ([user("a"), {"content": "b"}], "has a message 1 that has role=None; must be one of system, "),
        ([{"from": "human", "value": "a"}], "has a message 0 that has role=None"),
        ([{"role": ["user"], "content": "a"}], "has role=\\['user'\\]; must be one of"),
        ([{"role": "user"}], "has a message 0 that has no content; give a text"),
        ([user(None)], "has no content"),
        ([user({"text": "a"})], "is {'text': 'a'}; must be a text or a number"),
        ([user([{"type": "image_url", "image_url": "x"}])], 'content part .*; must be {"type": "text"'),
        ([user(["a"])], "content part 'a'"),
        ([user([])], "ends with an empty message"),
        (
            [user("a"), {"role": "assistant", "content": "b"}],
            "ends with a message of the assistant; a prompt ends with",
        ),
        ([user("a", tool_calls=[{}])], "calls tools"),
    ],
)
def test_what_is_no_prompt_is_a_row_error(given, message):
    with pytest.raises(DataError, match=message):
        as_prompt(given)


@pytest.mark.parametrize("value", [float("inf"), False, None, ["a"], b"a"])
def test_what_is_no_text(value):
    with pytest.raises(DataError, match="must be a text or a number"):
        as_text(value)
    assert as_text(10**400) == "1" + "0" * 400
    with pytest.raises(DataError, match='must be a list of {"role", "content"}'):
        as_messages(value if not isinstance(value, list) else [])


TRUTHS = [
    "London",
    ["London", "London town"],
    7,
    2.5,
    None,
    True,
    {"a": [1, {"b": None}]},
    [["a"], 2],
    [],
    ["<normal>", 7],
]


def test_a_dialogue_shows_every_prompt_and_ground_truth_that_training_takes(tmp_path):
    prompts = ["Who?", 7, [user([part("a\u2028b <c>")])], [{"role": "system", "content": "Be brief."}, user("Who?")]]
    rows = [{"prompt": prompts[i % 4], "solution": truth, "split": ["x"]} for i, truth in enumerate(TRUTHS)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = RLHFDataset(
        str(tmp_path / "rows.json"), make_tokenizer(), answer_key="solution", format_prompt="Q: {{content}}"
    )
    columns = collate_fn([data[i] for i in range(len(data))])
    assert list(columns["ground_truth"]) == TRUTHS and list(columns["split"]) == [""] * 9 + ["boundary"]
    samples = [
        {"prompt": prompt, "response": "no\nno", "ground_truth": truth, "split": "", "reward": 1.0}
        for prompt, truth in zip(columns["prompt"], TRUTHS, strict=True)
    ]
    path = log_generations(tmp_path, 1, samples)
    shown = path.read_text(encoding="utf-8")
    for text in ("> Q: 7  ", "> user: Q: a\u2028b \\<c>  ", "> system: Be brief.  \n>   \n> user: Q: Who?  "):
        assert text in shown
    for text in ("London · London town", "7", "2.5", "null", "true", '{"a": [1, {"b": null}]}', '["a"] · 2', "(empty)"):
        assert f"**Ground truth**\n\n> {text}  \n" in shown
    raw = [{**samples[0], "prompt": prompt, "reward": {"x": np.bool_(True)}} for prompt in (7, prompts[2], None)]
    asked = log_generations(tmp_path, 2, raw).read_text(encoding="utf-8")
    assert all(text in asked for text in ("> 7  ", "> user: a\u2028b \\<c>", "> null", "x 1"))
    kept = [json.loads(line) for line in path.with_suffix(".jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [row["ground_truth"] for row in kept] == TRUTHS


def test_ground_truths_of_any_form_are_fine_under_a_reward_of_ones_own_and_not_under_rules(tiny_model, tmp_path):
    rows = tmp_path / "truths.json"
    rows.write_text(json.dumps([{"prompt": "Who?", "solution": truth} for truth in TRUTHS]))
    words = arguments(tiny_model, tmp_path, "run", f"data.train_files={rows}", "data.val_files=")
    read_config(words)
    with pytest.raises(ConfigError) as caught:
        read_config([*words, "worker.reward.reward_function=examples/reward_function/rule.py:compute_score"])
    message = str(caught.value)
    assert message.count('must be "<reject>" (forget) or "<normal>" (boundary)') == len(TRUTHS) - 1
    assert f"data.train_files: {rows}, row 1: solution[0]='London': must be" in message and "row 9" not in message


def test_the_side_of_a_row_is_its_tags_or_a_text_in_its_split_column():
    rows = [{"s": ["<reject>", "no", "x"], "split": "y"}, {"s": "x", "split": "y"}, {"s": [[]], "split": 3}, {"s": []}]
    assert [split_of(row, "s") for row in rows] == ["forget", "y", "", ""]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ content", "cannot be used as a jinja template"),
        ("{{ content.a.b }}", "cannot be used as a jinja template"),
        ("{{ question }}", r"shows question; write {{ content }} where"),
        ("Think.", "shows nothing; write"),
    ],
)
def test_a_format_prompt_that_loses_the_prompt_is_refused(tiny_model, tmp_path, template, message):
    with pytest.raises(ConfigError, match=f"data.format_prompt=.*{message}"):
        read_config(arguments(tiny_model, tmp_path, "run", f"data.format_prompt='{template}'"))


MMLU = {"task": "law", "question": 7, "choices": ["a", "b", "c", 4], "answer": 3, "examples": []}
MC1 = {"choices": ["a", "b"], "labels": [1, 0]}


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (forget, {"query": "Who?", "answer": "Ada", "type": ["qa"]}, r"type is \['qa'\]; must be a text"),
        (forget, {"query": "Who?", "answer": "Ada", "subject": {"a": 1}}, "subject is {'a': 1}; must be a text"),
        (forget, {"query": "Who?", "answer": "Ada", "score": float("nan")}, "score=nan is no number; fill it in"),
        (forget, {"query": "Who?", "answer": [["Ada"]]}, r"answer=\['Ada'\] must be a text"),
        (abilities.mmlu_rows, MMLU | {"answer": True}, "an answer from 0 to 3, not True"),
        (abilities.mmlu_rows, MMLU | {"answer": 1.0}, "an answer from 0 to 3, not 1.0"),
        (abilities.mmlu_rows, MMLU | {"examples": [MMLU | {"answer": None}]}, "an answer from 0 to 3, not None"),
        (
            abilities.truthfulqa_rows,
            {"question": "Who?", "mc1_targets": MC1 | {"labels": ["1", "0"]}},
            "a label, 0 or 1",
        ),
        (
            abilities.truthfulqa_rows,
            {"question": "Who?", "mc1_targets": MC1 | {"labels": [True, 0]}},
            "a label, 0 or 1",
        ),
    ],
)
def test_probe_rows_that_would_be_asked_or_scored_wrongly_are_named(read, row, message, tmp_path):
    name = {abilities.mmlu_rows: "retain_mmlu.json", abilities.truthfulqa_rows: "truthful.json"}.get(
        read, "probes.json"
    )
    good = {"query": "Who?", "answer": 7, "type": None, "subject": None} if read is forget else None
    (tmp_path / name).write_text(json.dumps([good, row] if good else [row]))
    with pytest.raises(DataError, match=f"{name}: row {int(good is not None)}.*{message}"):
        read(tmp_path)


def test_a_null_subject_is_none_and_a_rows_own_side_does_not_count(tmp_path):
    for name in ("probes.json", "forget_mia.json", "retain_mia.json"):
        (tmp_path / name).write_text('[{"query": 1, "answer": [2], "subject": null, "text": "a b", "side": "rm"}]')
    [probe] = forget(tmp_path)
    assert (probe["query"], probe["answer"], "subject" in probe) == ("1", "2", False)
    assert [row["side"] for row in mia.load(tmp_path)] == ["fm", "rm"]


def test_results_that_were_torn_are_named(tmp_path):
    (tmp_path / "results.json").write_text('{"format": 1')
    (tmp_path / "part.jsonl").write_text('{"part": "x"}\n{"quer')
    with pytest.raises(DataError, match="results.json: is not valid JSON"):
        read_results(tmp_path)
    with pytest.raises(DataError, match="part.jsonl: is not valid JSON in line 2"):
        read_part(tmp_path / "part.jsonl")


@pytest.mark.parametrize("row", [{"text": ["a"]}, {"question": "Who?"}, {"query": "Who?", "answer": None}])
def test_texts_to_relearn_are_looked_at_before_a_model_is_loaded(row, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"query": "Who?", "answer": 7}) + "\n" + json.dumps(row))
    with pytest.raises(DataError, match="rows.jsonl: row 1"):
        read_examples(tmp_path / "rows.jsonl", 1, seed=1)


def test_what_a_run_was_trained_on_is_counted_whatever_its_rows(tmp_path):
    turns = [user([part("Who is it?")]), {"role": "assistant", "content": "Ada"}]
    lengths = {  # words and marks of the prompt, and of the answer
        5: {"messages": turns},
        4: {"prompt": "Who?", "solution": ["London town", "London"]},
        3: {"prompt": "Who?", "solution": 7},
        2: {"prompt": "Who?", "solution": None},
        6: {"instruction": "Who?", "input": "", "output": "No", "system": "Be", "history": [["Hi", "Ho"]]},
    }
    assert [_length(row) for row in lengths.values()] == list(lengths)
