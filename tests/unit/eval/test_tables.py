"""Tables from hand-made results: every number, every refusal, every format."""

import csv
import io
import json
import re

import pytest

from tests.conftest import ROOT
from verl.eval import pareto, render, tables
from verl.eval.layouts import LAYOUTS, Column
from verl.eval.tables import Cell, Line, Table
from verl.utils.errors import DataError

PAPER = ROOT / "data" / "paper"
FORGET = ("fb", "qa", "aa")


def entry(decoding=None, data=None, **metrics) -> dict:
    values = {name.replace("__", "/"): {"value": v, "low": None, "high": None, "n": 4} for name, v in metrics.items()}
    return {"decoding": decoding or {"max_new_tokens": 30}, "data": data or {"f": "sha"}, "metrics": values}


def results(target="1_Ann", *, forget=(60, 30, 30), neighbor=(90, 70), suite="rwku", step=None, **parts) -> dict:
    """A results.json whose macro means are those of its columns; ``all_probe`` is set apart to tell them apart."""
    document = {
        "format": 1,
        "suite": suite,
        "model": {"path": "m"},
        "engine": {"dtype": "bfloat16", "max_model_len": None, "quantization": None},
        "data": {"path": f"data/{target}"},
        "selection": step,
        "parts": {
            "forget": entry(
                **dict(zip(FORGET, forget, strict=True)),
                all_macro=sum(forget) / 3,
                all_probe=33.0,
                all_macro__refusal_rate=12.0,
                all_macro__containment=5.0,
            ),
            "neighbor": entry(
                fb=neighbor[0], qa=neighbor[1], all_macro=sum(neighbor) / 2, all_probe=77.0, all_macro__refusal_rate=1.0
            ),
            **parts,
        },
    }
    return json.loads(json.dumps(document))


def chosen(step: int, best: int | None = None) -> dict:
    return {"step": step, "best_step": best, "best_score": None if best is None else 0.9} | {
        "chosen_on_validation": best == step
    }


def line_of(table: Table, name: str) -> Line:
    return next(line for line in table.lines if line.name == name)


def csv_rows(table: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render.to_csv(table))))


def test_means_and_deviations_over_targets():
    """Forget FB 60, 70, 80: mean 70, sample deviation 10 (not the population's 8.16)."""
    rows = {"RS": {t: results(t, forget=(fb, 30, 30)) for t, fb in (("1_A", 60), ("2_B", 70), ("5_C", 80))}}
    table = tables.build_table("rule", rows)
    cells = line_of(table, "RS").cells
    assert (cells["forget_fb"].mean, cells["forget_fb"].deviation) == pytest.approx((70, 10))
    assert cells["forget_all"].mean == pytest.approx((40 + 130 / 3 + 140 / 3) / 3)
    assert (cells["forget_all_probe"].mean, cells["forget_all_probe"].deviation) == (33, 0)
    found = {row["target"]: row for row in csv_rows(table)}
    assert [float(found[t]["forget_fb"]) for t in ("1_A", "2_B", "5_C", "mean", "std")] == [60, 70, 80, 70, 10]
    assert "70.0 ± 10.0" in render.to_markdown(table)
    assert "3 targets" in " ".join(table.notes)


def test_one_target_has_no_deviation():
    table = tables.build_table("rule", {"RS": {"1_A": results("1_A")}})
    assert line_of(table, "RS").cells["forget_fb"] == Cell(60, None)
    assert [row["target"] for row in csv_rows(table)] == ["1_A", "mean"]
    assert "±" not in render.to_markdown(table).split("\n\n")[0]


def test_the_main_table_has_the_published_columns_and_both_kinds_of_all():
    with (PAPER / "rule_rwku_table1.csv").open() as file:
        printed = set(next(csv.reader(file))) - {"method", "source"}
    keys = {column.key for column in LAYOUTS["rule"]}
    assert printed <= keys
    assert {"forget_all_probe", "retain_all_probe", "forget_refusal", "retain_refusal"} <= keys
    for kind, name in (("rwku", "rwku_llama3_8b_instruct.csv"), ("muse", "muse_llama2_7b.csv")):
        with (PAPER / name).open() as file:
            printed = set(next(csv.reader(file))) - {"method", "corpus", "source"}
        assert printed <= {column.key for column in LAYOUTS[kind]}


