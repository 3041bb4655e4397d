"""Rows that preparation refuses, each by name, and rows that it counts by reason."""

import json
from pathlib import Path

import pytest

from data import prepare_rwku
from data.common.files import dump_rows
from data.prepare_rwku import RL_FILE, RS_FILE
from tests.unit.data.test_prepare_data import FACTS, config, read, target_files, training_files, write_folder
from verl.utils.errors import DataError


@pytest.fixture
def rwku(tmp_path) -> Path:
    files = target_files("Ottilie Venn") | training_files("Ottilie Venn")
    write_folder(tmp_path / "source" / "Target" / "1_Ottilie_Venn", files)
    return tmp_path / "source"


def change(path: Path, **values) -> None:
    """Give the first row other values; a value None takes the key away."""
    rows = read(path)
    rows[0] = {key: value for key, value in {**rows[0], **values}.items() if value is not None}
    path.write_bytes(dump_rows(rows))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("forget_level1.json", {"query": " "}, "query=' ' is empty"),
        ("forget_level2.json", {"answer": ""}, "answer='' is empty"),
        ("forget_level3.json", {"level": "2"}, "level='2' must be '3' in this file"),
        ("neighbor_level1.json", {"level": "7"}, "level='7' must be '1'"),
        ("neighbor_level2.json", {"subject": "Bo Gantry"}, "1 probes are about 'Bo Gantry', not 'Ottilie Venn'"),
        ("forget_mia.json", {"text": "\n"}, "is empty"),
        ("retain_mmlu.json", {"answer": 7}, "answer=7 must be the index of one of its 2 choices"),
        ("retain_mmlu.json", {"answer": -1}, "answer=-1 must be the index"),
        ("retain_mmlu.json", {"answer": True}, "answer=True must be int"),
        ("retain_mmlu.json", {"choices": ["1", ""]}, "must be two texts or more"),
        ("retain_mmlu.json", {"examples": [{"choices": ["1", "2"], "answer": 2}]}, "one of its examples: answer=2"),
        ("retain_mmlu.json", {"examples": [7]}, "one of its examples: 7 must hold choices and an answer"),
        ("intro.json", {"target": 7}, "row 0: target=7 must be a text"),
        ("retain_bbh.json", {"question": ""}, "question='' is empty"),
        ("truthful.json", {"mc1_targets": {}}, "mc1_targets={} must hold choices"),
        ("truthful.json", {"mc1_targets": {"choices": ["a", "b"], "labels": [1, 1]}}, r"labels=\[1, 1\]"),
        ("triviaqa.json", {"answers": []}, r"answers=\[\] must be a text or more"),
        ("triviaqa.json", {"answers": ["a pig", " "]}, "none of them empty"),
        ("fluency.json", {"instruction": ""}, "instruction='' is empty"),
        (RL_FILE, {"prompt": "\n "}, "is empty"),
        (RL_FILE, {"solution": ["<reject>", "", "Ottilie Venn"]}, "none of them empty"),
        (RS_FILE, {"instruction": ""}, "instruction='' is empty"),
        (RS_FILE, {"output": " "}, "output=' ' is empty"),
    ],
)
def test_rows_that_cannot_be_asked_or_scored_stop_preparation(rwku, tmp_path, file, values, message):
    change(rwku / "Target" / "1_Ottilie_Venn" / file, **values)
    with pytest.raises(DataError, match=message):
        prepare_rwku.prepare(config(rwku, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def respelt(path: Path, old: str, new: str, count: int) -> None:
    rows = read(path)
    rows[:count] = json.loads(json.dumps(rows[:count]).replace(old, new))
    path.write_bytes(dump_rows(rows))


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        (RL_FILE, "Ottilie", "Ottillie", "target_misspelt"),
        (RL_FILE, "Ottilie Venn", "Bo Gantry", "other_target"),
        (RS_FILE, "Ottilie", "Otilie", "target_misspelt"),
        (RS_FILE, "Ottilie Venn", "that person", "target_not_named"),
        (RS_FILE, "I can't say.", "It was the old one.", "not_a_refusal"),
    ],
)
def test_a_reason_that_most_rows_fail_for_stops_preparation_and_a_few_are_counted(
    rwku, tmp_path, file, old, new, reason
):
    path = rwku / "Target" / "1_Ottilie_Venn" / file
    before = path.read_bytes()
    rows = len(read(path))
    respelt(path, old, new, 6 * rows // 10)
    with pytest.raises(DataError, match=f"{file}: [0-9]+ of [0-9]+ rows: {reason}.*correct them"):
        prepare_rwku.prepare(config(rwku, tmp_path / "out", targets=["1"]))
    path.write_bytes(before)
    respelt(path, old, new, 2)
    (folder,) = prepare_rwku.prepare(config(rwku, tmp_path / "out", targets=["1"], val_fraction=0))
    training = read(folder / "manifest.json")["training"]
    if reason != "target_not_named":  # published prompts often do not
        assert (training if file == RL_FILE else training["rs"])["flaws"] == {reason: 2}
    config_clean = config(rwku, tmp_path / "clean", targets=["1"], val_fraction=0, clean=True)
    (folder,) = prepare_rwku.prepare(config_clean)
    dropped = 0 if reason == "target_not_named" or file == RL_FILE else 2
    assert len(read(folder / RS_FILE)) == len(FACTS) - dropped
