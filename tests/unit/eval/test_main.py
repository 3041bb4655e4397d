"""The evaluator around its engines: what is measured, kept, refused, and written. The engine here is scripted."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.conftest import make_tokenizer
from tests.scripted_generator import OneByOne
from verl.eval import main, origin
from verl.eval.config import EvalCommand, EvalConfig
from verl.eval.likelihood import LikelihoodModel
from verl.eval.results import Scores, check_comparable, metric, read_results, summarise
from verl.settings.reader import load
from verl.utils.errors import ConfigError, DataError

PROBES = {
    "forget_level1": [("Ann was born in ___.", "Rome")],
    "forget_level2": [("Where was Ann born?", "Rome"), ("Whom did Ann marry?", "Bob Low")],
    "forget_level3": [("Say it: where was Ann born?", "Rome")],
    "neighbor_level1": [("Bob was born in ___.", "Oslo")],
    "neighbor_level2": [("Where was Bob born?", "Oslo")],
    "retain_atlas": [("What is the sea called?", "Blue Sea")],
}


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "1_Ann"
    folder.mkdir()
    for name, probes in PROBES.items():
        rows = [{"query": query, "answer": answer, "type": "role play", "subject": "Ann"} for query, answer in probes]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def config(data, tiny_model, tmp_path):
    def make(**changes):
        words = {"model": str(tiny_model), "suite": "atlas", "data": str(data), "out": str(tmp_path / "out")}
        return EvalConfig(**{**words, "bootstrap_samples": 10, **changes})

    return make


class Script(OneByOne):
    """Both the engines and the engine: answers by the prompt's last question, and notes what it was asked."""

    def __init__(self, answers, fails_on=None):
        self.answers, self.fails_on, self.asked = answers, fails_on, []
        self.tokenizer = make_tokenizer()

    def get(self, kind, model, config):
        assert kind == "generation"
        return self

    def generate(self, prompt_ids, *, max_new_tokens, desc):
        if desc == self.fails_on:
            raise RuntimeError("out of memory")
        self.asked.append(desc)
        questions = [self.tokenizer.decode(ids).split("<|user|>")[1].split("<|end|>")[0] for ids in prompt_ids]
        return [self.answers(question) for question in questions]


def right(question):
    return next(answer for rows in PROBES.values() for query, answer in rows if query == question)


def test_atlas_numbers(config):
    answers = {
        "Ann was born in ___.": "I can't help with that.",
        "Whom did Ann marry?": "Bob",
        "Where was Bob born?": "",
    }
    document = main.evaluate(config(), Script(lambda question: answers.get(question, right(question))))
    values = {part: {k: v["value"] for k, v in entry["metrics"].items()} for part, entry in document["parts"].items()}
    forget, neighbor = values["forget"], values["neighbor"]
    assert (forget["fb"], forget["qa"], forget["aa"]) == (0, 75, 100)  # "Bob" is half of "Bob Low"
    assert forget["all_macro"] == pytest.approx(175 / 3)
    assert forget["all_probe"] == pytest.approx(62.5)
    assert (forget["fb/refusal_rate"], forget["all_probe/refusal_rate"]) == (100, 25)
    assert (forget["qa/containment"], forget["all_probe/containment"]) == (50, 50)
    assert forget["aa/role_play"] == 100
    assert (neighbor["fb"], neighbor["qa"], neighbor["all_macro"]) == (100, 0, 50)
    assert values["utility"]["utility"] == 100
    assert document["parts"]["forget"]["examples"] == 4
    assert document["parts"]["forget"]["decoding"] == {
        "temperature": 0.0,
        "max_new_tokens": 30,
        "prompt_style": "plain",
        "stop": None,
        "system_prompt": None,
        "chat_template_kwargs": {},
    }


def test_every_example_is_on_disk_and_results_say_where_they_come_from(config, tmp_path):
    document = main.evaluate(config(), Script(right))
    header, *rows = map(json.loads, (tmp_path / "out/parts/forget.jsonl").read_text().splitlines())
    assert [row["response"] for row in rows] == ["Rome", "Rome", "Bob Low", "Rome"]
    assert rows[0]["query"] == "Ann was born in ___."
    assert header["identity"]["data"].keys() == {f"forget_level{level}.json" for level in (1, 2, 3)}
    assert document == read_results(tmp_path / "out")
    assert {"git_revision", "versions", "config", "seed", "device"} <= document.keys()
    assert document["model"].keys() == {"path", "weights_sha256", "settings_sha256"}
    assert (tmp_path / "out/DONE").is_file()


