"""Where rows come from and the files they stand in: read, or named with file and row."""

import gzip
import json
import sys
import types
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from verl.eval.prompts import OURS as PROMPTS
from verl.eval.prompts import read_prompts
from verl.rows.sources import find_sources, read_file, read_rows
from verl.rows.values import row_problems
from verl.utils.errors import DataError

ROWS = [{"prompt": "caf\u00e9 \U0001f600"}, {"prompt": "a\u2028b\u2029c\u0085d\x0be\x0cf"}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
ESCAPED = "\n".join(map(json.dumps, ROWS))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("lines.jsonl", LINES.encode()),
        ("lines.ndjson", LINES.encode()),
        ("lines_called.json", LINES.encode()),
        ("escaped.jsonl", ESCAPED.encode()),
        ("returns.jsonl", LINES.replace("\n", "\r\n").encode()),
        ("padded.jsonl", f"  \n\t{LINES} \n \t\n".encode()),
        ("bom.jsonl", LINES.encode("utf-8-sig")),
        ("powershell.jsonl", LINES.encode("utf-16")),
        ("wide.json", json.dumps(ROWS).encode("utf-32")),
        ("list.json", json.dumps(ROWS, indent=4).encode()),
        ("list_called.jsonl", json.dumps(ROWS).encode()),
        ("lines.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("no_ending", json.dumps(ROWS).encode()),
    ],
)
def test_a_file_is_read_whatever_its_form(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    assert read_rows(str(tmp_path / name)) == ROWS


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("latin.jsonl", '{"a": 1}\n{"a": "caf\u00e9"}'.encode("latin-1"), r"line 2: its byte 0xe9 is not utf-8; save"),
        ("torn.jsonl", b'{"a": 1}\n{"a": ', "is not valid JSON in line 2: Expecting value"),
        ("torn.json", b'[{"a": 1}, {"a"', "is not valid JSON in row 1"),
        ("comma.json", b'[{"a": 1}, {"a": 2} {"a": 3}]', "in row 1: Expecting ',' delimiter"),
        ("more.json", b'[{"a": 1}]]', "is not valid JSON: Extra data"),
        ("twice.json", b'[{"a": 1}, {"a": 1, "a": 2}]', "in row 1: the key 'a' stands twice"),
        ("long.json", b'[{"a": ' + b"9" * 5000 + b"}]", "in row 0: Exceeds the limit"),
        ("deep.jsonl", b'{"a": ' + b"[" * 9000 + b"]" * 9000 + b"}", "in line 1: maximum recursion"),
        ("deeper.json", b'[{"a": ' + b"[" * 200 + b"]" * 200 + b"}]", "row 0: has more than 100 lists"),
        ("half.jsonl", b'{"a": "\\ud83d\\ude00"}\n{"b": ["\\udc00"]}', "line 2: column 'b' holds half a character"),
        ("half.json", b'{"train": [{"a": 1}, {"\\ud800": 1}]}', r"split train, row 1: column '\\ud800' holds half"),
        ("number.json", b'[{"a": 1}, 7]', "row 1: is of type int; must be an object of columns, or a text"),
        ("null.jsonl", b'{"a": 1}\nnull', "line 2: is of type NoneType"),
        ("columns.json", b'{"a": 1}', "must be a list of rows, or map the name of each split to one"),
        ("empty.json", b"", "is empty; give a file"),
        ("blank.jsonl", b" \n\n", "is empty; give a file"),
        ("none.json", b"[]", "holds no rows"),
        ("garbage.parquet", b"garbage!", "cannot be read as parquet: .*; fetch or write it again"),
        ("empty.parquet", b"", "cannot be read as parquet"),
        ("torn.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-9], "is a broken gzip file"),
        ("table.json", b"PAR1...", r"let its name end in \.parquet"),
        ("rows.csv", b"prompt,answer\na,b\n", "is no JSON, JSONL or parquet file"),
        ("rows.jsonl.xz", b"\xfd7zXZ\x00", "is packed; unpack it, or use gzip"),
        ("pointer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "run git lfs pull"),
    ],
)
def test_a_broken_file_is_named_with_its_row(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=rf"{name}: .*{message}|{name}: {message}"):
        read_rows(str(tmp_path / name))


def test_tables(tmp_path, monkeypatch):
    table = pyarrow.table(
        {"prompt": ["a", None], "map": pyarrow.array([[("k", 1)], []], pyarrow.map_("string", "int64"))}
    )
    (tmp_path / "part=1").mkdir()  # no column of its own
    pyarrow.parquet.write_table(table, tmp_path / "part=1" / "rows.parquet")
    with pyarrow.OSFile(str(tmp_path / "rows.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)
    rows = [{"prompt": "a", "map": {"k": 1}}, {"prompt": None, "map": {}}]
    assert read_rows(str(tmp_path / "part=1" / "rows.parquet")) == rows == read_rows(str(tmp_path / "rows.arrow"))
    pyarrow.parquet.write_table(pyarrow.table([[1], [2]], names=["a", "a"]), tmp_path / "twice.parquet")
    with pytest.raises(DataError, match=r"twice.parquet: has two columns 'a'"):
        read_rows(str(tmp_path / "twice.parquet"))
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    (tmp_path / "locked.json").write_text("[]")
    with pytest.raises(DataError, match=r"locked.json: cannot be read: Permission denied"):
        read_rows(str(tmp_path / "locked.json"))


def test_a_bare_text_is_a_row_with_text(tmp_path):
    (tmp_path / "a.json").write_text('["one", {"text": "two"}]')
    (tmp_path / "b.txt").write_text("three\n")
    assert [row["text"] for name in ("a.json", "b.txt") for row in read_file(tmp_path / name)] == [
        "one",
        "two",
        "three\n",
    ]


TRAIN, TEST = [{"n": 1}], [{"n": 2}, {"n": 3}]
README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: a/*
  - split: test
    path: [b.jsonl]
---
"""
LAYOUTS = {
    "mapping.json": {"mapping.json": {"train": TRAIN, "test": TEST}},
    "shards": {"shards/data/train-00000-of-00001.jsonl": TRAIN, "shards/data/test-00000-of-00001.jsonl": TEST},
    "named": {"named/my_train.jsonl": TRAIN, "named/test.json": TEST, "named/dataset_infos.json": {"x": 1}},
    "folders": {"folders/train/x.json": TRAIN, "folders/test/x.json": TEST, "folders/.cache/train/y.json": TEST},
    "readme": {"readme/README.md": README, "readme/a/test.jsonl": TRAIN, "readme/b.jsonl": TEST},
    "inside": {"inside/rows.json": {"train": TRAIN, "test": TEST[:1]}, "inside/z.json": {"test": TEST[1:]}},
    "owner/hub": {},
}


@pytest.fixture(params=LAYOUTS)
def source(request, tmp_path, monkeypatch):
    """A data set of 1 row to train on and 2 to test with, in every kind of place."""
    for name, held in LAYOUTS[request.param].items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.suffix == ".jsonl"
        text = held if isinstance(held, str) else "\n".join(map(json.dumps, held)) if lines else json.dumps(held)
        path.write_text(text)
    hub, errors = types.ModuleType("datasets"), types.ModuleType("datasets.exceptions")
    errors.DatasetsError = type("DatasetsError", (Exception,), {})

    def load_dataset(name, split):
        if split not in ("train", "test"):
            raise ValueError(f'Unknown split "{split}". Should be one of [train, test].')
        return types.SimpleNamespace(to_list=lambda: {"train": TRAIN, "test": TEST}[split])

    hub.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", hub)
    monkeypatch.setitem(sys.modules, "datasets.exceptions", errors)
    return request.param if request.param == "owner/hub" else str(tmp_path / request.param)


def test_a_split_means_the_same_for_every_kind_of_source(source):
    assert read_rows(source) == TRAIN == read_rows(f"{source}@train")
    assert read_rows(f"{source}@test") == TEST
    assert read_rows(f"{source}@test,{source}") == TEST + TRAIN
    with pytest.raises(DataError, match=rf"{source}.*validation.*(train, test|test, train)"):
        read_rows(f"{source}@validation")
    with pytest.raises(DataError, match=r"is no name of a split"):
        read_rows(f"{source}@train[:1]")


def test_a_file_of_rows_is_the_split_that_its_name_says_else_train(tmp_path, caplog):
    for name, split in (("rows.json", "train"), ("rl_test.json", "test"), ("x_val.json", "validation")):
        (tmp_path / name).write_text(json.dumps(TRAIN))
        assert read_rows(str(tmp_path / name)) == TRAIN == read_rows(f"{tmp_path / name}@{split}")
        with pytest.raises(DataError, match=rf"{name}: has no split dev; it has {split}: write .*{name}@{split}"):
            read_rows(f"{tmp_path / name}@dev")
    with pytest.raises(DataError, match=rf"{tmp_path}: has no split train; it has (test, validation|validation, test)"):
        read_rows(str(tmp_path))  # rows.json says nothing where the others do, as on the hub
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: 1 file(s) of no split are not read: rows.json"
    ]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "x.json").write_text("{}")
    for name in ("rl_test.json", "x_val.json"):
        (tmp_path / name).unlink()
    assert read_rows(str(tmp_path)) == TRAIN  # and nothing further down


@pytest.mark.parametrize(
    ("header", "result"),
    [
        ("configs: [{config_name: a, data_files: x.json}, {config_name: b, data_files: y.json}]", r"configs \(a, b\)"),
        ("configs: [{config_name: a, data_dir: x}]", r"configs \(a\) are not one with data_files"),
        ("configs: [{config_name: a, data_files: x.json}, {config_name: b, default: true, data_files: d}]", [{"n": 2}]),
        ("configs: [{data_files: {path: [d/*]}}]", [{"n": 2}]),
        ("configs: some", [{"n": 1}]),
        ("a: [", "its header is not valid YAML"),
    ],
)
def test_the_readme_of_a_folder_says_what_its_files_are(header, result, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\n# Rows\n")
    (tmp_path / "x.json").write_text('[{"n": 1}]')
    (tmp_path / "d" / "y.json").write_text('[{"n": 2}]')
    if isinstance(result, list):
        assert read_rows(str(tmp_path)) == result
        return
    with pytest.raises(DataError, match=f"README.md: .*{result}"):
        read_rows(str(tmp_path))


def test_a_path_that_exists_is_that_path_whatever_is_in_it(tmp_path, monkeypatch):
    odd = tmp_path / "me@home" / "10_Harry,_Duke@test"
    odd.mkdir(parents=True)
    (odd / "a,b.json").write_text(json.dumps({"train": TRAIN, "test": TEST}))
    (tmp_path / "c.jsonl").write_text('{"n": 2}\n{"n": 3}')
    assert read_rows(str(odd / "a,b.json")) == TRAIN == read_rows(str(odd))
    assert read_rows(f"{odd / 'a,b.json'}@test, {tmp_path / 'c.jsonl'},") == TEST + TEST
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_rows("~/c.jsonl") == TEST
    for wrong in ("~/d.jsonl", "nowhere.json@test", "data/a.csv", "a/b/c", "n" * 300, f"{tmp_path}/d.parquet"):
        with pytest.raises(DataError, match="there is no such file"):
            read_rows(wrong)
    with pytest.raises(DataError, match="names nothing"):
        read_rows(" , ")
    assert [(one.place, one.split) for one in find_sources("a/b@x,c@d/e@y")] == [("a/b", "x"), ("c@d/e", "y")]


def test_prompts_are_read_whatever_wrote_them(tmp_path):
    text = PROMPTS.read_text(encoding="utf-8")
    for encoding, ends in (("utf-8-sig", "\n"), ("utf-16", "\r\n")):
        (tmp_path / "prompts.yaml").write_bytes(text.replace("\n", ends).encode(encoding))
        assert read_prompts(str(tmp_path / "prompts.yaml")).texts == read_prompts().texts
    (tmp_path / "prompts.yaml").write_bytes("qa: caf\u00e9 $query".encode("latin-1"))
    with pytest.raises(DataError, match="prompts.yaml: line 1: its byte 0xe9 is not utf-8"):
        read_prompts(str(tmp_path / "prompts.yaml"))


def test_rows_know_their_file(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.json").write_text(json.dumps([{"prompt": "Who?"}, {"prompt": ""}]))
    rows = read_rows([str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert rows.where(2) == f"{tmp_path / 'b.json'}, row 0"
    wrong = row_problems(rows, "prompt", "prompt", "")
    assert wrong[1] == f"{tmp_path / 'b.json'}, row 1: column 'prompt' is empty; give a prompt or drop the row"


def test_a_folder_that_cannot_be_searched_is_named(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied", str(tmp_path / "private"))

    monkeypatch.setattr(Path, "rglob", denied)
    with pytest.raises(DataError, match=r"cannot be searched for rows \(.*private.*\); name the file"):
        read_rows(str(tmp_path))


def test_a_whole_disk_is_no_folder_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("verl.rows.sources.MOST_FILES", 2)
    for number in range(3):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(DataError, match="holds more than 2 files; name the file"):
        read_rows(str(tmp_path))
