"""Tables on paper: formats, the Pareto plot, and the command that writes them."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.eval.test_tables import PAPER, ROOT, chosen, csv_rows, entry, from_model, results
from verl.eval import pareto, render, tables
from verl.eval.layouts import Column
from verl.eval.selection import chosen_checkpoint, selection
from verl.eval.tables import Cell, Line, Table
from verl.settings.reader import load
from verl.utils.checkpoint import staging_dir
from verl.utils.errors import ConfigError, DataError

_spec = importlib.util.spec_from_file_location("make_table", ROOT / "scripts" / "make_table.py")
make_table = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_table)


def small_table() -> Table:
    columns = (
        Column("a", "G_1", "x|y", better="lower"),
        Column("b", "G_1", "B", better="zero", digits=3),
        Column("c", "H", "C"),
    )
    lines = (
        Line("GA & 100%", "published", {"a": Cell(1.25), "c": Cell(-3)}, model="m"),
        Line("Re_BO", "ours", {"a": Cell(2.0, 0.5), "b": Cell(0.04)}, model="M"),
    )
    return Table("rule", columns, lines, ("50 % of it",))


def test_markdown():
    assert render.to_markdown(small_table()).split("\n")[:4] == [
        "| Method | G_1 x\\|y ↓ | G_1 B → 0 | H C |",
        "| --- | ---: | ---: | ---: |",
        "| GA & 100% (published) | **1.2** | – | -3.0 |",
        "| Re_BO | 2.0 ± 0.5 | 0.040 | – |",
    ]


def test_latex():
    assert render.to_latex(small_table()) == "\n".join(
        [
            "% 50 % of it",
            r"\begin{tabular}{lccc}",
            r"\toprule",
            r" & \multicolumn{2}{c}{G\_1} & \multicolumn{1}{c}{H} \\",
            r"\cmidrule(lr){2-3} \cmidrule(lr){4-4}",
            r"Method & x|y $\downarrow$ & B $\to 0$ & C \\",
            r"\midrule",
            r"GA \& 100\% (published) & \textbf{1.2} & -- & -3.0 \\",
            r"\midrule",
            r"Re\_BO & 2.0 $\pm$ 0.5 & 0.040 & -- \\",
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def test_csv_keeps_full_precision_and_leaves_the_unmeasured_empty():
    rows = csv_rows(small_table())
    names = {"source": "published", "model": "m", "method": "GA & 100%", "target": "mean"}
    assert rows[0] == {**names, "a": "1.25", "b": "", "c": "-3"}
    assert (rows[1]["a"], rows[1]["b"], rows[1]["c"]) == ("2.0", "0.04", "")


@pytest.mark.parametrize(
    ("points", "area", "front"),
    [
        ({"a": (0.0, 100.0)}, 100.0, ["a"]),
        ({"a": (100.0, 100.0)}, 0.0, ["a"]),
        ({"a": (50.0, 50.0)}, 25.0, ["a"]),
        # 30..60 at height 40, 60..100 at height 80: 1200 + 3200 of 10000.
        ({"a": (30.0, 40.0), "b": (60.0, 80.0)}, 44.0, ["a", "b"]),
        ({"a": (30.0, 40.0), "b": (60.0, 80.0), "worse": (60.0, 70.0)}, 44.0, ["a", "b"]),
        ({"a": (30.0, 40.0), "b": (30.0, 90.0)}, 63.0, ["b"]),
        ({"a": (20.0, 60.0), "b": (50.0, 50.0)}, 48.0, ["a"]),
        ({"a": (-5.0, 120.0)}, 100.0, ["a"]),
        ({}, 0.0, []),
    ],
)
def test_pareto_area_and_front_by_hand(points, area, front):
    assert pareto.area(points) == pytest.approx(area)
    assert pareto.front(points) == front


def test_points_lie_at_the_kind_of_all_that_the_paper_prints():
    published = tables.read_published(PAPER / "rwku_llama3_8b_instruct.csv", names=["Before"])
    table = tables.build_table("rwku", {"ReBO": {"1_A": results("1_A")}}, published=published)
    assert pareto.table_points(table) == {"published": {"Before": (79.6, 90.7)}, "ours": {"ReBO": (33.0, 77.0)}}
    table = tables.build_table("rule", {"ReBO": {"1_A": results("1_A")}})
    assert pareto.table_points(table) == {"ours": {"ReBO": (40.0, 80.0)}}


@pytest.fixture
def drawn(monkeypatch) -> list[pareto.Figure]:
    """Figures that were written, for their texts to be looked at."""
    figures = []
    monkeypatch.setattr(pareto.Figure, "savefig", lambda figure, *args, **settings: figures.append(figure))
    return figures


def test_names_in_the_plot_cover_neither_each_other_nor_markers(tmp_path, drawn):
    crowd = {f"method {number}": (10.0 + number % 3, 90.0 + number % 2) for number in range(6)}
    pareto.plot({"published": crowd, "ours": {"ReBO": (10.0, 90.0), "Base": (90.0, 100.0)}}, tmp_path / "p", title="t")
    plane, corner = drawn[0].axes
    labels = [[text for text in axes.texts if text.get_text()] for axes in (plane, corner)]
    assert [{text.get_text() for text in texts} for texts in labels] == [{"Base"}, {*crowd, "ReBO"}]
    boxes = [text.get_window_extent() for text in labels[1]]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert not any(box.contains(*corner.transData.transform(point)) for box in boxes for point in crowd.values())


def test_points_all_over_the_plane_are_drawn_once(tmp_path, drawn):
    points = {f"method {number}": (20.0 * number, 20.0 * number) for number in range(6)} | {"beyond": (101.0, 50.0)}
    pareto.plot({"ours": points}, tmp_path / "p", title="t")
    [plane] = drawn[0].axes
    assert {text.get_text() for text in plane.texts} - {""} == set(points)


def test_the_script_runs_by_its_path(tmp_path):
    """Without the package installed, and from any folder."""
    command = [sys.executable, str(ROOT / "scripts" / "make_table.py"), "kind=rule", "rows.RS=none", "out=o"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "matches no file or folder" in done.stderr) == (2, True), done.stderr


def test_selection_reads_the_trainers_tracker(tmp_path):
    checkpoint = tmp_path / "global_step_40" / "actor" / "huggingface"
    assert selection(checkpoint) == chosen(40)
    tracker = {"last_global_step": 60, "best_global_step": 40, "best_val_reward_score": 0.9}
    (tmp_path / "checkpoint_tracker.json").write_text(json.dumps(tracker))
    assert selection(checkpoint) == chosen(40, 40)
    assert selection(tmp_path / "global_step_60" / "actor" / "huggingface") == chosen(60, 40)
    assert selection(tmp_path / "rs" / "epoch_3") is None


def test_a_torn_tracker_names_no_best_step_and_the_newest_whole_checkpoint_stands_for_it(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "checkpoint_tracker.json").write_text('{"last_glo')
    assert selection(checkpoints / "global_step_40" / "actor" / "huggingface") == chosen(40)
    with pytest.raises(DataError, match="checkpoint_tracker.json is torn, and no checkpoint beside it is whole"):
        chosen_checkpoint(tmp_path)
    for step in (20, 40):
        with staging_dir(checkpoints / f"global_step_{step}"):
            pass
    assert chosen_checkpoint(tmp_path) == checkpoints / "global_step_40" / "actor" / "huggingface"


def save(folder: Path, document: dict) -> None:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(document))


@pytest.fixture
def measured(tmp_path):
    for target in ("10_C", "2_B"):
        save(tmp_path / "rwku" / target / "rs", results(target, forget=(60, 50, 40)))
        save(tmp_path / "rwku" / target / "rebo", results(target, forget=(6, 5, 4), step=chosen(40, 40)))
    return tmp_path


def test_the_command_writes_all_formats_and_the_plot(measured):
    out = measured / "table"
    words = [f"rows.RS={measured}/rwku/*/rs", f"rows.ReBO={measured}/rwku/*/rebo", f"out={out}", "kind=rule"]
    assert make_table.main(words) == 0
    text = (out / "table.md").read_text()
    assert text.index("### 2_B") < text.index("### 10_C")  # counted, not spelled
    assert "ReBO-GRPO (published)" in text
    assert text.index("Pareto area (ours)") < text.index("### 2_B")  # it is about all targets
    assert re.search(r"Pareto area \(ours\): 76\.0 %.*front: ReBO\.", text)  # (100 - 5) * 80 / 100
    for picture in ("pareto.png", "tradeoff.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert "RULE's trade-off figure, without a floor: ReBO 0.269, SimNPO 0.204, NPO 0.059, GA 0.068." in text
    assert (out / "table.tex").read_text().count(r"\midrule") == 2
    with (out / "table.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "ours"]
    assert [(row["method"], row["target"]) for row in rows[:4]] == [
        ("RS", "2_B"),
        ("RS", "10_C"),
        ("RS", "mean"),
        ("RS", "std"),
    ]


def test_a_fictional_world_has_no_published_rows_unless_asked_for(tmp_path):
    save(tmp_path / "rs", results("1_A", suite="atlas"))
    words = ["kind=rule", f"rows.RS={tmp_path}/rs", f"out={tmp_path}/t"]
    assert make_table.main(words) == 0
    assert "published" not in (tmp_path / "t" / "table.md").read_text()
    assert make_table.main([*words, "published=[Original]"]) == 0
    assert "Original (published)" in (tmp_path / "t" / "table.md").read_text()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["rows.RS={m}/rwku/*/sft"], "matches no file or folder"),
        (["rows.RS=[{m}/rwku/2_B/rs,{m}/rwku/*/rs]"], "second result for target 2_B"),
        (["rows.RS={m}/rwku/*/rs", "published=[GRPO]"], "published: rule_rwku_table1.csv has no GRPO"),
    ],
)
def test_bad_rows_end_with_code_2_and_write_nothing(measured, capsys, words, problem):
    words = [word.format(m=measured) for word in words]
    assert make_table.main([*words, "kind=rule", f"out={measured}/t"]) == 2
    assert problem in capsys.readouterr().err
    assert not (measured / "t").exists()


def test_bad_settings_are_listed_together():
    words = ["kind=rule", "out=o", "rows.RS=x", "reference=GRPO", "corpus=books", "published=[]", "paper=elsewhere"]
    with pytest.raises(ConfigError) as caught:
        load(make_table.TableConfig, words)
    for problem in (
        "kind=ablation only",
        "none of the rows RS",
        "corpus=books: chooses",
        "paper=elsewhere: no published",
    ):
        assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["kind=ablation", "published=[ReBO-GRPO]"], "published: no paper"),
        (["kind=ablation", "paper=x"], "paper=x: no published rows"),
        (["kind=muse", "corpus=books", "published=[]"], "corpus=books: chooses"),
        (["kind=rwku", "corpus=news"], "corpus=news: chooses"),
        (["kind=muse", "published=[NPO]"], "needs corpus"),
        (["kind=rwku", "token_shares.RS=[1,2]"], "token_shares"),
    ],
)
def test_arguments_that_do_nothing_are_errors(words, problem):
    with pytest.raises(ConfigError, match=problem):
        load(make_table.TableConfig, ["out=o", "rows.RS=x", *words])


def test_both_papers_rows_of_muse_and_the_other_files_figures(tmp_path):
    """Fractions became percent; RepSelect's and RULE's areas are what the sources print."""
    document = from_model("muse-bench/MUSE-Books_target", suite="muse")
    document["parts"] = {"verbmem": entry(f1=12.5), "knowmem_forget": entry(f1=20.0)}
    save(tmp_path / "m", document)
    words = ["kind=muse", "corpus=books", f"rows.ReBO={tmp_path}/m", f"out={tmp_path}/t"]
    assert make_table.main(words) == 0
    first = (tmp_path / "t/table.md").read_text().split("\n\n")[1]
    assert "| NPO (published) | <u>0.0</u> |" in first or "| NPO (published) | **0.0** |" in first
    assert "| NPO (open-unlearning) (published) | 84.0 | 32.0 |" in first
    with (PAPER / "repselect_rwku_relearning.csv").open() as file:
        found = {(row["model"], row["method"]): float(row["answer_probability"]) for row in csv.DictReader(file)}
    assert found["Llama-3.1-8B", "RepSelect"] == 0.534
    assert found["Qwen3.5-9B", "no unlearning"] == 0.524
    assert len(found) == 14