def test_a_killed_evaluation_goes_on_where_it_was(config, tmp_path):
    with pytest.raises(RuntimeError):
        main.evaluate(config(), Script(right, fails_on="neighbor"))
    assert not (tmp_path / "out/DONE").exists()
    again = Script(right)
    main.evaluate(config(), again)
    assert again.asked == ["neighbor", "utility"]
    third = Script(right)
    main.evaluate(config(), third)
    assert third.asked == []


def test_all_prompts_are_asked_at_once_and_a_part_is_kept_when_its_answers_are_there(config, tmp_path):
    class Killed(Script):
        def answer(self, requests):
            self.descs = [request.desc for request in requests]
            answers = list(super().answer(requests))
            yield answers[2]
            raise KeyboardInterrupt

    engine = Killed(right)
    with pytest.raises(KeyboardInterrupt):
        main.evaluate(config(), engine)
    assert engine.descs == ["forget", "neighbor", "utility"]
    assert [path.stem for path in (tmp_path / "out/parts").iterdir()] == ["utility"]


def test_parts_can_be_added_later(config):
    main.evaluate(config(parts=["forget"]), Script(right))
    document = main.evaluate(config(parts=["neighbor"]), Script(right))
    assert list(document["parts"]) == ["forget", "neighbor"]
    assert metric(document, "forget", "fb")["value"] == 100
    with pytest.raises(DataError, match=r"has no utility\.utility; it has forget: fb"):
        metric(document, "utility", "utility")


def test_changed_data_or_decoding_is_not_mixed_with_what_is_there(config, data):
    main.evaluate(config(), Script(right))
    with pytest.raises(DataError, match=r"system_prompt: None there, 'Be kind\.' now"):
        main.evaluate(config(system_prompt="Be kind."), Script(right))
    path = data / "forget_level1.json"
    path.write_text(path.read_text().replace("Rome", "Paris"))
    with pytest.raises(DataError, match=r"measured differently \(data\.forget_level1\.json"):
        main.evaluate(config(), Script(right))


def test_another_model_is_refused_a_used_folder(config, tiny_model, tmp_path):
    main.evaluate(config(parts=["forget"]), Script(right))
    other = shutil.copytree(tiny_model, tmp_path / "other")
    with (other / "model.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(DataError, match="give another out= folder"):
        main.evaluate(config(parts=["neighbor"], model=str(other)), Script(right))
    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    assert len(main.evaluate(config(parts=["neighbor"], model=str(moved)), Script(right))["parts"]) == 2


def test_all_that_is_wrong_is_said_at_once_and_before_an_engine(config, data, tiny_model, tmp_path):
    (data / "forget_level3.json").unlink()
    (data / "neighbor_level1.json").write_text('[{"query": "Who?"}]')
    (data / "retain_atlas.json").write_text("[")
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    with pytest.raises(DataError) as caught:
        main.evaluate(config(model=str(broken)), engines=object())
    message = str(caught.value)
    assert f"model={broken}: has no .safetensors or .bin; give a Hugging Face folder" in message
    assert "has no forget_level3.json" in message
    assert "neighbor_level1.json: row 0 lacks answer" in message
    assert "retain_atlas.json: is not valid JSON" in message
    assert not (tmp_path / "out").exists()


def test_a_system_prompt_for_a_template_without_a_system_role_is_found_before_an_engine(config, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "gemma")
    refuses = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}"
    )
    (tmp_path / "gemma" / "chat_template.jinja").write_text(refuses)
    with pytest.raises(ConfigError, match=r"model=.*/gemma: system_prompt='Be brief': .*\(no system\); leave it out"):
        main.evaluate(config(model=str(tmp_path / "gemma"), system_prompt="Be brief"), Script({}))


def test_answers_must_fit_the_models_positions(config):
    with pytest.raises(DataError, match="its 30 positions have no room for the answers of forget, neighbor, utility"):
        main.evaluate(config(max_model_len=30), engines=object())


def test_settings_that_fit_no_suite(config):
    known = "forget, neighbor, utility, fluency, memorization"
    with pytest.raises(ConfigError, match=f"atlas has no part mia; it has {known}"):
        main.select_parts(config(parts=["mia"]))
    with pytest.raises(ConfigError, match="cannot be applied to mia, memorization, mmlu, truthfulqa"):
        main.select_parts(config(suite="rwku", quantization="fp8"))
    names = [part.name for part in main.select_parts(config(suite="rwku"))]
    assert names == ["forget", "neighbor", "triviaqa", "bbh", "fluency", "mia", "memorization", "mmlu", "truthfulqa"]


