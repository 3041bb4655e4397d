"""docs/config.md and examples/config.yaml say what the dataclasses say."""

import dataclasses

import pytest

from scripts import check_commands, make_config_docs
from scripts.make_config_docs import COMMANDS, ROOT, RUN_VALUES, outputs
from verl.config.run import PPOConfig
from verl.settings.describe import field_docs, sections
from verl.settings.reader import load, to_dict
from verl.trainer.preflight import read_config


def test_generated_files_are_up_to_date():
    for path, text in outputs().items():
        assert path.read_text(encoding="utf-8") == text, f"run scripts/make_config_docs.py: {path} is out of date"


@pytest.mark.parametrize("name", ["RS", "ReBO", "Evaluation"])
def test_every_key_is_documented(name):
    for path, cls in sections(COMMANDS[name][1]):
        undocumented = {field.name for field in dataclasses.fields(cls)} - field_docs(cls).keys()
        subsections = {sub.rpartition(".")[2] for sub, _ in sections(cls)}
        assert undocumented <= subsections, f"{name}: {path} has keys without a docstring"


def test_config_yaml_holds_the_defaults(monkeypatch):
    """Read back, the file differs from the dataclasses' defaults in exactly the values that a run needs."""
    monkeypatch.setattr("verl.trainer.preflight.file_problems", lambda config: [])
    read, default = (
        _flat(to_dict(config)) for config in (read_config([f"config={ROOT}/examples/config.yaml"]), PPOConfig())
    )
    assert read.keys() == default.keys()
    different = {key: read[key] for key in read if read[key] != default[key]}
    assert different == RUN_VALUES


def _flat(values: dict, path: str = "") -> dict:
    """Dotted keys; free-form mappings (kwargs, overrides) stay whole."""
    flat = {}
    free = ("reward_function_kwargs", "override_config")
    for key, value in values.items():
        name = f"{path}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) and key not in free else {name: value}
    return flat


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_of_every_command_prints_every_key_with_default_and_meaning(name, word, capsys):
    root = COMMANDS[name][1]
    with pytest.raises(SystemExit) as left:
        load(root, ["nonsense", word])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    for path, cls in sections(root):
        for field in dataclasses.fields(cls):
            key = f"{path}.{field.name}" if path else field.name
            assert f"\n{key}   (" in printed
            assert field_docs(cls).get(field.name, "")[:60] in " ".join(printed.split())
    assert "default" in printed


def test_commands_without_a_configuration_have_help_too(capsys):
    for main in (make_config_docs.main, check_commands.main):
        with pytest.raises(SystemExit) as left:
            main(["--help"])
        assert left.value.code == 0
        assert "python3 scripts/" in capsys.readouterr().out
