"""The configuration loader: layers merge in order, and every problem is reported at once."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from verl.settings.path_types import PathText, Sources, TemplateText
from verl.settings.reader import load, to_dict, to_yaml
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


@dataclass(frozen=True)
class Late:
    start: int = 0

    def problems(self) -> list[str]:
        return [f"start={self.start}: must be greater than 0"]


TEXTS = [
    "You are the #1 expert.", "2025_01_15", "2025-01-15", "1e5", "007", "none", "yes", "on", "1:30", "0x10", "nan",
    "a & b", "&", "*", "!", "%", "@x", "`ls`", '"quoted"', "'", "key: value", "${amount}", "$HOME", "$", "${",
    "[INST]", "{", "[a, b]", "{a: b}", " padded ", "a=b=c", "two\nlines\n", "\ttab", "- item", "? x", "| x", "~",
    "Null", "\\n", "é 日本 😀", "x" * 5000,
]  # fmt: skip


@dataclass(frozen=True)
class Texts:
    plain: str = "p"
    either: str | list[str] = "e"
    maybe: str | None = "m"


@dataclass(frozen=True)
class Paths:
    one: PathText | None = None
    several: Sources | list[Sources] | None = ""
    template: TemplateText | None = None
    table: dict[str, list[PathText]] = field(default_factory=dict)


@pytest.mark.parametrize("text", TEXTS)
def test_text_on_the_command_line_is_as_it_was_typed_and_survives_a_file(text, tmp_path):
    either = ["a", "b"] if text == "[a, b]" else ["INST"] if text == "[INST]" else text
    config = load(Texts, [f"plain={text}", f"either={text}", f"maybe={text}"])
    assert config == Texts(text, either, text)
    (tmp_path / "c.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load(Texts, [f"config={tmp_path}/c.yaml"]) == config


def test_a_value_of_the_wrong_type_is_named_once():
    with pytest.raises(ConfigError) as caught:
        load(Late, ["start=0x1"])
    assert str(caught.value).splitlines()[0] == "1 problem(s) in the configuration:"


def test_keys_of_a_mapping_may_have_dots():
    assert load(Paths, ["table.v1.0-b=x", "table.c=[y]"]).table == {"v1.0-b": ["x"], "c": ["y"]}
    assert load(Outer, ["inner.extra.a.b=1"]).inner.extra == {"a": {"b": 1}}


def test_null_and_nothing_unset_a_text_that_may_be_null():
    assert load(Texts, ["plain=null", "maybe=null"]) == Texts(plain="null", maybe=None)
    assert load(Texts, ["plain=", "either=", "maybe="]) == Texts("", "", "")
    assert load(Paths, ["one=", "template="]) == Paths(None, "", None)
    assert load(Paths, ["one=null", "several=null", "template=null"]) == Paths(None, None, None)


def test_the_home_folder_is_a_tilde_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    config = load(Paths, ["one=~/m", "several=~/a.json@test, ~/b.json", "template=~/t.jinja", "table.x=[~/r, s]"])
    assert config == Paths("/h/m", "/h/a.json@test, /h/b.json", "/h/t.jinja", {"x": ["/h/r", "s"]})
    (tmp_path / "a.yaml").write_text("one: ~\nseveral: [~/a, ./~/b]\ntemplate: '~ {{ content }}, ~'\ntable: {x: ~/r}\n")
    config = load(Paths, [f"config={tmp_path}/a.yaml"])
    assert config == Paths(None, ["/h/a", "./~/b"], "~ {{ content }}, ~", {"x": ["/h/r"]})
    assert load(Paths, ["one=~", "several=hub/id,~nobody-here/x"]) == Paths("/h", "hub/id,~nobody-here/x", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "b.yaml").write_text("one: x\n")
    assert load(Paths, ["config=~/b.yaml"]).one == "x"


@pytest.mark.parametrize("word", ["one=" + "x/" * 3000, "several=a," + "x" * 256, "template=" + "x" * 256 + ".jinja"])
def test_paths_that_no_file_can_have(word):
    with pytest.raises(ConfigError, match="must be a path, of at most 4095 bytes and 255 for each name in it"):
        load(Paths, [word])


def test_unquoted_text_in_a_file_is_as_it_was_written(tmp_path):
    (tmp_path / "a.yaml").write_text("plain: 2025_01_15\neither: [2025-01-15, 007, off, 'null']\nmaybe: ~\n")
    assert load(Texts, [f"config={tmp_path}/a.yaml"]) == Texts("2025_01_15", ["2025-01-15", "007", "off", "null"], None)
    (tmp_path / "b.yaml").write_text("plain: null\n")
    with pytest.raises(ConfigError, match=r"plain=None: must be text \(in quotes, if this is the text\)"):
        load(Texts, [f"config={tmp_path}/b.yaml"])


@pytest.mark.parametrize(
    "text", ["0x10", "0o7", "1_000", "01", "007", "1e400", "nan", ".nan", "inf", ".inf", "1:30", "１"]
)
def test_numbers_that_nobody_writes_are_none(text, tmp_path):
    (tmp_path / "a.yaml").write_text(f"seed: {text}\ninner: {{rate: {text}, extra: {{k: {text}}}}}\n")
    with pytest.raises(ConfigError) as caught:
        load(Outer, [f"config={tmp_path}/a.yaml"])
    assert f"seed='{text}': must be a whole number in decimal digits" in str(caught.value)
    assert f"inner.rate='{text}': must be a finite number in decimal digits" in str(caught.value)
    with pytest.raises(ConfigError, match="2 problem"):
        load(Outer, [f"seed={text}", f"inner.rate={text}"])
    assert load(Outer, [f"inner.extra.k={text}"]).inner.extra == {"k": text}


@pytest.mark.parametrize(
    ("text", "whole", "real"),
    [("16", 16, 16.0), ("1e3", 1000, 1000.0), ("3.0", 3, 3.0), ("-0", 0, 0.0), (str(2**63 - 1), 2**63 - 1, 2.0**63)],
)
def test_whole_numbers_are_exact(text, whole, real):
    config = load(Outer, [f"seed={text}", f"inner.extra.k={text}"])
    assert config.seed == whole and type(config.seed) is int
    assert config.inner.extra["k"] == (real if "." in text or "e" in text else whole)
    assert load(Outer, [f"inner.rate={text}" if whole > 0 else "inner.rate=1"]).inner.rate == (real if whole > 0 else 1)


@pytest.mark.parametrize("text", ["9223372036854775808", "1e19", "1e300", "1.5", "9" * 5000, "", "null", "true", "[1]"])
def test_what_is_no_whole_number(text):
    with pytest.raises(ConfigError, match="must be a whole number"):
        load(Outer, [f"seed={text}"])


def test_switches_choices_and_references(tmp_path):
    for text, value in {"yes": True, "Off": False, "TRUE": True, "no": False}.items():
        assert load(Outer, [f"flag={text}"]).flag is value
    for text in ("1", "y", '"true"', "tRue", ""):
        with pytest.raises(ConfigError, match="flag=.*must be true or false"):
            load(Outer, [f"flag={text}"])
    (tmp_path / "a.yaml").write_text(
        "path: log/${inner.mode}/${seed}/${other}\nseed: ${inner.mode}\ninner: {mode: 3}\n"
    )
    assert load(Outer, [f"config={tmp_path}/a.yaml"]) == Outer(Inner(mode=3), seed=3, path="log/3/3/${other}")
    assert load(Outer, ["inner.rate=${seed}", "path=${inner.mode}"]) == Outer(Inner(rate=1.0), path="full")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("path=${inner.mod}", "names no key of the configuration"),
        ("path=${oc.env:HOME}", "names no key of the configuration"),
        ("path=a ${path}", "refers to itself"),
        ("path=a ${inner.names}", "has no text"),
        ("seed=${path}", "seed=None: must be a whole number"),
        ("inner=a: [", "inner='a: \\[': is not valid YAML"),
        ("inner={rate: 1, rate: 2}", "the key rate is there twice"),
        ("inner.extra=&a {b: *a}", "recursive"),
        ("inner.extra={a: !!python/name:os.system x}", "could not determine a constructor"),
        ("inner.extra=3", "must be a mapping"),
        ("inner.names=" + "[" * 3000, "nothing"),
        ("\udcff=1", "is not UTF-8"),
        ("path=\udcff", "is not UTF-8"),
        ("=1", "=1: unknown key"),
        ("inner..rate=1", "inner.={'rate': 1}: unknown key"),
        ("config=" + "x" * 300, "must be a path, of at most"),
        ("config=.", "config=.: there is no such file"),
    ],
)
def test_words_that_cannot_be(word, message):
    if message == "nothing":
        assert load(Outer, [word]).inner.names == [word.partition("=")[2]]
        return
    with pytest.raises(ConfigError, match=message):
        load(Outer, [word])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: 1\nseed: 2\n", "the key seed is there twice"),
        (b"- 1\n", "must hold a mapping of sections"),
        (b"seed", "must hold a mapping of sections"),
        (b"path: \xff\n", "is not valid YAML"),
        (b"a: 1\n---\nb: 2\n", "is not valid YAML"),
    ],
)
def test_files_that_cannot_be(content, message, tmp_path):
    (tmp_path / "a,b.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load(Outer, [f"config={tmp_path}/a,b.yaml"])


def test_layers_of_words_and_mappings_merge(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "x: &x {rate: 1, mode: lora}\ninner: {<<: *x, rate: 2, extra: {a: {b: 1, c: yes}}}\n"
    )
    with pytest.raises(ConfigError, match="x={'rate': 1, 'mode': 'lora'}: unknown key"):
        load(Outer, [f"config={tmp_path}/a.yaml"])
    (tmp_path / "a.yaml").write_text("inner: {rate: 2, extra: {a: {b: 1, c: yes}}}\n")
    config = load(
        Outer, [f"config={tmp_path}/a.yaml", "inner={mode: lora}", "inner.extra.a={b: 0x1}", "inner.extra.d='1'"]
    )
    assert config.inner == Inner(2.0, "lora", extra={"a": {"b": "0x1", "c": True}, "d": "1"})
