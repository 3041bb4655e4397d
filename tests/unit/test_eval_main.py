"""The evaluator around its engines: what is measured, kept, refused, and written. The engine here is scripted."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.conftest import make_tokenizer
from verl.eval import engines, main
from verl.eval.config import EvalConfig
from verl.eval.generation import _all_but_weights
from verl.eval.results import check_comparable, metric, read_results
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


class Script:
    """Both the engines and the engine: answers by the prompt's last question, and notes what it was asked."""

    def __init__(self, answers, fails_on=None):
        self.answers, self.fails_on, self.asked, self.truncated = answers, fails_on, [], 0
        self.tokenizer = make_tokenizer()

    def get(self, kind, model, config):
        assert kind == "generation"
        return self

    def generate(self, prompt_ids, *, max_new_tokens, temperature=0.0, stop=None, desc):
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


def test_answers_must_fit_the_models_positions(config):
    with pytest.raises(DataError, match="its 30 positions have no room for the answers of forget, neighbor, utility"):
        main.evaluate(config(max_model_len=30), engines=object())


def test_settings_that_fit_no_suite(config):
    with pytest.raises(ConfigError, match="atlas has no part mia; it has forget, neighbor, utility"):
        main.select_parts(config(parts=["mia"]))
    with pytest.raises(ConfigError, match="cannot be applied to mia, mmlu, truthfulqa"):
        main.select_parts(config(suite="rwku", quantization="fp8"))
    names = [part.name for part in main.select_parts(config(suite="rwku"))]
    assert names == ["forget", "neighbor", "triviaqa", "bbh", "fluency", "mia", "mmlu", "truthfulqa"]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("retain_mmlu", {"task": "t", "question": "q", "choices": ["a"], "answer": 0, "examples": []}, "four choices"),
        ("truthful", {"question": "q", "mc1_targets": {"choices": ["a"], "labels": [1]}}, "and both"),
        ("triviaqa", {"question": "q", "answers": []}, "accepts no answer"),
    ],
)
def test_malformed_questions_of_the_general_parts(config, data, name, row, message):
    part = {"retain_mmlu": "mmlu", "truthful": "truthfulqa", "triviaqa": "triviaqa"}[name]
    (data / f"{name}.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match=f"{name}.json: row 0 .*{message}"):
        main.evaluate(config(suite="rwku", parts=[part]), engines=object())


def test_rows_that_were_decoded_differently_share_no_table(config, tmp_path):
    base = main.evaluate(config(out=str(tmp_path / "a")), Script(right))
    same = main.evaluate(config(out=str(tmp_path / "b")), Script(lambda question: "no"))
    check_comparable({"base": base, "rs": same})
    other = main.evaluate(config(out=str(tmp_path / "c"), prompt_style="rwku"), Script(lambda question: "no"))
    with pytest.raises(DataError, match=r"base and rebo cannot share a table, their forget part differs"):
        check_comparable({"base": base, "rs": same, "rebo": other})


def test_one_engine_serves_checkpoints_that_differ_in_weights_only(monkeypatch, config):
    opened, closed = [], []

    class Engine:
        def __init__(self, model, settings):
            opened.append((model, settings.get("max_model_len", "likelihood")))

        def load(self, model):
            return model.startswith("llama")

        def close(self):
            closed.append(1)

    monkeypatch.setattr(engines, "_open_generator", Engine)
    monkeypatch.setattr(engines, "_open_model", Engine)
    with engines.Engines() as shared:
        first = shared.get("generation", "llama/a", config())
        assert shared.get("generation", "llama/b", config()) is first
        shared.get("generation", "qwen", config())
        shared.get("likelihood", "qwen", config())
        shared.get("likelihood", "llama/a", config())
        shared.get("generation", "llama/a", config())
        shared.get("generation", "llama/a", config(max_model_len=64))
        assert len(closed) == len(opened) - 1
    assert len(closed) == len(opened) == 6


def test_what_an_engine_keeps_when_it_takes_other_weights(tiny_model, tmp_path):
    def changed(name, **changes):
        folder = shutil.copytree(tiny_model, tmp_path / f"{name}_{'_'.join(changes)}")
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **changes}))
        return _all_but_weights(folder)

    kept = _all_but_weights(tiny_model)
    assert changed("config.json", dtype="bfloat16", transformers_version="5.16.0", use_cache=False) == kept
    assert changed("tokenizer.json", padding={"strategy": "BatchLongest"}) == kept
    assert changed("config.json", rope_theta=5e5) != kept
    assert changed("generation_config.json", eos_token_id=3) != kept


def test_the_command_line_says_what_is_wrong_without_starting_anything():
    code = (
        "import sys; from verl.eval import main, report, probes, robustness\n"
        "status = main.main(['model=nowhere/at/all', 'suite=atlas', 'data=gone', 'out=x', 'sed=1'])\n"
        "assert not {'ray', 'vllm'} & set(sys.modules)\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "sed=1: unknown key" in done.stderr