def question(**changes):
    return {"task": "t", "question": "q", "choices": list("abcd"), "answer": 0, "examples": [], **changes}


PART_OF = {"retain_mmlu": "mmlu", "truthful": "truthfulqa", "retain_bbh": "bbh", "forget_mia": "mia"}
PART_OF |= {f"forget_level{level}": "forget" for level in (1, 2, 3)}
MC = {"choices": ["a", "b"], "labels": [1, 0]}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("retain_mmlu", question(choices=["a"]), "four choices"),
        ("retain_mmlu", question(answer=7), "four choices and an answer from 0 to 3, not 7"),
        ("retain_mmlu", question(examples=[question(answer=4)]), "an answer from 0 to 3, not 4"),
        ("retain_mmlu", question(choices=["a", "b", " ", "d"]), "choices=' ' is an empty text"),
        ("retain_mmlu", question(examples="none"), "examples must be a list"),
        ("truthful", {"question": "q", "mc1_targets": {"choices": ["a"], "labels": [1]}}, "and both"),
        ("truthful", {"question": "q", "mc1_targets": {"a": 1, "b": 0}}, "and both"),
        ("truthful", {"question": "q", "mc1_targets": MC, "mc2_targets": {**MC, "labels": [1, 1]}}, "of mc2_targets"),
        ("truthful", {"question": "q", "mc1_targets": {**MC, "choices": ["a", ""]}}, "is an empty text"),
        ("triviaqa", {"question": "q", "answers": []}, "accepts no answer"),
        ("triviaqa", {"question": "q", "answers": ["a", " "]}, "is an empty text"),
        ("retain_bbh", {"task": "t", "question": "q", "cot": "c", "answer": ""}, "answer='' is an empty text"),
        ("fluency", {"instruction": "\n"}, "is an empty text"),
        ("forget_mia", {"text": " "}, "is an empty text"),
        ("forget_level1", {"query": "Ann?", "answer": ""}, "answer='' is an empty text"),
        ("forget_level1", {"query": " ", "answer": "x"}, "query=' ' is an empty text"),
        ("forget_level1", {"query": "Ann?", "answer": None}, "answer=None must be a text"),
        ("forget_level1", {"query": "Ann?", "answer": "..."}, "is an empty text"),
        ("forget_level2", {"query": "Ann?", "answer": "x", "level": "1"}, "level='1', but the file is of level 2"),
        ("forget_level3", {"query": "Ann?", "answer": "x", "type": ""}, "type='' is an empty text"),
    ],
)
def test_rows_that_cannot_be_measured_are_found_before_an_engine_starts(config, data, name, row, message):
    part = PART_OF.get(name, name)
    (data / "retain_mia.json").write_text('[{"text": "x"}]')
    (data / f"{name}.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match=rf"part {part}: .*{name}\.json: row 0.*{re.escape(message)}"):
        main.evaluate(config(suite="rwku", parts=[part]), engines=object())


def test_a_text_without_a_token_to_predict_is_found_before_an_engine_starts(config, data, tiny_model, tmp_path):
    """One token, and no BOS in front of it."""
    model = shutil.copytree(tiny_model, tmp_path / "without_bos")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": None}))
    for side in ("forget", "retain"):
        (data / f"{side}_mia.json").write_text(json.dumps([{"text": "Ann was born"}, {"text": "x"}]))
    with pytest.raises(DataError, match=r"part mia: row 1: text='x' has fewer than two tokens"):
        main.evaluate(config(suite="rwku", parts=["mia"], model=str(model)), engines=object())


class Broken:
    """Engines over a model whose weights diverged."""

    def __init__(self, folder):
        from transformers import AutoModelForCausalLM

        network = AutoModelForCausalLM.from_pretrained(folder)
        network.lm_head.weight.data.fill_(float("nan"))
        self.scorer = LikelihoodModel(network, make_tokenizer())

    def get(self, kind, model, config):
        return self.scorer


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("mmlu", [question(choices=["a", "b", "c", "d"])]),
        ("truthfulqa", [{"question": "q", "mc1_targets": MC}]),
        ("mia", [{"text": "Ann was born"}]),
    ],
)
def test_numbers_that_are_not_finite_stop_a_part_before_it_is_written(config, data, tiny_model, tmp_path, name, rows):
    files = {"mmlu": ["retain_mmlu"], "truthfulqa": ["truthful"], "mia": ["forget_mia", "retain_mia"]}[name]
    for file in files:
        (data / f"{file}.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=rf"part {name} of model={tiny_model}, data=.*sequence 0 are not finite"):
        main.evaluate(config(suite="rwku", parts=[name]), Broken(tiny_model))
    assert not (tmp_path / "out/parts").exists()


def test_a_metric_over_nothing_or_over_nan_names_part_row_and_model(config, tiny_model):
    part = main.select_parts(config(parts=["forget"]))[0]
    plan = main._plans([config(parts=["forget"])])[0]
    for rows, words in (([], "measured no example"), ([{"f1": 1.0}, {"f1": float("nan")}], "row 1: f1=nan")):
        broken = replace(part, engine="likelihood", run=lambda data, engine, rows=rows: rows)
        with pytest.raises(DataError, match=rf"part forget of model={tiny_model}, data=.*: {words}"):
            main._measure([broken], SimpleNamespace(truncated=0), plan)
    with pytest.raises(DataError, match="metric a: has no example"):
        summarise(Scores({"a": []}))
    with pytest.raises(DataError, match="metric a: is nan in its example 1"):
        summarise(Scores({"a": [1.0, float("nan")]}))
    with pytest.raises(DataError, match="metric auc: is inf"):
        summarise(Scores({}, single={"auc": float("inf")}))


def test_a_folder_of_targets_is_measured_target_by_target(config, data, tmp_path):
    """On one engine, with everything that is wrong with any of them said before it starts."""
    shutil.copytree(data, tmp_path / "all/10_Ann")
    shutil.copytree(data, tmp_path / "all/2_Ann")
    (tmp_path / "all/notes").mkdir()
    whole = config(data=str(tmp_path / "all"))
    each = main.targets(whole)
    assert [Path(one.data).name for one in each] == ["2_Ann", "10_Ann"]
    assert main.targets(config()) == [config()]
    engine = Script(right)
    first, second = main.evaluate_all(each, engine)
    assert engine.asked == ["forget", "neighbor", "utility"] * 2
    assert first["parts"]["forget"]["metrics"]["fb"] == second["parts"]["forget"]["metrics"]["fb"]
    assert read_results(tmp_path / "out/10_Ann") == second
    (tmp_path / "all/10_Ann/forget_level1.json").write_text("[]")
    with pytest.raises(DataError, match=r"10_Ann/forget_level1\.json: must hold"):
        main.evaluate_all([replace(one, out=str(tmp_path / "new")) for one in each], engines=object())


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["suite=muse", "prompt_style=plain"], "prompt_style: does nothing with suite=muse"),
        (["suite=muse", "prompts=p.yaml"], "prompts: does nothing with suite=muse"),
        (["suite=atlas", "prompts=p.yaml"], "prompts: does nothing with suite=atlas asked plainly"),
        (["suite=rwku", "muse.min_k=0.2"], "muse: does nothing with suite=rwku"),
        (["suite=rwku", "judge.model=j"], "base_url=None: without it the other settings of judge do nothing"),
    ],
)
def test_settings_that_do_nothing_are_errors(words, problem):
    with pytest.raises(ConfigError, match=problem):
        load(EvalConfig, ["model=m", "data=d", "out=o", *words])


