"""The configuration loader: layers merge in order, and every problem is reported at once."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from verl.utils.config import load, to_dict, to_yaml
from verl.utils.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    rate: float = 1e-3
    mode: Literal["full", "lora", 3] = "full"
    names: list[str] = field(default_factory=lambda: ["a"])
    extra: dict[str, Any] = field(default_factory=dict)

    def problems(self) -> list[str]:
        return [f"rate={self.rate}: must be positive; set 1e-3"] if self.rate <= 0 else []


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    seed: int = 1
    path: str | None = None
    flag: bool = False


def test_files_merge_left_to_right_then_the_command_line(tmp_path):
    (tmp_path / "a.yaml").write_text("inner: {rate: 1e-6, mode: lora}\nseed: 2\n")
    (tmp_path / "b.yaml").write_text("seed: 3\npath: ${inner.mode}\n")
    config = load(Outer, [f"config={tmp_path}/a.yaml,{tmp_path}/b.yaml", "inner.names=[x,y]", "inner.extra.k=1"])
    assert config == Outer(Inner(1e-6, "lora", ["x", "y"], {"k": 1}), seed=3, path="lora")


def test_frozen_and_round_trips_through_yaml(tmp_path):
    config = load(Outer, ["seed=9", "inner.mode=3"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert load(Outer, [f"config={tmp_path}/c.yaml"]) == config
    assert to_dict(config)["inner"]["mode"] == 3


def test_every_problem_in_one_error():
    words = [
        "inner.rat=2",
        "seed=1.5",
        "flag=3",
        "inner.mode=lore",
        "inner.rate=-1",
        "config=gone.yaml",
        "word",
        "path=x",
    ]
    with pytest.raises(ConfigError) as caught:
        load(Outer, words)
    message = str(caught.value)
    for part in (
        "inner.rat=2: unknown key; did you mean inner.rate?",
        "seed=1.5: must be a whole number",
        "flag=3: must be true or false",
        "inner.mode='lore': must be one of full, lora, 3 (did you mean lora?)",
        "inner.rate=-1.0: must be positive; set 1e-3",
        "config=gone.yaml: there is no such file",
        "word: is not key=value",
    ):
        assert part in message
    assert message.startswith("7 problem(s)")


def test_required_keys_are_named():
    @dataclass(frozen=True)
    class Needs:
        model: str

    with pytest.raises(ConfigError, match="model: is required"):
        load(Needs, [])
    assert load(Needs, ["model=7"]).model == "7"


def test_a_section_cannot_be_a_value_and_null_only_where_allowed():
    with pytest.raises(ConfigError) as caught:
        load(Outer, ["inner=3", "seed=null"])
    assert "inner=3: must be a section" in str(caught.value)
    assert "seed=None: must be a whole number" in str(caught.value)
    assert load(Outer, ["path=null"]).path is None
