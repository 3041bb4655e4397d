"""Preparation of MUSE: layouts, checks, and the training rows that are cut out of its corpora. A small MUSE is made."""

import json
import random
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data import prepare_muse
from data.common.files import dump_rows
from data.prepare_rwku import RL_FILE, RS_FILE, VAL_FILE
from verl.utils.errors import DataError


def write_json(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dump_rows(rows))


def read(path: Path):
    return json.loads(path.read_text())


def muse_source(root: Path) -> Path:
    words = random.Random(0)
    vocabulary = [f"word{number}" for number in range(500)]

    def text(count: int) -> str:
        return " ".join(words.choices(vocabulary, k=count))

    qa = [{"question": f"What is {number}?", "answer": str(number)} for number in range(4)]
    passages = [{"text": text(50)} for _ in range(3)]
    files = {
        "knowmem/forget_qa": qa,
        "knowmem/forget_qa_icl": qa,
        "knowmem/retain_qa": qa,
        "knowmem/retain_qa_icl": qa,
        "verbmem/forget": [{"prompt": text(30), "gt": text(30)}],
        "privleak/forget": passages,
        "privleak/retain": passages,
        "privleak/holdout": passages,
        "raw/forget": [{"text": text(1000)}, {"text": text(1000)}],
        "raw/retain1": [{"text": text(1000)}],
    }
    for name, rows in files.items():
        write_json(root / f"{name}.json", rows)
    return root


def muse_config(source, out, **changes):
    lengths = {"num_passages": 10, "prompt_words": 20, "answer_words": 10}
    return prepare_muse.PrepareConfig(
        **{"source": str(source), "corpus": "books", "out": str(out), **lengths, **changes}
    )


@pytest.mark.parametrize(
    ("corpus", "subject", "documents"), [("books", "the Harry Potter books", 4), ("news", "these news articles", 889)]
)
def test_muse_probes_are_copied_and_training_rows_are_cut_from_the_corpora(tmp_path, corpus, subject, documents):
    source = muse_source(tmp_path / "source")
    folder = prepare_muse.prepare(muse_config(source, tmp_path / "out", corpus=corpus))
    assert folder == tmp_path / "out" / corpus
    for part in ("knowmem/forget_qa_icl", "verbmem/forget", "privleak/holdout", "raw/retain1"):
        assert (folder / f"{part}.json").read_bytes() == (source / f"{part}.json").read_bytes()
    train, val, rs_rows = read(folder / RL_FILE), read(folder / VAL_FILE), read(folder / RS_FILE)
    assert (len(train), len(val), len(rs_rows)) == (18, 2, 9)
    forget_text = " ".join(row["text"] for row in read(source / "raw" / "forget.json"))
    retain_text = read(source / "raw" / "retain1.json")[0]["text"]
    for row in train + val:
        assert len(row["prompt"].split()) == 20
        if row["solution"][0] == "<reject>":
            assert row["prompt"] in forget_text
            assert row["solution"][2] == subject
        else:
            assert f"{row['prompt']} {row['solution'][1]}" in retain_text
            assert len(row["solution"][1].split()) == 10
    assert {row["instruction"] for row in rs_rows} == {r["prompt"] for r in train if r["solution"][0] == "<reject>"}
    manifest = read(folder / "manifest.json")
    assert manifest["training"] == {"from": "raw", "rs": 9, "rl": 18, "validation": 2}
    assert f"raw/forget: 2 rows, {documents} in the published set" in manifest["warnings"]


def test_muse_is_not_overwritten_unasked_and_a_second_run_changes_nothing(tmp_path):
    source = muse_source(tmp_path / "source")
    folder = prepare_muse.prepare(muse_config(source, tmp_path / "out"))
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    prepare_muse.prepare(muse_config(source, tmp_path / "out"))
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before
    (folder / RL_FILE).write_text("[]")
    with pytest.raises(DataError, match=rf"{RL_FILE}: is there with other content.*overwrite=true"):
        prepare_muse.prepare(muse_config(source, tmp_path / "out"))
    assert (folder / RL_FILE).read_text() == "[]"
    prepare_muse.prepare(muse_config(source, tmp_path / "out", overwrite=True))
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == {
        **before,
        folder / "manifest.json": (folder / "manifest.json").read_bytes(),  # which holds the setting
    }


