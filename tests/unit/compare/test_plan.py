"""Rows into tries: combinations, factors, names, order, and every problem of a rows file in one message."""

from pathlib import Path

import pytest

from tests.conftest import ROOT
from verl.compare.config import CompareConfig, RowConfig
from verl.compare.plan import (
    Try,
    as_words,
    filled,
    grid_points,
    grid_problems,
    selected,
    shown,
    tries_of,
    waves,
    worked_out,
)
from verl.compare.processes import shares
from verl.settings.reader import load
from verl.utils.errors import ConfigError

COMMON = ["model=m", "data=d", "targets=1", "log=log/t", "out=results/t"]
LR = {"learning_rate": ["x1", "x3", "x10"]}


def config_of(rows: dict[str, RowConfig], **changes) -> CompareConfig:
    return CompareConfig(model="m", data="d", targets=["1"], log="log/t", out="results/t", rows=rows, **changes)


ROWS = {
    "original": RowConfig(stage="none"),
    "prompt": RowConfig(stage="none", grid={"system_prompt": ["a", "b", "c"]}),
    "rs": RowConfig(grid=LR),
    "npo": RowConfig(grid=LR),
    "rebo": RowConfig(stage="rebo", start="rs", config="a.yaml", grid=LR),
    "again": RowConfig(stage="rebo", start="rebo", config="a.yaml", grid=LR),
}


def test_the_first_combinations_are_tried_and_the_last_key_changes_fastest():
    grid = {"lr": [1, 2], "beta": [5, 6]}
    assert grid_points(grid, 3) == [{"lr": 1, "beta": 5}, {"lr": 1, "beta": 6}, {"lr": 2, "beta": 5}]
    assert grid_points(grid, 1) == [{"lr": 1, "beta": 5}]
    assert grid_points({}, 3) == [{}]


def test_a_factor_multiplies_what_the_row_has_and_a_value_stays():
    base = {"learning_rate": 3.5e-4, "worker": {"optim": {"lr": 2e-4}}, "steps": 20}
    point = {"learning_rate": "x0.1", "worker.optim.lr": "x3", "steps": "x2", "beta": 0.5, "name": "xlarge"}
    assert worked_out(point, base, "rows.a.grid") == {
        "learning_rate": 3.5e-5,
        "worker.optim.lr": 6e-4,
        "steps": 40,
        "beta": 0.5,
        "name": "xlarge",
    }
    assert worked_out({"lr": "x3"}, {"lr": 0.1}, "") == {"lr": 0.3}  # not 0.30000000000000004


@pytest.mark.parametrize(("key", "base"), [("objective", {"objective": "npo"}), ("lr", {}), ("on", {"on": True})])
def test_a_factor_of_what_is_no_number_is_named(key, base):
    with pytest.raises(ConfigError, match=rf"rows\.a\.grid\.{key}=x3: multiplies"):
        worked_out({key: "x3"}, base, "rows.a.grid")


def test_names_are_filled_within_lists_and_mappings_and_unknown_ones_are_told():
    names = {"model": "M", "rl": "T/rl.json"}
    settings = {"a": "$model", "b": ["$rl", 1], "c": {"d": "of $model"}, "e": None}
    assert filled(settings, names) == {"a": "M", "b": ["T/rl.json", 1], "c": {"d": "of M"}, "e": None}
    with pytest.raises(ConfigError, match=r"a=\$modle: \$modle means nothing; known are \$model, \$rl"):
        filled({"a": "$modle"}, names)


def test_settings_become_words_that_mean_the_same():
    words = as_words({"a": "x: y", "b": None, "c": True, "d": [1, "p q"], "e": {"preset": "purge"}, "f": 3e-5})
    assert words == ["a=x: y", "b=null", "c=true", "d=[1, p q]", "e={preset: purge}", "f=3.0e-05"]


def test_a_point_is_shown_in_few_words():
    assert shown({"worker.actor.optim.lr": 0.00012345, "prompt": "w" * 50}) == f"lr=0.000123, prompt={'w' * 37}..."


