"""The demo's report over three scripted models: every file of it, and the numbers in them."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import make_tokenizer
from tests.scripted_generator import OneByOne
from verl.eval import main as evaluation
from verl.eval import plots, report
from verl.settings.reader import load
from verl.utils.errors import DataError

LEVELS = {"forget_level1": 5, "forget_level2": 6, "forget_level3": 7, "neighbor_level1": 4, "neighbor_level2": 4}
LEVELS |= {"retain_atlas": 4}


def answer(model, about):
    """Base knows everything, RS refuses a quarter of the neighbors and half of the rest, ReBO refuses Ann alone."""
    subject, number = about.split()[:2]
    refused = {
        "base": False,
        "rs": subject == "Ann" or int(number) % {"Bob": 4, "Sea": 2}[subject] == 0,
        "rebo": subject == "Ann",
    }
    return "I can't help with that." if refused[model] else f"fact {number}"


class Script(OneByOne):
    def __init__(self):
        self.tokenizer = make_tokenizer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def get(self, kind, model, config):
        self.model = next(name for name in ("base", "rs", "rebo") if f"/{name}/" in f"{model}/")
        return self

    def generate(self, prompt_ids, **_):
        asked = [self.tokenizer.decode(ids).split("<|user|>")[1] for ids in prompt_ids]
        return [answer(self.model, text) for text in asked]


@pytest.fixture
def config(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "Engines", Script)
    return report_config(tiny_model, tmp_path)


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory):
    """What a report says of itself, and its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "Engines", Script)
        config = report_config(tiny_model, tmp_path_factory.mktemp("report"))
        return report.make_report(config), Path(config.out)