def test_published_rows_are_marked_and_keep_their_kind_of_all():
    ours = {"ReBO": {"1_A": results("1_A")}}
    table = tables.build_table("rule", ours, published=tables.read_published(PAPER / "rule_rwku_table1.csv"))
    assert line_of(table, "ReBO-GRPO").cells["forget_all"].mean == 27.7
    assert "| ReBO-GRPO (published) |" in render.to_markdown(table)
    assert "| ReBO |" in render.to_markdown(table)
    assert "ReBO-GRPO (published)" in render.to_latex(table)
    assert {row["source"] for row in csv_rows(table) if row["method"] == "ReBO-GRPO"} == {"published"}
    assert any("printed by RULE (arXiv 2506.07171)" in note and "not measured by us" in note for note in table.notes)
    rwku = {line.name: line for line in tables.read_published(PAPER / "rwku_llama3_8b_instruct.csv")}
    assert rwku["Before"].cells["forget_all_probe"].mean == 79.6  # weighted by probes there
    assert "forget_all" not in rwku["Before"].cells


def test_published_macro_means_are_means_of_their_columns():
    """What the README says of RULE's file; a copying slip in the figures would show here."""
    for line in tables.read_published(PAPER / "rule_rwku_table1.csv"):
        for prefix, columns in (("forget", FORGET), ("retain", ("fb", "qa"))):
            mean = sum(line.cells[f"{prefix}_{c}"].mean for c in columns) / len(columns)
            assert line.cells[f"{prefix}_all"].mean == pytest.approx(mean, abs=0.151), (line.name, prefix)


def test_published_rows_of_one_corpus_and_by_name():
    lines = tables.read_published(PAPER / "muse_llama2_7b.csv", corpus="books", names=["Retrain", "Target"])
    assert [(line.name, line.cells["verbmem_f"].mean) for line in lines] == [("Retrain", 14.3), ("Target", 99.8)]
    with pytest.raises(DataError, match="Retrian"):
        tables.read_published(PAPER / "muse_llama2_7b.csv", corpus="books", names=["Retrian"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"method,source,forget_all\ncaf\xe9,x,1\n", "cannot be read as CSV in UTF-8"),
        (b"method,source,forget_all\nA,x,1\nB,x,?\n", "row 1: holds what is no number"),
        (b"name,source\nA,x\n", "row 0: holds what is no number"),
        (b"method,forget_all\nA,1\n", "row 0: has no source; it has method, forget_all"),
    ],
)
def test_a_published_file_that_is_none_is_named(data, message, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"mine.csv: {message}"):
        tables.read_published(path)
    path.write_bytes(b"method,source,forget_all\nA,x,1\n".decode().encode("utf-8-sig"))
    assert [line.name for line in tables.read_published(path)] == ["A"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda doc: doc["parts"]["forget"]["decoding"].update(max_new_tokens=1024), "max_new_tokens"),
        (lambda doc: doc["parts"]["neighbor"]["decoding"].update(temperature=0.7), "temperature"),
        (lambda doc: doc["parts"]["forget"]["data"].update(f="other"), "other"),
        (lambda doc: doc["engine"].update(dtype="float32"), "float32"),
    ],
    ids=["length", "sampling", "data", "arithmetic"],
)
def test_rows_measured_differently_are_refused(change, words):
    other = results("1_A")
    change(other)
    with pytest.raises(DataError, match=rf"(?s)RS.*ReBO.*{words}"):
        tables.build_table("rule", {"RS": {"1_A": results("1_A")}, "ReBO": {"1_A": other}})


def test_targets_measured_differently_are_refused():
    other = results("2_B")
    other["parts"]["forget"]["decoding"]["max_new_tokens"] = 1024
    with pytest.raises(DataError, match="2_B"):
        tables.build_table("rule", {"RS": {"1_A": results("1_A"), "2_B": other}})


def test_other_data_is_fine_for_another_target():
    other = results("2_B")
    other["parts"]["forget"]["data"] = {"f": "another file"}
    tables.build_table("rule", {"RS": {"1_A": results("1_A"), "2_B": other}})


def test_rows_over_other_targets_and_half_measured_rows_are_refused():
    with pytest.raises(DataError, match="same targets.*2_B"):
        tables.build_table("rule", {"RS": {"1_A": results("1_A")}, "ReBO": {"2_B": results("2_B")}})
    judged = results("2_B", naturalness=entry(readability=90.0))
    with pytest.raises(DataError, match="naturalness.readability is measured on 2_B only"):
        tables.build_table("rule", {"RS": {"1_A": results("1_A"), "2_B": judged}})
    with pytest.raises(DataError, match="at least one row"):
        tables.build_table("rule", {})


