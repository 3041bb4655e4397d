"""The table of a comparison from what its tries left on disk: numbers, notes, failures. All values by hand."""

import json
from pathlib import Path

import pytest

from verl.compare import output, page
from verl.compare.choice import Score
from verl.compare.config import CompareConfig, RowConfig
from verl.compare.jobs import Job
from verl.compare.plan import tries_of
from verl.compare.stages import Outcome, measured_folder, settle

GRID = {"learning_rate": [1, 2]}
ROWS = {
    "original": RowConfig(stage="none", name="Original"),
    "told": RowConfig(stage="none", name="In-context", grid={"system_prompt": ["a", "b"]}),
    "rs": RowConfig(name="RS", grid=GRID),
    "rebo": RowConfig(stage="rebo", name="ReBO", kind="ours", start="rs", config="a.yaml", grid=GRID),
}
PROBES = {"original": (90, 90), "told": (30, 80), "rs": (5, 60), "rebo": (10, 85)}
"""forget and neighbor recall of every row"""


def entry(**metrics: float) -> dict:
    values = {name.replace("__", "/"): {"value": v, "low": v - 6, "high": v + 8, "n": 4} for name, v in metrics.items()}
    return {"decoding": {"system_prompt": None}, "data": {"f": "sha"}, "metrics": values}


def write_measured(config: CompareConfig, job: Job, shift: float) -> None:
    forget, neighbor = PROBES[job.one.row]
    document = {
        "format": 1,
        "suite": "atlas",
        "model": {"path": "m"},
        "engine": {"dtype": "float32", "max_model_len": None},
        "data": {"path": f"d/{job.one.target}"},
        "parts": {"forget": entry(all_macro=forget + shift), "neighbor": entry(all_macro=neighbor + shift)},
    }
    for part in document["parts"].values():
        part["decoding"]["system_prompt"] = job.asked.get("system_prompt")
    folder = measured_folder(config, job)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(document))
    (folder / "DONE").touch()
    recalls = {"plain": forget, "relearn_2x5": forget + 40, "int4": forget + 1}
    conditions = {name: {"untold": {"recall": value + shift}} for name, value in recalls.items()}
    record = {"conditions": conditions, "strongest": {"relearn": "relearn_2x5", "int4": "int4"}}
    (folder / "attacks").mkdir()
    record["most_recovered"] = {"recall": forget + 40 + shift}
    (folder / "attacks" / "robustness.json").write_text(json.dumps(record))
    (folder / "attacks" / "DONE").touch()


@pytest.fixture
def made(tmp_path) -> tuple[CompareConfig, Outcome]:
    """Four rows on two targets with two seeds; the second try of each is the better one."""
    config = CompareConfig(
        model="base",
        data="d",
        targets=["1", "2"],
        log=str(tmp_path / "log"),
        out=str(tmp_path / "out"),
        rows=ROWS,
        seeds=[1, 2],
        tries=2,
        suite="atlas",
    )
    outcome = Outcome()
    for name, row in ROWS.items():
        jobs = []
        for one in tries_of(config, name, ["1_A", "2_B"]):
            run = tmp_path / "log" / one.place
            asked = dict(one.point) if row.stage == "none" else {}
            job = Job(one, row.stage, dict(one.point), [], run, tmp_path / "scored", "base", asked)
            outcome.scores[one] = Score(one.number / 10, 0.5, 0.5)
            write_run(job)
            jobs.append(job)
        settle(config, jobs, outcome)
    for job in outcome.chosen.values():
        write_measured(config, job, shift=(job.one.target == "2_B") * 2.0)
    return config, outcome


