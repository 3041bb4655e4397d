"""Every setting of the three commands with values that nobody means: exit code 0 or 2, at once, and nothing written."""

import dataclasses
import itertools
import json
import logging
import random
import time
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest

from RS.config import RSConfig
from RS.train import main as rs_main
from tests.training_kit import arguments
from tests.unit.eval.test_main import PROBES
from verl.config.run import PPOConfig
from verl.estimate.hardware import Hardware
from verl.eval import main as evaluation
from verl.eval.config import EvalConfig
from verl.settings.describe import sections
from verl.trainer.main import main as trainer_main

SECONDS = 10
"""of processor time for a case, imports among them; what counts something one by one takes minutes"""
TEXTS = [
    *("", " ", "null", "~", "~/x", "~nobody/x", "yes", "off", "true", "2025-01-15", "2025_01_15", "#1", "a #b", "a: b"),
    *("0x10", "1_000", "007", "1:30", "1e400", "nan", ".inf", "9223372036854775808", "-9223372036854775808", "9" * 500),
    *(
        "a=b",
        "&a",
        "*a",
        "!x",
        "!!int x",
        "%",
        "@x",
        "`x`",
        '"',
        "'",
        "'a'",
        "{{ x",
        "{% endraw %}",
        "\\",
        "\n",
        "a\nb",
    ),
    *("[", "[]", "[a, b]", "[1, [2]]", "[null]", "[{a: 1}]", "{", "{}", "{a: {b: 1}}", "{num_attention_heads: x}"),
    *("{num_attention_heads: 0}", "{num_key_value_heads: -1, hidden_size: x}", "[" * 3000, "{a: &a [*a]}"),
    *("${", "${x}", "${data.seed}", "${seed}", "${trainer.x}", "${trainer.run_dir}", "$$", "\t", "\x00", "\x1b[0m"),
    *("\u2028", "\udcff", "é 日本 😀", "x" * 300, "x" * 70000, "/" * 5000, "/", ".", "..", "/dev/null", "a,b", ","),
    *("x.jinja", "http://x", "H100:80", "H100:" + "9" * 400, ":", "x:y", "console", "1_000.5", "-1", "-0.5", "1e308"),
]
NUMBERS = {int: ["0", "1", "2", "8", "1e9", "9223372036854775807"], float: ["0", "0.3", "1", "1e-300", "1e300"]}


def leaves(cls: type) -> Iterator[tuple[str, Any]]:
    """Dotted key and type of every setting."""
    for path, section in sections(cls):
        for name, hint in typing.get_type_hints(section, include_extras=True).items():
            if not dataclasses.is_dataclass(hint):
                yield (f"{path}.{name}" if path else name), hint


def allowed(hint: Any) -> list[str]:
    """Values of a type, usual and extreme ones."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return list(itertools.chain.from_iterable(map(allowed, get_args(hint))))
    if origin is Literal:
        return [str(choice) for choice in get_args(hint)]
    if origin is Annotated:
        return allowed(get_args(hint)[0])
    others = {bool: ["true", "false"], type(None): ["null"]}
    return (NUMBERS | others).get(hint, ["rows.json", "[rows.json, model]", "{}"])


def cases(cls: type, rounds: int, seed: int = 0) -> Iterator[list[str]]:
    """Words that change one to four settings, with every setting in each of the rounds."""
    rng, settings = random.Random(seed), list(leaves(cls))
    for _ in range(rounds):
        rng.shuffle(settings)
        rest = iter(settings)
        while chosen := list(itertools.islice(rest, rng.randint(1, 4))):
            values = [rng.choice(TEXTS if rng.random() < 0.4 else allowed(hint)) for _, hint in chosen]
            yield [f"{key}={value}" for (key, _), value in zip(chosen, values, strict=True)]


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Runs a command on every case, in a folder that is also the home folder, without a hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    cpu = Hardware("CPU", None, 1e11, 1e10, 1e10)
    monkeypatch.setattr(Hardware, "here", lambda dtype: cpu)  # which measures

    def run(main: Callable[[list[str]], int], usual: list[str], changes: Iterator[list[str]], *last: str) -> None:
        before, codes = tree(tmp_path), set()
        for words in changes:
            started = time.process_time()
            code = main([*usual, *words, *last])
            shown = capsys.readouterr().err
            assert code in (0, 2) and bool(code) == bool(shown), (words, code, shown)
            assert time.process_time() - started < SECONDS, words
            assert tree(tmp_path) == before, words
            codes.add(code)
        assert codes == {0, 2}

    logging.disable(logging.CRITICAL)
    yield run
    logging.disable(logging.NOTSET)


def test_training(check, tmp_path, tiny_model):
    check(trainer_main, arguments(tiny_model, tmp_path, "run"), cases(PPOConfig, 1), "trainer.dry_run=true")


def test_rejection_steering(check, tmp_path, tiny_model):
    (tmp_path / "rows.json").write_text(json.dumps([{"instruction": "Who?", "output": "No."}] * 4))
    check(rs_main, [f"model={tiny_model}", "data=rows.json", "output_dir=out"], cases(RSConfig, 4), "dry_run=true")


def test_evaluation_up_to_its_engines(check, tmp_path, tiny_model, monkeypatch):
    for name, probes in PROBES.items():
        rows = [{"query": query, "answer": answer, "type": "role play", "subject": "Ann"} for query, answer in probes]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    monkeypatch.setattr(
        evaluation, "evaluate_all", lambda configs: [plan.document for plan in evaluation._plans(configs)]
    )
    monkeypatch.setattr(evaluation, "write_text", lambda path, text: None)
    check(evaluation.main, [f"model={tiny_model}", "suite=atlas", f"data={tmp_path}", "out=out"], cases(EvalConfig, 3))