def test_what_nobody_measured_has_no_column_and_what_one_did_not_is_a_dash():
    judge = {"judge": "strict", "judge_prompts_sha256": "abcdef0123456789"}
    judged = results("1_A", naturalness=entry(judge, readability=90.0, all=80.0))
    table = tables.build_table("rule", {"RS": {"1_A": results("1_A")}, "ReBO": {"1_A": judged}})
    keys = [column.key for column in table.columns]
    assert "nat_readability" in keys
    assert "nat_helpfulness" not in keys
    assert "utility" not in keys
    rs = render.to_markdown(table).split("\n")[2].split(" | ")
    assert rs[keys.index("nat_readability") + 1] == render.MISSING
    assert any("judged by strict (prompts abcdef012345)" in note for note in table.notes)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (chosen(40, 40), "step 40, chosen on the validation split"),
        (chosen(60, 40), r"step 60, NOT the one that validation chose \(step 40\)"),
        (chosen(60), "step 60; no validation was run"),
        (None, "nothing was chosen"),
    ],
)
def test_the_table_says_which_step_it_shows(choice, words):
    table = tables.build_table("rule", {"ReBO": {"1_A": results("1_A", step=choice)}})
    assert re.search(f"ReBO: .*{words}", render.to_markdown(table))
    assert re.search(f"ReBO: .*{words}", render.to_latex(table))


def test_steps_of_several_targets_are_told_apart():
    rows = {"ReBO": {t: results(t, step=chosen(s, s)) for t, s in (("1_A", 20), ("2_B", 40))}}
    note = tables.build_table("rule", rows).notes[-1]
    assert note.startswith("ReBO: 1_A: step 20, chosen")
    assert "2_B: step 40, chosen" in note


def test_ablations_show_paired_differences():
    """Differences -10 and -30 in forget macro; their deviation is that of the differences, not of the values."""
    rows = {
        "ReBO": {"1_A": results("1_A", forget=(30, 30, 30)), "2_B": results("2_B", forget=(60, 60, 60))},
        "no boundary": {"1_A": results("1_A", forget=(20, 20, 20)), "2_B": results("2_B", forget=(30, 30, 30))},
    }
    table = tables.build_table("ablation", rows, reference="ReBO")
    cells = line_of(table, "no boundary").cells
    assert cells["forget_all_difference"].mean == pytest.approx(-20)
    assert cells["forget_all_difference"].deviation == pytest.approx(200**0.5)
    assert line_of(table, "ReBO").cells["forget_all_difference"] == Cell(0, 0)
    with pytest.raises(DataError, match="none of the rows"):
        tables.build_table("ablation", rows, reference="GRPO")


def test_muse_columns_come_from_their_parts():
    muse = {
        "verbmem": entry(f1=12.5, recall=1.0),
        "knowmem_forget": entry(recall=1.0, f1=20.0),
        "knowmem_retain": entry(recall=1.0, f1=50.0),
        "privleak": entry(auc=0.4, privleak=-20.0),
    }
    document = {**results("book", suite="muse"), "parts": muse}
    cells = line_of(tables.build_table("muse", {"ReBO": {"book": document}}), "ReBO").cells
    values = {key: cell.mean for key, cell in cells.items()}
    assert values == {"verbmem_f": 12.5, "knowmem_f": 20, "privleak": -20, "auc": 0.4, "utilpres_knowmem_r": 50}


def test_token_shares_are_those_of_the_rows_that_trained():
    rows = {"Original": {"1_A": results("1_A")}, "RS": {"1_A": results("1_A")}}
    rows["RS"]["1_A"]["training"] = {"percent": {"forget": 6.29, "boundary": None}}
    table = tables.build_table("rule", rows)
    assert line_of(table, "RS").cells["forget_tokens_pct"] == Cell(6.29)
    assert "boundary_tokens_pct" not in {column.key for column in table.columns}  # no corpus to compare with
    assert "forget_tokens_pct" not in line_of(table, "Original").cells


def from_model(model: str, **changes) -> dict:
    return {**results("1_A", **changes), "base_model": model}


LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"


def test_a_table_names_its_model_and_where_its_data_come_from():
    document = from_model(LLAMA)
    document["data"]["source"] = {"from": "jinzhuoran/RWKU", "revision": "abc"}
    table = tables.build_table("rule", {"RS": {"1_A": document}})
    assert f"Model: {LLAMA}." in table.notes
    assert any(re.fullmatch(r"Data: data/1_A, from jinzhuoran/RWKU at abc, sha256 \w{12}\.", n) for n in table.notes)
    assert "Model: not recorded." in tables.build_table("rule", {"RS": {"1_A": results("1_A")}}).notes