def test_muse_passages_do_not_overlap_with_probes(tmp_path):
    source = muse_source(tmp_path / "source")
    words = " ".join(row["text"] for row in read(source / "raw" / "forget.json")).split()
    verbatim = [{"prompt": " ".join(words[:400]), "gt": " ".join(words[400:700])}]
    write_json(source / "verbmem" / "forget.json", verbatim)
    folder = prepare_muse.prepare(muse_config(source, tmp_path / "out", num_passages=100, val_fraction=0))
    taken = " ".join(words[:700])
    prompts = [row["prompt"] for row in read(folder / RL_FILE) if row["solution"][0] == "<reject>"]
    assert len(prompts) >= 20
    assert not any(prompt in taken for prompt in prompts)


def test_muse_parquet_shards_and_earlier_names_are_read(tmp_path):
    """The hub's layout: one parquet file a split; before July 2024 the retain splits were called retain2."""
    source = muse_source(tmp_path / "source")
    renamed = {"knowmem/retain_qa": "retain2_qa", "privleak/retain": "retain2"}
    for path in sorted(source.rglob("*.json")):
        part = path.relative_to(source).with_suffix("").as_posix()
        table = pyarrow.Table.from_pylist(read(path))
        name = f"{renamed.get(part, path.stem)}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(table, path.with_name(name))
    expected = {path.relative_to(source): read(path) for path in source.rglob("*.json")}
    for path in expected:
        (source / path).unlink()
    folder = prepare_muse.prepare(muse_config(source, tmp_path / "out"))
    for path, rows in expected.items():
        assert read(folder / path) == rows


def test_muse_text_files_become_one_document(tmp_path):
    source = muse_source(tmp_path / "source")
    text = " ".join(row["text"] for row in read(source / "raw" / "forget.json"))
    (source / "raw" / "forget.json").unlink()
    (source / "raw" / "forget.txt").write_text(text)
    folder = prepare_muse.prepare(muse_config(source, tmp_path / "out"))
    assert read(folder / "raw" / "forget.json") == [{"text": text}]


def test_muse_names_all_that_is_missing(tmp_path):
    source = muse_source(tmp_path / "source")
    shutil.rmtree(source / "privleak")
    (source / "raw" / "retain1.json").unlink()
    with pytest.raises(DataError) as caught:
        prepare_muse.prepare(muse_config(source, tmp_path / "out"))
    for part in ("privleak/forget", "privleak/retain", "privleak/holdout", "raw/retain1"):
        assert f"the hub has it as {part}" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_muse_training_files_of_the_source_are_taken(tmp_path):
    source = muse_source(tmp_path / "source")
    refusal = ["<reject>", "I can't say.", "the books"]
    rows = [{"prompt": "Who flew?", "solution": refusal}, {"prompt": "Who sang?", "solution": ["<normal>", "a lark"]}]
    write_json(source / RL_FILE, rows)
    write_json(source / RS_FILE, [{"instruction": "Who flew?", "output": "I can't say."}])
    folder = prepare_muse.prepare(muse_config(source, tmp_path / "out", val_fraction=0))
    assert read(folder / RL_FILE) == rows
    assert read(folder / "manifest.json")["training"]["from"] == "source"


def test_muse_from_the_hub(tmp_path, monkeypatch):
    source = muse_source(tmp_path / "source")
    asked = {}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda repo, **settings: asked.update(repo=repo, **settings) or str(source)
    )
    prepare_muse.prepare(muse_config("muse-bench/MUSE-Books", tmp_path / "out"))
    assert asked["repo"] == "muse-bench/MUSE-Books"
    assert asked["allow_patterns"] == ["knowmem/*", "privleak/*", "raw/*", "verbmem/*"]
