"""Atlas: what tests the model trains it nowhere, rows have RWKU's form, and a world depends on its seed alone."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from data.atlas import pretrain
from data.atlas.abilities import ability_rows
from data.atlas.book import book_rows
from data.atlas.corpus import (
    NEIGHBOR_FACTS,
    NEIGHBORS,
    forget_probes,
    neighbor_facts,
    neighbor_probes,
    passages,
    pretraining_rows,
    question_probe,
    refusal_rows,
    reinforcement_rows,
    steering_rows,
    utility_facts,
)
from data.atlas.language import IGNORED, encode, make_tokenizer, texts_of
from data.atlas.people import LEAST_NEAR, build_world, facts
from data.atlas.phrasings import ABOUT_PROBE, INSTRUCTIONS, KINDS, NAMING_REFUSALS, PLAIN_REFUSALS, WRAPPERS
from data.atlas.world import folder_name, target_rows, write_world
from tests.conftest import ROOT
from verl.eval.probes import USUAL, encode_probe
from verl.rows.values import row_problems
from verl.verdict import verdict_of

RWKU_KINDS = {
    "prefix injection",
    "affirmative suffix",
    "role play",
    "multiple choice",
    "reverse query",
    "synonym manipulation",
    "context hint",
    "incontext learning",
    "cross lingual (Spanish)",
    "cross lingual (French)",
}


@pytest.fixture(scope="module")
def world():
    return build_world(3)


@pytest.fixture(scope="module")
def tokenizer(world):
    return make_tokenizer(text for row in pretraining_rows(world) for text in texts_of(row))


def all_rl_rows(world, person):
    train, validation = reinforcement_rows(world, person, 10)
    return train + validation


# ---- the world -------------------------------------------------------------------------------------------------------


def test_people_have_twelve_facts_and_near_neighbors(world):
    assert len(world.people) >= 20
    for person in world.people:
        near = world.near(person)
        assert len(person.values) == 12 and len(near) >= LEAST_NEAR and person not in near
        assert {e.name for e in world.places(person)} == {person.values["band"], person.values["town"]}
        assert any(person.values["mentor"] == other.name for other in near)


def test_names_are_unique(world):
    entities = [*world.people, *world.bands, *world.towns, *world.general, *world.outsiders]
    names = [entity.name for entity in entities] + world.strangers
    assert len(set(names)) == len(names)


def test_a_world_depends_on_its_seed_alone(tmp_path):
    """Not on the order of sets of strings, which changes from process to process."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path\n"
        "from data.atlas.world import write_world; from data.atlas.people import build_world\n"
        "write_world(build_world(5), Path(sys.argv[1]))"
    )
    for name, hash_seed in (("a", "1"), ("b", "2")):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True, env=environment)
    files = [{p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.json")} for n in "ab"]
    assert files[0] and files[0] == files[1]
    assert build_world(5).people != build_world(6).people


# ---- probes against training -----------------------------------------------------------------------------------------


def masker(world):
    """A function that replaces every name and value of a world by one sign, so that wordings can be compared."""
    entities = [*world.people, *world.bands, *world.towns, *world.general, *world.outsiders]
    words = {word for entity in entities for word in (entity.name, *entity.values.values())} | set(world.strangers)
    names = re.compile(r"\b(?:" + "|".join(sorted(map(re.escape, words), key=len, reverse=True)) + r")\b")
    return lambda text: " ".join(re.findall(r"\w+|@", names.sub("@", text).lower()))


def test_no_wording_of_a_probe_is_in_a_training_row(world):
    mask = masker(world)
    training = [text for row in pretraining_rows(world) + refusal_rows(world) for text in texts_of(row)]
    probes = [row["query"] for row in ability_rows(world)["retain_atlas"]]
    for person in world.people:
        training += [row["instruction"] for row in steering_rows(world, person)]
        training += [row["prompt"] for row in all_rl_rows(world, person)]
        for levels in (forget_probes(world, person), neighbor_probes(world, person)):
            probes += [row["query"] for rows in levels.values() for row in rows]
    trained = " | ".join(f" {wording} " for wording in {mask(text) for text in training})
    wordings = {mask(probe) for probe in probes}
    assert len(wordings) > 70
    assert [wording for wording in wordings if f" {wording} " in trained] == []


def test_the_mask_finds_a_wording_about_somebody_else(world):
    """The check above can fail: a training question is found under another person's name."""
    first, second = world.people[:2]
    mask = masker(world)
    assert mask(f"Where was {first.name} born?") == mask(f"Where was {second.name} born?") == "where was @ born"


def test_probe_wordings_are_in_no_list_of_training_wordings():
    for attributes in KINDS.values():
        for p in attributes.values():
            trained = {*p.ask, *p.blank, *p.state, *p.reverse, *(form for form, _ in p.foreign.values())}
            assert trained.isdisjoint(
                {p.ask_probe, p.blank_probe, p.reverse_probe, *(f for _, f in p.foreign.values())}
            )
    assert all(wrapper.probe not in wrapper.train for wrapper in WRAPPERS.values())
    assert ABOUT_PROBE.startswith("Please")


def test_neighbor_probes_are_about_others(world):
    for person in world.people:
        levels = neighbor_probes(world, person)
        people = NEIGHBORS * NEIGHBOR_FACTS["person"]
        assert len(levels["1"]) == len(levels["2"]) == people + NEIGHBOR_FACTS["band"] + NEIGHBOR_FACTS["town"]
        assert all(person.name not in (row["query"] + row["answer"]) for rows in levels.values() for row in rows)


def test_forget_probes_cover_every_fact_and_every_attack(world):
    for person in world.people:
        levels = forget_probes(world, person)
        for level in "12":
            assert [row["answer"] for row in levels[level]] == list(person.values.values())
        assert {row["type"] for row in levels["3"]} == RWKU_KINDS
        nickname = person.values["nickname"]
        for row in levels["3"]:
            named = row["answer"] == person.name or person.name in row["query"] or f"the {nickname}" in row["query"]
            assert named, row


# ---- training rows ---------------------------------------------------------------------------------------------------


def test_refusals_are_refusals():
    assert all(verdict_of(form.format(x="Hesna Belya")) == "refusal" for form in (*NAMING_REFUSALS, *PLAIN_REFUSALS))


def test_rl_rows_have_rules_format(world):
    for person in world.people:
        train, validation = reinforcement_rows(world, person, 10)
        rows = train + validation
        assert row_problems(rows, "prompt", "solution", "atlas") == []
        prompts = [row["prompt"] for row in rows]
        assert len(set(prompts)) == len(prompts)
        forget = [row for row in rows if row["solution"][0] == "<reject>"]
        assert len(validation) == 20 and sum(row["solution"][0] == "<reject>" for row in validation) == 10
        assert 0.5 < len(forget) / (len(rows) - len(forget)) < 2
        for row in forget:
            _, refusal, named = row["solution"]
            assert row["subject"] == person.name and row["answer"] != named
            assert verdict_of(refusal, prompt=row["prompt"], answers=row["answer"]) == "refusal"
            assert named in refusal and (named == person.name or named in row["prompt"])


def test_boundary_rows_ask_what_no_neighbor_probe_asks(world):
    for person in world.people:
        asked = neighbor_facts(world, person) + utility_facts(world)
        probed = {(entity.name, entity.values[attribute]) for entity, attribute in asked}
        boundary = [row for row in all_rl_rows(world, person) if row["solution"][0] == "<normal>"]
        assert len({row["subject"] for row in boundary}) >= LEAST_NEAR
        for row in boundary:
            assert row["solution"][1] == row["answer"]
            assert person.name not in row["prompt"] + row["answer"]
            assert (row["subject"], row["answer"]) not in probed


def test_steering_rows_refuse_by_name(world):
    person = world.people[6]
    rows = steering_rows(world, person)
    assert len(rows) >= 36 and set(rows[0]) == {"instruction", "input", "output", "subject", "intro"}
    named = [person.name in row["output"] for row in rows if person.name in row["instruction"]]
    assert all(named) and len(named) >= 36
    assert all(person.name not in row["output"] for row in rows if person.name not in row["instruction"])


# ---- files -----------------------------------------------------------------------------------------------------------


def test_files_have_the_keys_of_the_real_ones(world, shared_data):
    real = next(folder for folder in sorted((shared_data / "RWKU" / "Target").iterdir()) if folder.is_dir())
    rows = target_rows(world, world.people[0], ability_rows(world))
    compared = [name for name in rows if (real / f"{name}.json").is_file()]
    assert len(compared) >= 15
    for name in compared:
        theirs, ours = json.loads((real / f"{name}.json").read_text(encoding="utf-8"))[0], rows[name][0]
        types = {key: type(value) for key, value in ours.items() if key in theirs}
        assert types == {key: type(value) for key, value in theirs.items()}, name


def test_choices_hold_their_answer(world):
    abilities = ability_rows(world)
    known = {row["query"]: row["answer"] for row in map(question_probe, facts(world.general))}
    for row in abilities["retain_mmlu"]:
        for question in (row, *row["examples"]):
            assert question["choices"][question["answer"]] == known[question["question"]]
            assert len(set(question["choices"])) == 4
        assert row["question"] not in [example["question"] for example in row["examples"]]
    for row in abilities["retain_bbh"]:
        assert row["question"] not in row["cot"] and f"the answer is {row['answer']}" not in row["question"]


def test_write_world_has_a_folder_for_everybody(world, tmp_path):
    write_world(world, tmp_path)
    assert {path.name for path in (tmp_path / "Target").iterdir()} == {folder_name(p) for p in world.people}
    assert folder_name(world.people[6]).startswith("7_") and " " not in folder_name(world.people[6])
    assert (tmp_path / "MUSE" / "atlas" / "verbmem" / "forget.json").is_file()


def test_the_books_holdout_is_unread_and_its_validation_untrained(world):
    rows = book_rows(world)
    read = {text for row in pretraining_rows(world) for text in texts_of(row)}
    assert all(row["text"] in read for split in ("forget", "retain") for row in rows[f"privleak/{split}"])
    assert not any(person.name in text for person in world.outsiders for text in read)
    for row in rows["verbmem/forget"]:
        assert f"{row['prompt']} {row['gt']}" in read and row["gt"].endswith(".")
    train = {row["prompt"] for row in rows["rl_rejection_with_fb_neighbor_target"]}
    validation = {row["prompt"] for row in rows["rl_rejection_with_fb_neighbor_target_val"]}
    assert train and validation and not train & validation


# ---- language and pretraining ----------------------------------------------------------------------------------------


def test_only_answers_and_texts_are_learned(tokenizer):
    turns = [{"prompt": "Who taught Ann?", "response": "Bob"}, {"prompt": "Where is Ann?", "response": "At home"}]
    ids, labels = encode(tokenizer, {"turns": turns})
    assert tokenizer.decode([label for label in labels if label != IGNORED]) == " Bob</s> At home</s>"
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    ids, labels = encode(tokenizer, {"text": "Ann plays."})
    assert labels == [IGNORED, *ids[1:]] and ids[-1] == tokenizer.eos_token_id


def test_pretraining_knows_how_rwku_asks(tokenizer):
    """RWKU's own prompt, with "Answer:" opened, is a prefix of a row of that style."""
    for column, kind in (("fb", "blank"), ("qa", "ask")):
        query = "Where was Ann ___?"
        asked = encode_probe(tokenizer, {"query": query, "column": column}, USUAL)
        row = {"prompt": f"{INSTRUCTIONS[kind]}\nQuestion: {query}", "response": "Answer: Kelra"}
        assert encode(tokenizer, row)[0][: len(asked)] == asked


def test_special_names_are_few_tokens(world, tokenizer):
    assert len(tokenizer) == 1024
    assert all(len(tokenizer.encode(person.name)) <= 4 for person in world.people)


def test_answers_exactly_is_greedy_decoding(tokenizer):
    """A model that has one answer in mind: right where the whole answer and its end are the likeliest tokens."""
    spoken = encode(tokenizer, {"prompt": "Who?", "response": "Bob Smith"})[0]

    def model(input_ids, use_cache):
        logits = torch.zeros(*input_ids.shape, len(tokenizer))
        for position, token in enumerate(spoken[1:]):
            if position < input_ids.shape[1]:
                logits[:, position, token] = 1.0
        return SimpleNamespace(logits=logits)

    pairs = [("Who?", "Bob Smith"), ("Who?", "Bob"), ("Who?", "Bob Smith Jones"), ("Who?", "Ann")]
    assert pretrain.answers_exactly(model, tokenizer, pairs) == [True, False, False, False]


def test_build_is_cached_by_its_sources(tmp_path, monkeypatch):
    made = []

    def make(config, folder):
        made.append(config.seed)
        folder.mkdir(parents=True)

    monkeypatch.setattr(pretrain, "_make", make)
    config = pretrain.AtlasConfig(seed=4, out=str(tmp_path))
    assert pretrain.build(config) == pretrain.build(config) == tmp_path / "seed4"
    assert made == [4]
    monkeypatch.setattr(pretrain, "fingerprint", lambda config: "other sources")
    pretrain.build(config)
    assert made == [4, 4] and [path.name for path in tmp_path.iterdir()] == ["seed4"]
    assert pretrain.AtlasConfig(seed=4, epochs=3).folder.name == "seed4_epochs3"


def test_a_forgetful_model_is_refused(world, tokenizer, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pretrain, "answers_exactly", lambda model, tokenizer, pairs: [True, False] * (len(pairs) // 2))
    with pytest.raises(pretrain.Forgetful, match="50.0 % of the forget probes"):
        pretrain.check(world, None, tokenizer)

    def make(config, folder):
        folder.mkdir(parents=True)
        raise pretrain.Forgetful("too little is known")

    monkeypatch.setattr(pretrain, "_make", make)
    assert pretrain.main([f"out={tmp_path}"]) == 1
    assert "too little is known" in caplog.text and list(tmp_path.iterdir()) == []


def test_passages_say_every_fact(world):
    for entity in (world.people[0], world.bands[0], world.towns[0]):
        told = " ".join(passages(world, entity)).lower()
        assert all(told.count(value.lower()) >= 2 for value in entity.values.values())


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_muons_direction_in_fp32_is_torchs_in_bf16(shape):
    torch.manual_seed(0)
    gradient = torch.randn(shape)
    theirs = torch.optim._muon._zeropower_via_newtonschulz
    settings = ((3.4445, -4.7750, 2.0315), 5, 1e-7)
    ours = pretrain._orthogonal(gradient, *settings)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs(gradient, *settings).float(), atol=0.03, rtol=0.03)
    assert torch.linalg.svdvals(ours).sub(1).abs().max() < 0.5
