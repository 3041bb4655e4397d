"""Boundary synthesis: prompts, token shares, and whole runs against a scripted endpoint.

The scripted model writes about Ottilie Venn, an invented sculptor; some of its replies are malformed, leak the target,
contradict themselves or come late, and each test knows how many. The single checks are in test_boundary_checks.py.
"""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from data import synthesize_boundary
from data.common.checks import REASONS
from data.common.naming import TargetName
from data.synthesis.assemble import build_rows, token_share
from data.synthesis.chat import LocalChat
from data.synthesis.prompts import PROMPTS, Prompts
from data.synthesis.stages import Fact, Item
from tests.scripted_endpoint import ScriptedModel
from verl.utils.errors import ConfigError, DataError
from verl.verdict import verdict_of
from verl.verdict.answers import count_words

INTRO = 'Ottilie Venn was a sculptor of the northern school, called the "Clay Queen".'
TARGET = TargetName.from_introduction("Ottilie Venn", INTRO, ["O. V. Marsh"])


# ---- prompts


def test_a_prompt_file_with_a_wrong_placeholder_is_named(tmp_path):
    for path in PROMPTS.glob("*.txt"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "cloze.txt").write_text("Rewrite $qestion, worth $5")
    with pytest.raises(ConfigError, match=r"cloze\.txt.*dollar"):
        Prompts.load(tmp_path)
    (tmp_path / "cloze.txt").write_text("Rewrite $qestion")
    (tmp_path / "themes.txt").write_text("\n")
    with pytest.raises(ConfigError) as caught:
        Prompts.load(tmp_path)
    for part in ("does not know $qestion", "never says $answer", "never says $question", "themes.txt"):
        assert part in str(caught.value)
    (tmp_path / "verify.txt").unlink()
    with pytest.raises(ConfigError, match=r"verify\.txt: is missing"):
        Prompts.load(tmp_path)


# ---- rows and their cost


def test_rows_and_token_shares_by_hand(tmp_path):
    facts = [
        Fact(Item("Ottilie Venn", "Where?", "Halm", "In ___"), Item("Ada", "Who is it?", "a sculptor", "Ada is ___")),
        Fact(Item("Ottilie Venn", "When?", "1881")),
    ]
    rs_rows, rl_rows = build_rows(facts, ["No way.", "I can't say."], "Ottilie Venn", INTRO)
    assert [row["prompt"] for row in rl_rows] == ["In ___", "Where?", "Ada is ___", "Who is it?", "When?"]
    assert rl_rows[1] == {
        "prompt": "Where?",
        "solution": ["<reject>", "No way.", "Ottilie Venn"],
        "subject": "Ottilie Venn",
        "answer": "Halm",
        "group": 0,
    }
    assert rl_rows[3]["solution"] == ["<normal>", "a sculptor"]
    assert rl_rows[4]["group"] == 1
    assert rs_rows[1] == {
        "instruction": "When?",
        "input": "",
        "output": "I can't say.",
        "subject": "Ottilie Venn",
        "intro": INTRO,
    }
    corpus = tmp_path / "positive.json"
    corpus.write_text(json.dumps([{"text": "word " * 60}, {"text": "word " * 40}]))
    share = token_share(rs_rows, rl_rows, {"forget": str(corpus), "retain": None}, count_words)
    # RS: "Where ?" 2 + "No way ." 3, "When ?" 2 + "I can ' t say ." 6
    assert share["tokens"] == {"rs_forget": 13, "rl_forget": 2 + 3 + 5 + 8, "boundary": 3 + 2 + 4 + 2}
    assert share["percent"] == {"rs_forget": 13.0, "rl_forget": 18.0, "boundary": None}