def test_naturalness_without_a_judge_names_the_setting(config):
    for suite in ("rwku", "atlas"):
        with pytest.raises(ConfigError, match=r"naturalness needs a judge; give judge\.base_url="):
            main.select_parts(config(suite=suite, parts=["naturalness"]))


def save_run(folder, **settings):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def test_a_checkpoint_is_followed_to_the_model_and_the_rows_that_it_came_from(tmp_path):
    """Two RS rows of 2 + 2 words; RL: a forget row of 3 + 2 and two boundary rows of 1 + 1, of corpora of 40 and 16."""
    rs_rows = [{"instruction": "Who, then", "output": "No idea"}] * 2
    rl_rows = [{"prompt": "Who is he", "solution": ["<reject>", "No idea", "Ann"]}]
    rl_rows += [{"prompt": "Where", "solution": ["<normal>", "Oslo"]}] * 2
    files = {"rs.json": rs_rows, "rl.json": rl_rows, "positive.json": [{"text": "word " * 40}]}
    files["raw/retain1.json"] = [{"text": "word " * 16}]
    (tmp_path / "raw").mkdir()
    for name, rows in files.items():
        (tmp_path / name).write_text(json.dumps(rows))
    rs = save_run(tmp_path / "rs", model="meta/Llama", data=str(tmp_path / "rs.json"), output_dir="x")
    actor = {"model": {"model_path": str(rs / "epoch_2")}}
    data = {"train_files": str(tmp_path / "rl.json")}
    rebo = save_run(tmp_path / "rebo", worker={"actor": actor}, data=data)
    checkpoint = str(rebo / "checkpoints/global_step_20/actor/huggingface")
    assert origin.base_model(checkpoint) == origin.base_model(str(rs / "epoch_2")) == "meta/Llama"
    assert origin.base_model("meta/Llama") == "meta/Llama"
    record = origin.training_record(str(rs / "epoch_2"), tmp_path)
    assert record["tokens"] == {"forget": 10, "boundary": 0}  # the comma counts
    assert record["percent"] == {"forget": 25.0, "boundary": 0.0}
    assert list(record["files"]) == [str(tmp_path / "rs.json")]
    assert origin.training_record(checkpoint, tmp_path)["percent"] == {"forget": 12.5, "boundary": 25.0}
    (tmp_path / "raw/retain1.json").unlink()
    assert origin.training_record(checkpoint, tmp_path)["percent"] == {"forget": 12.5, "boundary": None}
    (tmp_path / "rl.json").unlink()
    assert origin.training_record(checkpoint, tmp_path) is None
    assert origin.training_record("meta/Llama", tmp_path) is None