def write_run(job: Job) -> None:
    if job.stage == "none":
        return
    rows = {
        "rs": [{"step": 1, "seconds": 2.0}, {"step": 2, "seconds": 3.0}],
        "rebo": [{"step": 1, "perf/time_per_step": 7.0, "perf/peak_memory_gib": 1.5}],
    }[job.stage]
    (job.run / "epoch_1").mkdir(parents=True)
    (job.run / "epoch_1" / "config.json").touch()
    checkpoint = job.run / "checkpoints" / "global_step_4" / "actor" / "huggingface"
    checkpoint.mkdir(parents=True)
    (job.run / "checkpoints" / "checkpoint_tracker.json").write_text('{"last_global_step": 4}')
    (job.run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (job.run / "DONE").touch()


def test_the_better_try_is_chosen_and_the_models_of_the_others_go(made):
    config, outcome = made
    assert {job.one.number for unit, job in outcome.chosen.items() if unit[0] != "original"} == {2}
    first, second = outcome.jobs["rs", "1_A", 1]
    assert first.model is None and second.model == second.run / "epoch_1"
    assert (first.run / "metrics.jsonl").is_file()
    assert len(list(Path(config.log).rglob("epoch_1"))) == 8  # two rows, two targets, two seeds


def test_rows_are_means_over_targets_and_seeds_with_costs_and_attacks(made):
    config, outcome = made
    table = output.comparison(config, ["1_A", "2_B"], outcome, list(ROWS))
    lines = {line.name: line for line in table.lines}
    assert table.targets() == ["1_A, seed 1", "1_A, seed 2", "2_B, seed 1", "2_B, seed 2"]
    rebo = lines["ReBO"].cells
    assert rebo["forget_all"].mean == 11  # 10 and 12, twice
    assert rebo["forget_all"].deviation == pytest.approx((4 / 3) ** 0.5)
    # Four intervals of 6 below and 8 above, as of independent samples: 6 * 2 / 4 and 8 * 2 / 4.
    assert (rebo["forget_all"].low, rebo["forget_all"].high) == (pytest.approx(8), pytest.approx(15))
    assert rebo["back_most"].mean == rebo["back_relearn"].mean == 51
    assert rebo["back_int4"].mean == 12
    assert "back_few_shot" not in rebo
    assert (rebo["seconds"].mean, rebo["peak_gib"].mean) == (12, 1.5)  # 2 + 3 of the RS model, and 7
    assert lines["RS"].cells["seconds"].mean == 5
    assert lines["In-context"].cells["forget_all"].mean == 31  # its system prompt is the method, no other decoding
    assert not lines["Original"].cells.keys() & {"seconds", "peak_gib"}


def test_the_notes_say_who_dominates_whom(made):
    config, outcome = made
    notes = output.comparison(config, ["1_A", "2_B"], outcome, list(ROWS)).notes
    assert "On (forget, neighbor) ReBO (11.0, 86.0) is dominated by no tuned baseline." in notes
    assert "On (most that comes back, neighbor) ReBO (51.0, 86.0) is dominated by no tuned baseline." in notes
    points = {"(forget, neighbor)": {"ReBO": (11, 86), "RS": (5, 86), "In-context": (11, 86), "Original": (0, 100)}}
    assert output.dominance_notes(config, list(ROWS), points) == [
        "On (forget, neighbor) ReBO (11.0, 86.0) is DOMINATED by RS (5.0, 86.0)."
    ]


def test_the_page_says_first_what_ours_does_beside_the_baselines(made):
    config, outcome = made
    names = {name: row.name for name, row in ROWS.items()}
    table = output.comparison(config, ["1_A", "2_B"], outcome, list(ROWS))
    first, *_, cost = page.findings(table, ["ReBO"], ["In-context", "RS"])
    assert (first.title, first.figure) == ("Forgotten", "11 %")
    assert first.text.endswith("about the target; the baselines from 6.0 (RS) to 31.0 (In-context).")
    assert cost.figure == "12 s"
    assert page.beside(config, names) == ["Original", "RS", "ReBO"]
    dots = page.dots(outcome, table, names)
    on_probes = {dot.method: (dot.forget, dot.neighbor, dot.recovered) for dot in dots if dot.measured_on == "probes"}
    assert on_probes["RS"] == (6, 61, 46)
    tries = [dot for dot in dots if dot.method == "RS" and dot.measured_on == "validation"]
    assert [(dot.settings, round(dot.score)) for dot in tries] == [("learning_rate=1", 10), ("learning_rate=2", 20)]
    assert not any(dot.chosen for dot in tries)


def test_a_row_that_could_not_be_attacked_is_told():
    more = {"A": {"1": {"back_most": 3.0}, "2": {}}, "B": {"1": {"back_most": 1.0}}}
    config = CompareConfig("m", "d", ["1"], "log/t", "results/t", ROWS, attacks="a.yaml")
    assert output.unattacked(config, more) == ["A"]
    assert output.unattacked(CompareConfig("m", "d", ["1"], "log/t", "results/t", ROWS), more) == []


def test_all_tries_and_the_choice_are_written(made):
    config, outcome = made
    first = outcome.jobs["rebo", "2_B", 1][0].one
    outcome.failed[first] = "lower the learning rate"
    del outcome.scores[first]
    output.write_tries(config, outcome)
    record = json.loads((Path(config.out) / "tries.json").read_text())["rows"]["rebo"]
    assert record["grid"] == GRID
    unit = next(unit for unit in record["units"] if (unit["target"], unit["seed"]) == ("2_B", 1))
    assert unit["chosen"] == 2
    assert unit["tries"][0] == {
        "number": 1,
        "settings": {"learning_rate": 1},
        "failed": "lower the learning rate",
        "seconds": 7.0,
        "peak_gib": 1.5,
    }
    assert unit["tries"][1]["score"] == 0.2
    text = (Path(config.out) / "tries.md").read_text()
    assert "| ReBO | 2_B, seed 1 | learning_rate=1 | – | – | – | 7 | lower the learning rate |" in text
    assert "| ReBO | 2_B, seed 1 | learning_rate=2 | 20.0 | 50.0 | 50.0 | 7 | chosen |" in text


def test_a_failed_row_is_listed_and_the_rest_is_printed(made, monkeypatch):
    config, outcome = made
    monkeypatch.setattr(output.pareto, "plot", lambda points, path, title: path.touch())
    targets = {"1_A": Path("d/1_A"), "2_B": Path("d/2_B")}
    assert output.write(config, targets, outcome) == 0
    outcome.broken["rs", "2_B", 1] = "no | space"
    outcome.broken["rebo", "2_B", 1] = "starts from rs, which failed"
    assert output.write(config, targets, outcome) == 1
    text = (Path(config.out) / "table.md").read_text()
    assert "- FAILED: RS: 2_B, seed 1: no | space\n" in text
    assert "- FAILED: ReBO: 2_B, seed 1: starts from rs, which failed\n" in text
    assert "| In-context |" in text and "| ReBO |" not in text
    assert "| Original | 91.0 (88.0 to 95.0) |" in text
    assert "starts from rs, which failed" in (Path(config.out) / "report.html").read_text()


def test_no_choice_where_every_try_failed(made):
    config, outcome = made
    jobs = outcome.jobs["rs", "1_A", 1]
    outcome.chosen.clear()
    for job in jobs:
        outcome.scores.pop(job.one)
        outcome.failed[job.one] = "it diverged"
    settle(config, jobs, outcome)
    assert outcome.broken["rs", "1_A", 1] == "it diverged"
    assert ("rs", "1_A", 1) not in outcome.chosen
