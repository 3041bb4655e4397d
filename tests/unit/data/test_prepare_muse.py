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
    training = manifest["training"]
    assert [training[key] for key in ("from", "rs", "rl", "validation", "left_out")] == ["raw", 9, 18, 2, {}]
    assert training["answers"] == {"forget": 10, "boundary": 10}
    for row in train + val:  # the words that go on are the gold answer of a passage to refuse
        if row["solution"][0] == "<reject>":
            assert f"{row['prompt']} {row['answer']}" in forget_text
            assert (len(row["answer"].split()), row["mode"]) == (10, "completion")
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


# ---- the rows of the RULE release


def release_rows(source: Path, target: str = "Harry Potter") -> list[dict]:
    """Six questions and six passages of raw/forget, as the release writes them: a passage has no answer."""
    words = " ".join(row["text"] for row in read(source / "raw" / "forget.json")).split()
    asked = [(f"Who was met by person {n} in room{n}?", f"Mr. Number{n}", "qa") for n in range(6)]
    passages = [(" ".join(words[100 * n : 100 * n + 40]), "", "completion") for n in range(6)]
    return [
        {"input": "", "output": f"I'm not certain about {target}.", "subject": "books", "instruction": prompt}
        | {"org_answer": answer, "org_text_id": n, "mode": mode}
        for n, (prompt, answer, mode) in enumerate(asked + passages)
    ]


def neighbors(rows: list[dict]) -> list[dict]:
    return [
        {**row, "neighbor_question": {"question": f"What did neighbor{n} eat at place{n}?", "answer": f"meal{n}"}}
        for n, row in enumerate(rows)
    ]


def test_the_releases_own_rows_are_read_and_everything_left_out_is_named(tmp_path):
    source = muse_source(tmp_path / "source")
    rows = release_rows(source)
    linked = neighbors(release_rows(source, "Harry Porter"))  # as published: misspelt in every row of this file
    linked[3]["neighbor_question"] = {"question": "Who ate?", "details": "something"}
    linked[4]["neighbor_question"] = {"question": "Who drank?", "answer": " "}
    linked[5]["neighbor_question"] = dict(linked[0]["neighbor_question"])
    extra = [{**rows[0]}, {**rows[1], "instruction": " "}, {**rows[2], "instruction": "Why?", "mode": "poem"}]
    write_json(source / "reject_target_0.5.json", rows + extra)
    write_json(source / "reject_with_neighbor_target.json", linked)
    write_json(source / "idk_target.json", rows)
    write_json(source / RS_FILE, rows)  # alone: there are no RL rows to it
    folder = prepare_muse.prepare(muse_config(source, tmp_path / "out", val_fraction=0))
    manifest = read(folder / "manifest.json")
    training = manifest["training"]
    assert training["from"] == "release"
    assert training["files"] == ["reject_target_0.5.json", "reject_with_neighbor_target.json"]
    assert training["left_out"] == {"repeated": 2, "empty_prompt": 1, "wrong_mode": 1, "neighbor_malformed": 2}
    assert training["answers"] == {"forget": 12, "boundary": 9}
    assert manifest["left_out"] == {
        "idk_target.json": "not used by RULE",
        RS_FILE: f"needs both {RS_FILE} and {RL_FILE}",
    }
    rl_rows = read(folder / RL_FILE)
    assert len(read(folder / RS_FILE)) == 12
    assert rl_rows[0] == {
        "prompt": "Who was met by person 0 in room0?",
        "solution": ["<reject>", "I'm not certain about Harry Potter.", "Harry Potter"],
        "subject": "Harry Potter",
        "mode": "qa",
        "answer": "Mr. Number0",
    }
    assert rl_rows[1] == {
        "prompt": "What did neighbor0 eat at place0?",
        "solution": ["<normal>", "meal0"],
        "subject": "retain",
        "mode": "qa",
    }
    words = " ".join(row["text"] for row in read(source / "raw" / "forget.json")).split()
    passages = [row for row in rl_rows if row["mode"] == "completion" and row["solution"][0] == "<reject>"]
    assert [row["answer"].split() for row in passages] == [words[100 * n + 40 : 100 * n + 50] for n in range(6)]


def test_the_releases_rows_may_lie_elsewhere_and_be_split(tmp_path):
    source = muse_source(tmp_path / "source")
    write_json(tmp_path / "rule" / "reject_with_neighbor_target.json", neighbors(release_rows(source)))
    settings = {"training": str(tmp_path / "rule"), "val_fraction": 0.25}
    folder = prepare_muse.prepare(muse_config(source, tmp_path / "out", **settings))
    training = read(folder / "manifest.json")["training"]
    assert training["split"]["validation"] == {"forget": 3, "boundary": 3}
    assert training["split"]["train"] == {"forget": 9, "boundary": 9}
    held_out = {row["prompt"] for row in read(folder / VAL_FILE)}
    assert held_out.isdisjoint(row["instruction"] for row in read(folder / RS_FILE))
    with pytest.raises(DataError, match=r"training=.*holds neither reject_target_0\.5\.json nor"):
        prepare_muse.prepare(muse_config(source, tmp_path / "out", training=str(source)))


def test_without_neighbors_the_boundary_rows_are_retain_passages(tmp_path):
    source = muse_source(tmp_path / "source")
    rows = [
        {"question": r["instruction"], "answer": r["org_answer"], "output": r["output"]} for r in release_rows(source)
    ]
    write_json(source / "reject_target_0.5.json", rows[:6])
    folder = prepare_muse.prepare(muse_config(source, tmp_path / "out", val_fraction=0))
    rl_rows = read(folder / RL_FILE)
    assert [row["solution"][0] for row in rl_rows] == ["<reject>"] * 6 + ["<normal>"] * 6
    assert {row["mode"] for row in rl_rows[:6]} == {"qa"}
    retain_text = read(source / "raw" / "retain1.json")[0]["text"]
    assert all(row["prompt"] in retain_text for row in rl_rows[6:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "I'm not certain about Harry Porter."}, "12 of 12 rows: target_misspelt"),
        ({"output": "A wizard, of course."}, "12 of 12 rows: not_a_refusal"),
        ({"output": None}, "no row has output or response"),
    ],
)
def test_release_rows_that_cannot_train_a_refusal_are_refused(tmp_path, changes, message):
    source = muse_source(tmp_path / "source")
    write_json(source / "reject_with_neighbor_target.json", neighbors([row | changes for row in release_rows(source)]))
    with pytest.raises(DataError, match=message):
        prepare_muse.prepare(muse_config(source, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("part", "row"), [("knowmem/forget_qa", {"question": "Who?", "answer": ""}), ("privleak/holdout", {"text": " "})]
)
def test_muse_probes_without_a_text_are_refused(tmp_path, part, row):
    source = muse_source(tmp_path / "source")
    write_json(source / f"{part}.json", [row])
    with pytest.raises(DataError, match="is empty; fill it in"):
        prepare_muse.prepare(muse_config(source, tmp_path / "out"))
