"""report.html in a real browser: sorting, hiding, hover, filters, dialogues; nothing on the console, no request.

Skipped where there is no Chromium.
"""

from pathlib import Path

import pytest

from tests.browser import Browser, find_browser
from verl.eval.layouts import Column
from verl.eval.page import Dot, Finding, Page, Probe, Response, write_page
from verl.eval.tables import Cell, Line, Table

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")
EVIL = "</script><b>\"it's\" & <img src=x onerror=document.title='gone'>"
COUNT = 45


def the_page() -> Page:
    columns = (
        Column("forget", "Forget", "All", "forget", "all_macro", "lower"),
        Column("neighbor", "Neighbor", "All", "neighbor", "all_macro", "higher"),
        Column("seconds", "Training", "s", better="lower", digits=0),
    )
    rows = {"Base": (90.0, 99.0, None), EVIL: (9.0, 50.0, 7.0), "ReBO": (10.0, 97.0, 120.0)}
    lines = [
        Line(
            name,
            "ours",
            {c.key: Cell(v, 1.25) for c, v in zip(columns, values, strict=True) if v is not None},
            model="M",
        )
        for name, values in rows.items()
    ]
    published = Line("paper", "published", {"forget": Cell(20.0)}, citation="a paper", model="M")
    return Page(
        f"Forgetting {EVIL}",
        findings=[Finding("Forgotten", "90 %", "of 45 questions.\nBefore it was 0 %.")],
        table=Table("rule", columns, (published, *lines), ("a `note`",)),
        hidden=["seconds"],
        failed={"GA": f"DataError: {EVIL}"},
        dots=[
            Dot("ReBO", "lr=1e-4", 10.0, 97.0, 30.0, score=0.9),
            Dot("ReBO", "lr=1e-5", 60.0, 98.0, chosen=False),
            Dot(EVIL, "", 9.0, 50.0, 80.0),
        ],
        trails={"ReBO training": [(0, 9.0, 50.0), (10, 10.0, 97.0)]},
        runs={"RS": [{"step": step, "loss": 1 / step} for step in (1, 2, 4)]},
        attacks={"ReBO": {"plain": 10.0, "int4": 100.0}, EVIL: {"plain": 9.0}},
        probes=[the_probe(i) for i in range(COUNT)],
        beside=["Base", EVIL],
    )


def the_probe(i: int) -> Probe:
    """Every fifth is refused by the second method; the last is an attack; the first two are featured."""
    said = {
        "Base": Response(f"answer {i}", "right"),
        EVIL: Response(EVIL, "refusal") if i % 5 == 0 else Response(f"answer {i}", "right"),
        "ReBO": Response("", "empty"),
    }
    last = i == COUNT - 1
    part, column = ("neighbor", "fb") if i < 10 else ("forget", "aa" if last else "qa")
    return Probe(part, column, f"question {i}?", EVIL, said, "role play" if last else "", featured=i < 2)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(the_page(), path)
    return path


@pytest.fixture
def at(browser, file):
    """The page in a wide window; at the end nothing was said on the console, and nothing was asked of a network."""
    browser.open(file)
    yield browser
    assert browser.problems == []


def texts(browser: Browser, selector: str) -> list[str]:
    return browser.run(f"[...document.querySelectorAll({selector!r})].map((node) => node.textContent)")


def rows(browser: Browser) -> list[str]:
    return texts(browser, "#table tbody.ours th[scope=row]")


def test_the_page_shows_every_section_and_texts_as_they_are(at):
    assert texts(at, "nav.contents a") == [
        "Findings", "Numbers", "Pareto", "Attacks", "Answers", "Dialogues", "Training",
    ]  # fmt: skip
    assert at.run("document.title") == f"Forgetting {EVIL}"
    assert texts(at, "h1") == [f"Forgetting {EVIL}"]
    assert texts(at, ".finding p") == ["90 %", "of 45 questions.", "Before it was 0\u00a0%."]
    assert texts(at, "#table .published th[scope=row]") == ["paper"]
    assert texts(at, ".failed dd") == [f"DataError: {EVIL}"]
    assert at.run("document.querySelectorAll('img, b').length") == 0


