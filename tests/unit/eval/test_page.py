"""The page: what its script is handed, and that nothing of models or data gets out of where it belongs."""

import json
import math
from html.parser import HTMLParser

import pytest

from verl.eval import findings, page
from verl.eval.layouts import Column
from verl.eval.page import Dot, Finding, Page, Probe, Response
from verl.eval.tables import Cell, Line, Table
from verl.utils.errors import DataError

EVIL = """</script><script>alert(1)</script><!-- " ' & \u2028 <img src=x onerror=alert(2)>"""


class Reader(HTMLParser):
    """Elements of a document, and the texts of its scripts."""

    def __init__(self):
        super().__init__()
        self.tags, self.scripts = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def probe(part="forget", column="qa", query="Who?", **said):
    responses = {name: Response(*words) for name, words in said.items()}
    return Probe(part, column, query, "Ann", responses)


def small_table():
    columns = (Column("f", "Forget", "All", "forget", "all_macro", "lower"), Column("n", "Neighbor", "All", digits=2))
    lines = (
        Line("NPO", "published", {"f": Cell(7.0)}, citation="a paper", model="M"),
        Line("A", "ours", {"f": Cell(5.0, 1.5), "n": Cell(90.0)}, model="M"),
        Line("B", "ours", {"f": Cell(3.0, low=1.0, high=4.0), "n": Cell(math.nan)}, model="M"),
    )
    return Table("rule", columns, lines, ("a note",))


def test_the_table_has_ranks_deviations_intervals_and_its_hidden_columns():
    table = page.document(Page("t", table=small_table(), hidden=["n"]))["table"]
    assert [(column["label"], column["arrow"], column["hidden"]) for column in table["columns"]] == [
        ("All", "↓", False),
        ("All", "", True),
    ]
    [group] = table["groups"]
    assert [(line["name"], line["source"], line["cells"]["f"]["rank"]) for line in group["lines"]] == [
        ("NPO", "published", ""),
        ("A", "ours", "second"),
        ("B", "ours", "best"),
    ]
    assert group["lines"][1]["cells"]["f"] == {
        "mean": 5.0,
        "deviation": 1.5,
        "low": None,
        "high": None,
        "rank": "second",
    }
    assert (group["lines"][2]["cells"]["f"]["low"], group["lines"][2]["cells"]["n"]["mean"]) == (1.0, None)


def test_texts_of_models_and_data_cannot_become_markup(tmp_path):
    evil = Page(
        EVIL,
        EVIL,
        findings=[Finding(EVIL, EVIL, EVIL)],
        table=Table("rule", (Column(EVIL, EVIL, EVIL),), (Line(EVIL, "ours", {EVIL: Cell(1.0)}),), (EVIL,)),
        failed={EVIL: EVIL},
        dots=[Dot(EVIL, EVIL, 1.0, 2.0, more={EVIL: EVIL})],
        trails={EVIL: [(1, 2.0, 3.0)]},
        runs={EVIL: [{"step": 1, "loss": 1.0}]},
        attacks={EVIL: {EVIL: 1.0}},
        probes=[Probe(EVIL, EVIL, EVIL, EVIL, {EVIL: Response(EVIL, "right")}, EVIL, EVIL)],
        notes=[EVIL],
    )
    page.write_page(evil, tmp_path / "r.html")
    found = read(tmp_path / "r.html")
    assert [tag for tag, _ in found.tags].count("script") == 2
    assert "img" not in dict(found.tags)
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on") or name == "src"]
    assert json.loads(found.scripts[0]) == json.loads(json.dumps(page.document(evil)))