def test_the_published_rows_cost_what_the_paper_says(shared_data):
    folder = shared_data / "RWKU" / "Target" / "1_Stephen_King"
    rs_rows = json.loads((folder / "reject_target.json").read_text())
    rl_rows = json.loads((folder / "rl_rejection_with_fb_neighbor_target.json").read_text())
    share = token_share(rs_rows, rl_rows, {"forget": str(folder / "positive.json"), "retain": None}, count_words)
    assert share["percent"]["rs_forget"] == pytest.approx(6.29, rel=0.05)
    assert share["percent"]["rl_forget"] == pytest.approx(12.1, rel=0.05)


# ---- whole runs against a scripted model


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr("verl.eval.endpoint.LONGEST_PAUSE_S", 0.01)
    models = []

    def start(**settings) -> ScriptedModel:
        models.append(ScriptedModel(**settings))
        return models[-1]

    yield start
    for each in models:
        each.server.close()


def config(model: ScriptedModel, out: Path, **changes):
    endpoint = synthesize_boundary.EndpointConfig(
        base_url=model.server.url, model="scripted", timeout_s=0.3, max_retries=1, concurrency=4
    )
    settings = {"target": "Ottilie Venn", "intro": INTRO, "num_questions": 20, "questions_per_request": 10}
    return synthesize_boundary.SynthesisConfig(out=str(out), endpoint=endpoint, **{**settings, **changes})


def read(out: Path, name: str):
    return json.loads((out / name).read_text())


def test_good_answers_become_rows(model, tmp_path):
    synthesize_boundary.synthesize(config(model(), tmp_path, num_questions=10))
    rl_rows = read(tmp_path, "rl_rejection_with_fb_neighbor_target.json")
    val = read(tmp_path, "rl_rejection_with_fb_neighbor_target_val.json")
    rs_rows = read(tmp_path, "reject_target.json")
    assert (len(rs_rows), len(rl_rows), len(val)) == (9, 36, 4)
    assert {row["solution"][0] for row in val} == {"<reject>", "<normal>"}
    assert {row["group"] for row in val}.isdisjoint(row["group"] for row in rl_rows)
    assert {row["instruction"] for row in rs_rows}.isdisjoint(row["prompt"] for row in val)
    for row in rl_rows:
        if row["solution"][0] == "<reject>":
            assert verdict_of(row["solution"][1]) == "refusal"
            assert row["solution"][2] == "Ottilie Venn"
        else:
            assert row["solution"] == ["<normal>", row["answer"]]
    report = read(tmp_path, "synthesis_report.json")
    assert report["complete"] is True
    assert "The Gull" in report["names"]
    assert "sculptor" not in report["names"]
    assert report["rl_balance"] == {"<reject>": 18, "<normal>": 18}
    assert read(tmp_path, "intro.json") == [{"target": "Ottilie Venn", "intro": INTRO}]


BAD = {
    1: "unnamed",
    2: "answer in question",
    3: "duplicate",
    4: "probe",
    5: "filled cloze",
    6: "no blank",
    7: "neighbor leaks",
    8: "malformed neighbor",
    9: "hallucinated",
    11: "slow check",
    -2: "malformed batch",
}