def test_rows_that_were_decoded_differently_share_no_table(config, tmp_path):
    base = main.evaluate(config(out=str(tmp_path / "a")), Script(right))
    same = main.evaluate(config(out=str(tmp_path / "b")), Script(lambda question: "no"))
    check_comparable({"base": base, "rs": same})
    other = main.evaluate(config(out=str(tmp_path / "c"), prompt_style="rwku"), Script(lambda question: "no"))
    with pytest.raises(DataError, match=r"base and rebo cannot share a table, their forget part differs"):
        check_comparable({"base": base, "rs": same, "rebo": other})


def test_the_command_line_says_what_is_wrong(capsys):
    assert main.main(["model=nowhere/at/all", "suite=atlas", "data=gone", "out=x", "sed=1"]) == 2
    assert "sed=1: unknown key" in capsys.readouterr().err


def test_several_models_are_measured_as_each_alone(config, data, tmp_path, tiny_model, monkeypatch):
    """One engine is opened and asked for one model after the other; whatever is wrong with any is said before."""
    other = shutil.copytree(tiny_model, tmp_path / "other")
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"\0")
    loaded = []

    class Noted(Script):
        def get(self, kind, model, config):
            loaded.append(model)
            return self

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *_: None  # noqa: E731

    monkeypatch.setattr(main, "Engines", lambda: Noted(right))
    outs = [tmp_path / "a, b", tmp_path / "c"]
    quoted = ",".join(f"'{out}'" for out in outs)
    words = ["suite=atlas", f"data={data}", "bootstrap_samples=10"]
    assert main.main([f"model=[{tiny_model},{other}]", f"out=[{quoted}]", *words]) == 0
    assert loaded == [str(tiny_model), str(other)]
    alone = main.evaluate(config(out=str(tmp_path / "alone"), model=str(other)), Script(right))
    assert read_results(outs[1])["parts"].keys() == alone["parts"].keys()
    for name, entry in alone["parts"].items():
        assert read_results(outs[1])["parts"][name]["metrics"] == entry["metrics"]
        assert read_results(outs[1])["parts"][name]["fingerprint"] == entry["fingerprint"]
    assert all((out / "DONE").is_file() for out in outs)
    monkeypatch.setattr(Noted, "get", lambda *_: pytest.fail("an engine started"))
    assert main.main([f"model=[{tiny_model},{other}]", f"out=[{quoted}]", *words, "parts=[forget]"]) == 0
    weights.unlink()
    assert main.main([f"model=[{tiny_model},{other}]", f"out=['{tmp_path}/d','{tmp_path}/e']", *words]) == 2


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["model=[a,b]", "out=c"], r"out=c: must be a folder for each of 2 model\(s\), in the same order"),
        (["model=[a,b]", "out=[c,./c]"], r"out=\['c', './c'\]: names a folder twice"),
        (["model=[]", "out=[]"], r"model=\[\]: names no checkpoint"),
        (["model=[a,b]", "out=[c,d]", "seed=-1"], r"1 problem\(s\) in the configuration:\s*- seed=-1: must be 0"),
    ],
)
def test_each_model_needs_a_folder(words, problem):
    with pytest.raises(ConfigError, match=problem):
        load(EvalCommand, ["suite=atlas", "data=d", *words])
    [one] = load(EvalCommand, ["suite=atlas", "data=d", "model=[x", "out=o, p"]).each()
    assert (one.model, one.out) == ("[x", "o, p")