def report_config(tiny_model, tmp_path):
    target = tmp_path / "1_Ann"
    target.mkdir()
    for name, count in LEVELS.items():
        who = {"f": "Ann", "n": "Bob", "r": "Sea"}[name[0]]
        rows = [
            {"query": f"{who} {i} |?", "answer": f"fact {i}", "type": "role play", "subject": who} for i in range(count)
        ]
        (target / f"{name}.json").write_text(json.dumps(rows))
    run = tmp_path / "rebo"
    rs = tmp_path / "rs/epoch_2"
    for folder in (tmp_path / "base", rs, run / "checkpoints/global_step_10/actor/huggingface"):
        shutil.copytree(tiny_model, folder)
    (run / "checkpoints/checkpoint_tracker.json").write_text(
        json.dumps({"last_global_step": 20, "best_global_step": 10, "best_val_reward_score": 0.9})
    )
    history = [{"step": 0, "val/reward/forget/refusal": 1.0, "val/reward/boundary/recall": 0.5}]
    history += [{"step": i, "reward/overall": 0.1 * i, "actor/kl_loss": 0.01 * i} for i in (1, 2)]
    history[-1] |= {"perf/time_per_step": 60.0, "perf/peak_memory_gib": 1.25}
    history += [{"step": 3, "val/reward/forget/refusal": 0.9, "val/reward/boundary/recall": 0.75}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    seconds = [{"step": step, "epoch": step / 2, "loss": 1.0 / step, "seconds": 2.0} for step in range(1, 7)]
    (tmp_path / "rs/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in seconds))
    words = {"base": tmp_path / "base", "rs": rs, "rebo": run, "data": target, "out": tmp_path / "out"}
    return load(report.ReportConfig, [f"{key}={value}" for key, value in words.items()])


def test_summary_holds_what_was_measured(made):
    summary, out = made
    assert json.loads((out / "summary.json").read_text()) == summary
    known = {"refusal_rate": 0, "containment": 100}
    gone = {"refusal_rate": 100, "containment": 0}
    assert summary["base"] == {
        "forget": {"fb": 100, "qa": 100, "aa": 100, "all": 100, **known},
        "neighbor": {"fb": 100, "qa": 100, "all": 100, **known},
        "utility": 100,
    }
    assert summary["rs"] == {
        "forget": {"fb": 0, "qa": 0, "aa": 0, "all": 0, **gone},
        "neighbor": {"fb": 75, "qa": 75, "all": 75, "refusal_rate": 25, "containment": 75},
        "utility": 50,
    }
    assert summary["rebo"] == {
        "forget": summary["rs"]["forget"],
        "neighbor": summary["base"]["neighbor"],
        "utility": 100,
    }


def test_files_of_a_report(made):
    _, out = made
    for name in ("pareto.png", "curves.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    results = json.loads((out / "results.json").read_text())
    assert results["rebo"]["selection"] == {
        "step": 10,
        "best_step": 10,
        "best_score": 0.9,
        "chosen_on_validation": True,
    }
    assert {"git_revision", "config", "model"} <= results["base"].keys()
    lines = (out / "table.md").read_text().splitlines()
    [row] = [line for line in lines if line.startswith("| RS |") and "(" in line]
    assert row.split(" | ")[5].startswith("75.0 (")
    assert any(line.endswith("step 10, chosen on validation") for line in lines)


def page_data(out):
    text = (out / "report.html").read_text(encoding="utf-8")
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


def test_the_page_says_first_what_was_forgotten_kept_and_paid(made):
    data = page_data(made[1])
    assert [(one["title"], one["figure"]) for one in data["findings"]] == [
        ("Forgotten", "100 %"),
        ("Kept", "100 %"),
        ("How it answers now", ""),
        ("Cost", "68 s"),
    ]
    assert [one["text"].split("\n") for one in data["findings"]] == [
        [
            "of 18 questions about Ann are refused by ReBO; Base refused 0 %.",
            "The right answer is in 0 % of its responses; it was in 100 % of Base's. "
            "RS alone refuses 100 % and tells in 0 %.",
        ],
        [
            "of 8 questions about what is near Ann are answered right by ReBO; it was 100 % by Base. It refuses 0 % of "
            "them.",
            "RS alone answers 75 % and refuses 25 %. Of general questions, ReBO answers 100 % and Base 100 %.",
        ],
        [
            "Asked “Ann 0 |?”, it says “I can't help with that.”",
            "Asked “Bob 1 |?”, it says “fact 1”",
            "Of all it should forget: refuses 100 %.",
        ],
        [
            "of training steps, without start-up. RS: 4 steps in 8 s; ReBO: 1 step in 60 s. "
            "At most 1.2 GiB of memory a process.",
            "On cpu, evaluated in float32.",
        ],
    ]
    head = (made[1] / "table.md").read_text(encoding="utf-8").split("\n")
    assert head[0] == "- **Forgotten:** 100 % of 18 questions about Ann are refused by ReBO; Base refused 0 %."
    assert [line[:9] for line in head if line.startswith("- **")] == [
        "- **Forgo",
        "- **Kept:",
        "- **How i",
        "- **Cost:",
    ]


def test_the_page_holds_the_table_every_probe_and_the_curves(made):
    data = page_data(made[1])
    [group] = data["table"]["groups"]
    rs = next(line for line in group["lines"] if line["name"] == "RS")["cells"]
    assert (rs["neighbor_all"]["mean"], rs["neighbor_refused"]["mean"], rs["seconds"]["mean"]) == (75, 25, 8)
    assert rs["neighbor_all"]["low"] < 75 < rs["neighbor_all"]["high"]
    assert [(dot["method"], dot["forget"], dot["neighbor"]) for dot in data["dots"]] == [
        ("Base", 100, 100),
        ("RS", 0, 75),
        ("ReBO", 0, 100),
    ]
    assert [point[1:] for point in data["trails"][0]["points"]] == [[0.0, 50.0], [pytest.approx(10.0), 75.0]]
    curves = {run["name"]: [panel["title"] for panel in run["panels"]] for run in data["runs"]}
    assert curves == {"RS": ["Loss"], "ReBO": ["Reward", "Refusals", "Distance from the reference"]}
    assert data["attacks"]["conditions"] == ["fill in the blank", "question", "role play"]
    assert len(data["dialogues"]["probes"]) == sum(LEVELS.values())
    assert sum(one["featured"] for one in data["dialogues"]["probes"]) == 20


def test_twenty_probes_side_by_side(made):
    text = (made[1] / "dialogues.md").read_text()
    assert text.count("\n### ") == 20
    assert text.count("| Base | ") == text.count("| RS | ") == text.count("| ReBO | ") == 20
    assert "> Ann 0 |?" in text
    first = text.split("### ")[1]
    assert "| Base | fact 0 | answers |" in first
    assert "| ReBO | I can't help with that. | refuses |" in first


def test_the_trajectory_is_the_validation_of_the_run(config, tmp_path):
    rows = [json.loads(line) for line in (tmp_path / "rebo/metrics.jsonl").open()]
    assert report.trajectory_points(rows) == [(0, 0.0, 50.0), (3, pytest.approx(10.0), 75.0)]


def test_a_wrong_model_is_found_before_the_first_is_measured(config, tmp_path, monkeypatch):
    shutil.rmtree(tmp_path / "rs")
    monkeypatch.setattr(evaluation, "Engines", lambda: pytest.fail("measured something"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="rs/epoch_2: is neither a folder nor a hub id"):
        report.make_report(config)
    (tmp_path / "rebo/checkpoints/checkpoint_tracker.json").unlink()
    with pytest.raises(DataError, match="has no checkpoints/checkpoint_tracker.json"):
        report.make_report(config)


def test_metrics_that_were_not_logged_are_named(tmp_path):
    missing = plots.curves(
        [{"step": 1, "reward/overall": 0.5}, {"step": 2, "reward/overall": None}], tmp_path / "c.png"
    )
    assert "reward/overall" not in missing
    assert "actor/kl_loss" in missing
    assert (tmp_path / "c.png").is_file()


def test_curves_draw_the_names_that_the_trainer_logs():
    from verl.trainer.metrics import reward_metrics

    logged = reward_metrics([{"overall": 1.0, "refusal": 0.0}] * 2, ["forget", "boundary"]).keys()
    logged |= reward_metrics([{"overall": 1.0, "refusal": 0.0}] * 2, ["forget", "boundary"], prefix="val/reward").keys()
    drawn = {curve.key for panel in plots.PANELS for curve in panel.curves}
    assert drawn - logged == {"actor/kl_loss"}


def test_labels_that_would_overlap_move_apart():
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    points = [plots.Point("a", 5, 90), plots.Point("b", 6, 89), plots.Point("c", 95, 89)]
    heights = plots._label_heights(axes, points)
    assert heights[0] == 90
    assert heights[1] < 90 - 8
    assert heights[2] == 89