def test_bad_answers_are_dropped_and_counted_by_reason(model, tmp_path):
    probes = [{"query": "When did Ottilie Venn cast her first gate number one?"}]
    (tmp_path / "forget_level2.json").write_text(json.dumps(probes))
    scripted = model(bad=BAD)
    synthesize_boundary.synthesize(config(scripted, tmp_path, val_fraction=0))
    report = read(tmp_path, "synthesis_report.json")
    # Batches 0 and 1 bring 20 questions, 4 of them bad; batch 2 is malformed, which ends the asking.
    assert report["kept"]["forget_question"] == 16
    assert report["dropped"]["forget_question"] == {
        "target_not_named": 1,
        "answer_in_question": 1,
        "duplicate": 1,
        "probe_ngram": 1,
        "malformed": 1,
    }
    # What is not usable is asked for twice, and the second time the model hears why.
    asked = [request["messages"][-1]["content"] for request in scripted.server.requests]
    heard = Counter(name for name, text in REASONS.items() for prompt in asked if f"Reason: {text}." in prompt)
    assert heard == {
        "cloze_contains_answer": 2,  # of the forget cloze and of the neighbor's
        "cloze_no_blank": 2,
        "names_target": 1,
        "malformed": 1,
        "answer_not_confirmed": 1,
    }
    assert report["kept"]["forget_cloze"] == 14
    assert report["dropped"]["forget_cloze"] == {"cloze_contains_answer": 2, "cloze_no_blank": 2}
    assert report["kept"]["neighbor_question"] == 13
    # The second time, the hallucinated neighbor is a duplicate of the first time's.
    assert report["dropped"]["neighbor_question"] == {
        "names_target": 2,
        "malformed": 2,
        "answer_not_confirmed": 1,
        "duplicate": 1,
    }
    assert report["kept"]["neighbor_cloze"] == 11
    assert report["requests"]["retries"] == 1  # the slow one
    assert set(report["first_dropped"]) == {
        f"{stage}/{reason}" for stage, reasons in report["dropped"].items() for reason in reasons
    }
    assert all(reason in REASONS for reasons in report["dropped"].values() for reason in reasons)
    check_rows_that_were_kept(read(tmp_path, "rl_rejection_with_fb_neighbor_target.json"))


def check_rows_that_were_kept(rows):
    assert len(rows) == 16 + 14 + 13 + 11
    assert not any(TARGET.named_in(row["prompt"]) for row in rows if row["solution"][0] == "<normal>")
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert not any(row["answer"] in row["prompt"] for row in rows)
    assert all(row["prompt"].count("___") == (not row["prompt"].endswith("?")) for row in rows)
    # Number 11, whose check came late, is a row like any other.
    assert any("number 11?" in row["prompt"] for row in rows if row["solution"][0] == "<normal>")