@pytest.mark.parametrize("width", [1400, 500])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_window(browser, file, width, dark):
    browser.open(file, width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") == width
    colors = browser.run("[document.body, document.querySelector('h1')].map((node) => getComputedStyle(node).color)")
    assert set(colors) == {"rgb(229, 232, 236)" if dark else "rgb(32, 36, 42)"}
    assert browser.problems == []


def test_a_column_sorts_better_values_first_then_worse_then_not_at_all(at):
    assert rows(at) == ["Base", EVIL, "ReBO"]
    for key, orders in {
        "forget": ([EVIL, "ReBO", "Base"], ["Base", "ReBO", EVIL]),
        "neighbor": (["Base", "ReBO", EVIL], [EVIL, "ReBO", "Base"]),
    }.items():
        for order, said in zip(orders, ("ascending", "descending")[:: 1 if key == "forget" else -1], strict=True):
            at.click(f"[data-sort={key}]")
            assert rows(at) == order
            assert at.run(f"document.querySelector('[data-sort={key}]').parentNode.ariaSort") == said
        at.press("Enter")
        assert rows(at) == ["Base", EVIL, "ReBO"]


def test_ranks_and_deviations_are_shown(at):
    assert texts(at, "#table .best") == ["99.0 ± 1.3", "9.0 ± 1.3"]
    assert texts(at, "#table .second") == ["10.0 ± 1.3", "97.0 ± 1.3"]


def test_columns_are_hidden_and_shown(at):
    assert texts(at, "#table thead [data-sort]") == ["Method", "All ↓", "All ↑"]
    at.click("#table summary")
    at.click("#table fieldset:nth-of-type(2) input")
    assert texts(at, "#table thead [data-sort]") == ["Method", "All ↓"]
    assert texts(at, "#table thead .groups th") == ["Forget"]
    at.click("#table .controls button")
    assert texts(at, "#table thead [data-sort]") == ["Method", "All ↓", "All ↑", "s ↓"]
    at.click("[data-sort=seconds]")
    assert rows(at) == [EVIL, "ReBO", "Base"], "a row without the number comes last"
    at.click("[data-sort=seconds]")
    assert rows(at) == ["ReBO", EVIL, "Base"]


def test_a_dot_says_what_it_is_to_pointer_and_keyboard(at):
    at.point(".dot.try circle")
    assert texts(at, "#tip > *") == ["ReBO", "lr=1e-5", "forget 60.0", "neighbor 98.0", "not chosen"]
    assert at.run("document.querySelectorAll('.dot.dim').length") == 1
    at.run("document.querySelector('.dot[tabindex=\"0\"]').focus()")
    assert texts(at, "#tip strong") == [EVIL]
    at.press("ArrowLeft")
    assert texts(at, "#tip > *")[:2] == ["ReBO", "lr=1e-4"]
    at.press("Escape")
    assert at.run("document.getElementById('tip').hidden")


def test_the_plot_goes_over_to_what_attacks_bring_back(at):
    assert at.run("document.querySelectorAll('.dot').length") == 3
    at.click("#pareto input[value=recovered]")
    assert at.run("document.querySelectorAll('.dot').length") == 2
    assert "recovered" in texts(at, "#pareto .axis")[0]


def test_attacks_and_curves(at):
    assert texts(at, "#attacks td") == ["10.0", "100.0", "9.0", "–"]
    at.run("document.querySelector('#curves svg').focus()")
    assert texts(at, "#tip > *") == ["Step 4", "all rows: 0.25"]
    at.press("ArrowLeft")
    assert texts(at, "#tip > *") == ["Step 2", "all rows: 0.5"]


def choose(browser: Browser, label: str, value: str) -> None:
    browser.run(
        f"(() => {{ const box = [...document.querySelectorAll('#dialogues .control')]"
        f".find((node) => node.firstChild.textContent === {label!r}).querySelector('select');"
        f"box.value = {value!r}; box.dispatchEvent(new Event('change')); }})()"
    )
    browser.settle()


def test_dialogues_side_by_side(at):
    assert texts(at, ".query") == ["question 0?", "question 1?"]
    assert texts(at, ".card:first-child .response p") == ["answer 0", EVIL]
    assert texts(at, ".card:first-child .badge") == ["✓ answers", "✗ refuses"]
    at.click(".chips label:nth-of-type(3) input")
    assert texts(at, ".card:first-child .response p") == ["answer 0", EVIL, "(nothing)"]


def test_dialogues_are_filtered_by_what_they_are(at):
    choose(at, "Split", "forget")
    assert texts(at, ".count") == ["35 of 45 probes."]
    assert len(texts(at, ".query")) == 20
    at.click(".pages button:last-child")
    assert texts(at, ".query")[0] == "question 30?"
    choose(at, "Verdict", "refusal")
    assert texts(at, ".query") == [f"question {i}?" for i in range(10, COUNT, 5)]
    choose(at, "of", "0")
    assert texts(at, ".query") == []
    choose(at, "of", "")
    choose(at, "Verdict", "")
    at.click(".filters .tick input")
    assert texts(at, ".count") == ["7 of 45 probes."]
    choose(at, "Kind", "aa: role play")
    assert texts(at, ".query") == []
    at.click(".filters .tick input")
    assert texts(at, ".query") == [f"question {COUNT - 1}?"]


def test_one_probe_is_chosen_or_found_by_its_words(at):
    choose(at, "Probe", "33")
    assert texts(at, ".query") == ["question 33?"]
    choose(at, "Probe", "")
    assert texts(at, ".count") == ["45 of 45 probes."]
    at.click("#dialogues input[type=search]")
    at.type("Answer 44")
    assert texts(at, ".query") == ["question 44?"]


def test_paper_has_no_controls(browser, file):
    browser.open(file, 760, media="print", dark=True)
    assert browser.run("getComputedStyle(document.querySelector('.filters')).display") == "none"
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.problems == []


def test_a_page_of_little_shows_little(browser, tmp_path):
    write_page(Page("Empty", failed={"GA": "no data"}), tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    assert texts(browser, "nav.contents a") == ["Numbers"]
    assert texts(browser, ".failed dd") == ["no data"]
    assert browser.problems == []