def test_every_method_has_the_same_tries_and_only_what_varies_nothing_has_fewer():
    config = config_of(ROWS | {"few": RowConfig(grid={"lr": [1, 2]})})
    assert grid_problems(config) == [
        "rows.few.grid: has 2 combination(s), and every method gets tries=3; add values, or set fewer tries"
    ]
    assert grid_problems(config_of(ROWS)) == []
    assert len(list(tries_of(config, "npo", ["1_A", "2_B"]))) == 6


def test_what_trains_nothing_is_tried_under_the_first_seed_alone():
    config = config_of(ROWS, seeds=[7, 8])
    assert {one.seed for one in tries_of(config, "prompt", ["1_A"])} == {7}
    assert [one.seed for one in tries_of(config, "rs", ["1_A"])] == [7, 7, 7, 8, 8, 8]


def test_rows_that_are_started_from_are_made_first_and_unasked():
    config = config_of(ROWS, only=["again"])
    assert selected(config) == ["original", "rs", "rebo", "again"]  # the original is what scores are shares of
    assert waves(config) == [["original", "rs"], ["rebo"], ["again"]]


def test_a_try_has_a_place_of_its_own():
    one = Try("rs", "1_A", 2, 3, (("lr", 1),))
    assert one.place == Path("1_A/seed2/rs/3")
    assert one.unit == ("rs", "1_A", 2)


def test_all_problems_of_the_rows_are_one_message():
    rows = {
        "Bad": RowConfig(),
        "circle": RowConfig(start="other"),
        "other": RowConfig(start="circle"),
        "lost": RowConfig(start="circel"),
        "still": RowConfig(stage="none", start="other"),
        "bare": RowConfig(stage="rebo"),
        "twice": RowConfig(settings={"lr": 1}, grid={"lr": [1, 2]}),
        "empty": RowConfig(grid={"lr": []}),
    }
    found = "\n".join(config_of(rows, tries=0, seeds=[1, 1], only=["othr"]).problems())
    for words in (
        "tries=0: must be at least 1",
        "seeds=[1, 1]: names one twice",
        "only=othr: is no row; did you mean other?",
        "rows.Bad: must be a lower-case word",
        "rows.circle.start=other: starts from itself in the end",
        "rows.lost.start=circel: is no row; did you mean circle?",
        "rows.still: stage=none trains nothing",
        "rows.bare.config: is required for stage=rebo",
        "rows.twice.grid.lr: is among the settings of the row, too",
        "rows.empty.grid.lr=[]: has no value",
    ):
        assert words in found
    assert config_of(ROWS).problems() == []


@pytest.mark.parametrize("world", ["atlas", "earth", "rwku"])
def test_the_shipped_rows_are_whole_in_every_world(world):
    files = f"{ROOT}/examples/table.yaml,{ROOT}/examples/table_{world}.yaml"
    config = load(CompareConfig, [f"config={files}", *COMMON])
    assert grid_problems(config) == []
    assert {"original", "in_context", "rs", "npo_klr", "rebo", "no_rs"} <= config.rows.keys()
    assert [row for row in config.rows.values() if row.kind == "ours"]


def test_a_misspelt_key_of_a_row_and_a_wrong_type_are_told_with_their_path():
    with pytest.raises(ConfigError) as error:
        load(
            CompareConfig, ["rows.a.stge=rs", "rows.b.kind=theirs", "model=m", "data=d", "targets=1", "log=l", "out=o"]
        )
    assert "rows.a.stge='rs': unknown key; did you mean rows.a.stage?" in str(error.value)
    assert "rows.b.kind='theirs': must be one of ours, baseline, ablation" in str(error.value)


@pytest.mark.parametrize(
    ("cores", "parts", "wanted"),
    [([0, 1], 2, [{0}, {1}]), ([4, 5, 6, 7, 8], 2, [{4, 5}, {6, 7, 8}]), ([3], 2, [{3}, {3}]), ([0, 1], 1, [{0, 1}])],
)
def test_tries_beside_each_other_have_cores_of_their_own(cores, parts, wanted):
    assert shares(cores, parts) == wanted