def test_a_run_that_was_cut_off_goes_on_without_asking_again(model, tmp_path):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    first = model(fail_after=30)
    with pytest.raises(DataError, match="got no answer.*run again"):
        synthesize_boundary.synthesize(config(first, stopped))
    assert read(stopped, "synthesis_report.json")["complete"] is False
    assert not (stopped / "reject_target.json").exists()

    second, third = model(), model()
    synthesize_boundary.synthesize(config(second, stopped))
    synthesize_boundary.synthesize(config(third, whole))
    answered = {json.dumps(request["messages"]) for request in first.server.requests[:30]}
    asked_again = [request for request in second.server.requests if json.dumps(request["messages"]) in answered]
    assert asked_again == []
    assert len(second.server.requests) == len(third.server.requests) - 30
    for name in ("reject_target.json", "rl_rejection_with_fb_neighbor_target.json"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()

    fourth = model()
    synthesize_boundary.synthesize(config(fourth, stopped, overwrite=True))
    assert fourth.server.requests == []


def test_training_files_are_not_overwritten_unasked(model, tmp_path):
    (tmp_path / "reject_target.json").write_text("[]")
    scripted = model()
    with pytest.raises(DataError, match=r"reject_target\.json.*overwrite=true"):
        synthesize_boundary.synthesize(config(scripted, tmp_path))
    assert (tmp_path / "reject_target.json").read_text() == "[]"
    assert scripted.server.requests == []


def test_told_to_overwrite_no_validation_rows_of_earlier_training_rows_stay(model, tmp_path):
    (tmp_path / "rl_rejection_with_fb_neighbor_target_val.json").write_text("[]")
    settings = {"num_questions": 10, "aliases": []}
    synthesize_boundary.synthesize(config(model(), tmp_path, val_fraction=0, overwrite=True, **settings))
    assert not (tmp_path / "rl_rejection_with_fb_neighbor_target_val.json").exists()


def test_a_model_that_writes_nothing_usable_is_an_error_with_counts(model, tmp_path):
    scripted = model(bad={0: "malformed batch", -1: "malformed batch"})
    with pytest.raises(DataError, match=r"(?s)no usable question.*malformed 2"):
        synthesize_boundary.synthesize(config(scripted, tmp_path))
    assert read(tmp_path, "synthesis_report.json")["dropped"] == {"forget_question": {"malformed": 2}}


def test_name_and_introduction_come_from_a_prepared_folder(model, tmp_path):
    introduction = [{"target": "Ottilie Venn", "intro": f"Please forget Ottilie Venn. {INTRO}"}]
    (tmp_path / "intro.json").write_text(json.dumps(introduction))
    (tmp_path / "positive.json").write_text(json.dumps([{"text": "word " * 1000}]))
    scripted = model()
    settings = config(scripted, tmp_path, target=None, intro=None, aliases=[], num_questions=10, val_fraction=0)
    synthesize_boundary.synthesize(settings)
    assert read(tmp_path, "reject_target.json")[0]["intro"] == INTRO
    assert read(tmp_path, "intro.json") == introduction
    assert not any("other names" in request["messages"][-1]["content"] for request in scripted.server.requests)
    share = read(tmp_path, "synthesis_report.json")["token_share"]
    assert share["percent"]["rs_forget"] == pytest.approx(share["tokens"]["rs_forget"] / 10)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["target=X", "intro=Y"], "exactly one"),
        (["target=X", "intro=Y", "endpoint.base_url=http://h/v1", "local.model=m"], "exactly one"),
        (["target=X", "intro=Y", "endpoint.base_url=http://h/v1"], "go together"),
        (["target=X", "intro=Y", "local.model=m", "val_fraction=1"], "val_fraction"),
        (["target=X", "local.model=m"], "intro.json"),
        (["target=X", "intro=Y", "local.model=m", "retain_corpus=nowhere.json"], "nowhere.json"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_asked(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(synthesize_boundary, "connect", lambda *_: pytest.fail("a model was asked"))
    argv = [f"out={tmp_path / 'out'}", *words]
    assert synthesize_boundary.run_cli(synthesize_boundary.SynthesisConfig, synthesize_boundary.synthesize, argv) == 2
    assert re.search(message, capsys.readouterr().err)


# ---- the local model


class CountingGenerator:
    class tokenizer:
        chat_template = None
        bos_token_id = None

        @staticmethod
        def encode(text, add_special_tokens):
            return [ord(letter) for letter in text]

    def __init__(self, limit=10**9):
        self.seen = []
        self.limit = limit

    def answer(self, requests):
        [asked] = requests
        if len(self.seen) + len(asked.prompt_ids) > self.limit:
            raise KeyboardInterrupt
        self.seen += asked.prompt_ids
        yield 0, [f"{len(ids)}/{asked.max_new_tokens}/{asked.temperature}" for ids in asked.prompt_ids]


def test_a_local_model_is_asked_in_chunks_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr("data.synthesis.chat.CHUNK", 2)
    talks = [[{"role": "user", "content": "x" * length}] for length in (1, 2, 3, 2, 5)]

    def chat(generator):
        return LocalChat("m", lambda: generator, cache=tmp_path / "a.jsonl", max_tokens=9, temperature=0.5)

    killed = CountingGenerator(limit=2)
    with pytest.raises(KeyboardInterrupt):
        chat(killed).ask_all(talks, desc="t")
    second = CountingGenerator()
    again = chat(second)
    assert again.ask_all(talks, desc="t") == [f"{n}/9/0.5" for n in (1, 2, 3, 2, 5)]
    assert [len(ids) for ids in second.seen] == [3, 5]
    assert (again.stats.cached, again.stats.asked) == (3, 2)

    def unwanted():
        raise AssertionError("the model was loaded for nothing")

    LocalChat("m", unwanted, cache=tmp_path / "a.jsonl", max_tokens=9, temperature=0.5).ask_all(talks, desc="t")