@pytest.mark.parametrize(
    ("model", "beside"),
    [
        (LLAMA, True),
        ("/models/meta-llama-3-8b-instruct", True),
        ("Qwen/Qwen2.5-7B-Instruct", False),
        ("meta-llama/Llama-3.1-8B-Instruct", False),
        ("", False),
    ],
)
def test_published_rows_stand_beside_rows_of_their_model_alone(model, beside):
    published = tables.read_published(PAPER / "rule_rwku_table1.csv", names=["Original", "ReBO-GRPO"])
    table = tables.build_table("rule", {"ReBO": {"1_A": from_model(model)}}, published=published)
    heading = "Published for Meta-Llama-3-8B-Instruct, not the model of our rows"
    first = render.to_markdown(table).split("\n\n")[0]
    assert ("| ReBO-GRPO (published) |" in first) == beside
    assert (heading in render.to_markdown(table)) == (heading in render.to_latex(table)) != beside
    assert "| ReBO |" in first
    assert {row["model"] for row in csv_rows(table)} == {model, "Meta-Llama-3-8B-Instruct"}


def test_rows_of_two_models_are_told_apart_and_published_ones_stand_aside():
    rows = {"RS": {"1_A": from_model(LLAMA)}, "NPO": {"1_A": from_model("elsewhere/npo")}}
    published = tables.read_published(PAPER / "rule_rwku_table1.csv", names=["Original"])
    table = tables.build_table("rule", rows, published=published)
    assert f"Model: {LLAMA} (RS); elsewhere/npo (NPO)." in table.notes
    assert "Original (published)" not in render.to_markdown(table).split("\n\n")[0]


@pytest.mark.parametrize(
    ("kind", "suite"), [("muse", "rwku"), ("rule", "muse"), ("rwku", "muse"), ("ablation", "muse")]
)
def test_a_table_of_another_benchmark_is_refused(kind, suite):
    with pytest.raises(DataError, match=f"kind={kind}: RS on 1_A was measured with suite={suite}"):
        tables.build_table(kind, {"RS": {"1_A": results("1_A", suite=suite)}})


def test_a_number_that_is_not_finite_is_not_printed():
    document = results("1_A")
    document["parts"]["forget"]["metrics"]["qa"]["value"] = float("nan")
    with pytest.raises(DataError, match="RS on 1_A: forget_qa is not finite"):
        tables.build_table("rule", {"RS": {"1_A": document}})


def test_best_and_second_best_of_a_column():
    columns = (Column("a", "G", "A", better="lower"), Column("b", "G", "B", better="higher"))
    columns += (Column("z", "G", "Z", better="zero"), Column("n", "G", "N"))
    values = {"x": (1.04, 5, -3, 1), "y": (1.01, 7, 2, 2), "w": (2, 6, 4, 3)}
    lines = [Line(name, "ours", dict(zip("abzn", map(Cell, cells), strict=True))) for name, cells in values.items()]
    body = render.to_markdown(Table("rule", columns, tuple(lines), ())).split("\n")[2:5]
    assert body == [
        "| x | **1.0** | 5.0 | <u>-3.0</u> | 1.0 |",  # 1.04 and 1.01 print alike
        "| y | **1.0** | **7.0** | **2.0** | 2.0 |",
        "| w | <u>2.0</u> | <u>6.0</u> | 4.0 | 3.0 |",
    ]
    latex = render.to_latex(Table("rule", columns, tuple(lines), ()))
    assert r"w & \underline{2.0} & \underline{6.0} & 4.0 & 3.0 \\" in latex
    assert r"\textbf{7.0}" in latex
    plain = render.to_markdown(Table("robustness", columns, tuple(lines), (), compares=False))
    assert not {"**", "<u>"} & set(re.findall(r"\*\*|<u>", plain))


def test_trade_off_areas_by_hand():
    """Step 10 covers 60 x 50, step 20 80 x 45, together 60 x 50 + 20 x 45 = 39 % of the plane; above 0.5 step 10 is
    left, above 0.6 nothing. On the second target both cover 50 x 80. The area is the mean."""
    points = {"ReBO@10": ((40, 50), (50, 80)), "ReBO@20": ((20, 45), (50, 80)), "GA": ((90, 30), (90, 30))}
    lines = []
    for name, of_target in points.items():
        per_target = dict(zip(("1", "2"), ({"forget_all": f, "retain_all": r} for f, r in of_target), strict=True))
        lines.append(Line(name, "ours", {}, per_target))
    areas = pareto.tradeoffs(Table("rule", (), tuple(lines), ()))
    assert areas["ReBO"] == pytest.approx([(0.39 + 0.4) / 2, (0.39 + 0.4) / 2, (0.3 + 0.4) / 2, 0.2, 0.2])
    assert areas["GA"] == pytest.approx([0.03, 0, 0, 0, 0])