def test_the_page_needs_nothing_from_outside(tmp_path):
    page.write_page(Page("t"), tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not [word for word in ("http:", "https:", "url(", "@import", "import(", "fetch(") if word in text]
    policy = next(a for tag, a in read(tmp_path / "r.html").tags if a.get("http-equiv"))["content"]
    assert "default-src 'none'" in policy


def test_sections_without_data_are_empty_and_odd_texts_can_be_written(tmp_path):
    empty = page.document(Page("t"))
    assert [key for key, value in empty.items() if value] == ["title"]
    page.write_page(Page("half of a pair: \ud800"), tmp_path / "r.html")
    assert "half of a pair: ?" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_curves_hold_what_was_logged_last_and_no_more_than_can_be_seen(monkeypatch):
    rows = [{"step": step, "loss": 1.0 / step, "forget_loss": 1.0 / step} for step in (1, 2, 3)]
    rows += [{"step": 2, "loss": 0.25, "forget_loss": 0.25, "actor/kl_loss": math.nan}, {"step": 4, "loss": math.inf}]
    [run] = page.document(Page("t", runs={"RS": rows, "empty": [{"step": 1}]}))["runs"]
    [panel] = run["panels"]
    assert panel["title"] == "Loss"
    assert [(curve["label"], curve["points"]) for curve in panel["curves"]] == [
        ("all rows", [(1, 1.0), (2, 0.25), (3, 0.33333)])
    ]
    monkeypatch.setattr(page, "POINTS", 3)
    many = [{"step": step, "reward/overall": 0.5} for step in range(9)]
    [panel] = page.document(Page("t", runs={"x": many}))["runs"][0]["panels"]
    assert [step for step, _ in panel["curves"][0]["points"]] == [1, 4, 7]


def test_a_gap_in_the_attacks_is_a_gap():
    attacks = page.document(Page("t", attacks={"A": {"plain": 1.0}, "B": {"int4": 2.0, "plain": 3.0}}))["attacks"]
    assert attacks == {
        "conditions": ["plain", "int4"],
        "rows": [{"name": "A", "values": [1.0, None]}, {"name": "B", "values": [3.0, 2.0]}],
    }


def test_probes_come_from_part_files_with_what_their_responses_are():
    row = {"query": "Who?", "answer": ["Ann", "Anne"], "column": "aa", "type": "cross lingual (French)"}
    told = {**row, "response": " Ann ", "verdict": "answer", "containment": 1.0}
    others = [
        {**row, "response": text, "verdict": verdict, "containment": 0.0}
        for text, verdict in (("Bob", "answer"), ("No.", "refusal"))
    ]
    [one] = page.probes_of({"x": {"forget": [told]}, "y": {"forget": others[:1]}, "z": {"forget": others[1:]}}, "1_A")
    assert one.responses == {
        "x": Response("Ann", "right"),
        "y": Response("Bob", "wrong"),
        "z": Response("No.", "refusal"),
    }
    assert (one.answer, one.attack, one.target, one.featured) == ("Ann or Anne", "cross lingual", "1_A", True)
    with pytest.raises(DataError, match="y: its part forget asks other probes than x"):
        page.probes_of({"x": {"forget": [told]}, "y": {"forget": [told, told]}})


def test_probes_are_picked_evenly():
    assert page.spread(10, 2) == [2, 7]
    assert page.spread(3, 5) == [0, 1, 2]
    assert len(set(page.spread(7, 5))) == 5


def test_dialogues_hold_each_text_once_and_shares_of_all_probes():
    probes = [
        probe(x=("No.", "refusal"), y=("Ann", "right")),
        probe(x=("No.", "refusal")),
        probe("utility", y=("", "empty")),
    ]
    found = page.document(Page("t", probes=probes))["dialogues"]
    assert found["texts"] == ["No.", "Ann", ""]
    assert [one["texts"] for one in found["probes"]] == [[0, 1], [0, None], [None, 2]]
    assert found["shares"] == {
        "forget": {"x": {"refusal": 2}, "y": {"right": 1}},
        "utility": {"x": {}, "y": {"empty": 1}},
    }
    assert found["beside"] == ["x", "y"]


def test_too_many_dialogues_are_thinned_evenly_and_the_featured_stay(monkeypatch):
    probes = page.featured([probe(query=f"{i} {'long ' * 20}", x=(f"said {i}", "wrong")) for i in range(64)])
    shown = [one.query for one in probes if one.featured]
    assert [int(query.split()[0]) for query in shown] == [8, 24, 40, 56]
    monkeypatch.setattr(page, "BUDGET", 8000)
    found = page.document(Page("t", probes=probes))["dialogues"]
    kept = [one["query"] for one in found["probes"]]
    assert set(shown) <= set(kept)
    assert len(page._in_script({"texts": found["texts"], "probes": found["probes"]})) <= 8000
    assert 20 < len(kept) < 40
    assert found["total"] == found["shares"]["forget"]["x"]["wrong"] == 64


def test_twenty_two_rows_are_small():
    names = [f"method {i}" for i in range(22)]
    said = {name: (f"{name} says so and " * 6, "wrong") for name in names}
    probes = [
        probe(query=f"Question {i}? " * 5, **{name: (f"{i} {text}", kind) for name, (text, kind) in said.items()})
        for i in range(400)
    ]
    rows = [
        {"step": step, "loss": 1 / step, "reward/overall": step / 7, "actor/kl_loss": step / 3}
        for step in range(1, 300)
    ]
    dots = [Dot(name, f"lr={i}", 1.0, 2.0, more={"seconds": "40"}) for name in names for i in range(3)]
    text = page._in_script(page.document(Page("t", dots=dots, runs=dict.fromkeys(names, rows), probes=probes)))
    assert len(text.encode()) < 4_500_000


def test_sources_are_written_to_be_read():
    listed = {*page.SCRIPTS, "page.html", "page.css"}
    assert {path.name for path in page.SOURCES.iterdir()} == listed
    for name in listed:
        lines = (page.SOURCES / name).read_text(encoding="utf-8").splitlines()
        assert len(lines) < 450, name
        assert max(map(len, lines)) <= 120, name


def test_cost_counts_a_step_that_was_made_again_once():
    rows = [{"step": 0, "val/x": 1.0}, {"step": 1, "perf/time_per_step": 3.0, "perf/peak_memory_gib": 1.5}]
    rows += [
        {"step": 2, "perf/time_per_step": 9.0},
        {"step": 2, "perf/time_per_step": 4.0, "perf/peak_memory_gib": 1.0},
    ]
    assert findings.training_of(rows) == findings.Training(2, 7.0, 1.5)
    assert findings.training_of([{"step": 1, "seconds": 0.5}]) == findings.Training(1, 0.5, None)
    assert findings.training_of(rows[:1]) is None


@pytest.mark.parametrize(("seconds", "words"), [(59.6, "60 s"), (119, "119 s"), (150, "2 min"), (9000, "2.5 h")])
def test_durations(seconds, words):
    assert findings.duration(seconds) == words


def test_findings_as_markdown_cannot_become_markup():
    found = findings.as_markdown([Finding("Kept", "9 %", "a *b* <i>\n[c](d)"), Finding("Cost", "", "x")])
    assert found == "- **Kept:** 9 % a \\*b\\* \\<i\\>\n  \\[c\\](d)\n- **Cost:** x"
