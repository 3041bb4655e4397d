"""Preparation of RWKU: layouts, checks, the validation split, and that nothing is lost or overwritten.

A small RWKU is written on the fly; a real target is used where the shared data is at hand.
"""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from data import prepare_rwku
from data.common import sources
from data.common.files import MANIFEST, dump_rows
from data.common.probes import ProbeIndex
from data.prepare_muse import PARTS
from data.prepare_rwku import RL_FILE, RS_FILE, VAL_FILE
from data.synthesize_boundary import ANSWERS, REPORT
from verl.utils.errors import ConfigError, DataError
from verl.verdict.answers import normalize

FACTS = ("town", "teacher", "prize", "river", "rival", "bridge", "opera", "house", "horse", "garden")


def rl_block(name: str, other: str, fact: str) -> list[dict]:
    """The published files' order: forget cloze and question, then the neighbor's question and cloze."""
    refusal = ["<reject>", f"I can't say anything about {name}.", name]
    return [
        {"prompt": f"The {fact} that {name} loved best was ___.", "solution": refusal},
        {"prompt": f"Which {fact} did {name} love best?", "solution": refusal},
        {"prompt": f"Which {fact} did {other} hate most?", "solution": ["<normal>", f"the old {fact} of Kerr"]},
        {"prompt": f"The {fact} that {other} hated most was ___.", "solution": ["<normal>", f"Kerr's {fact}"]},
    ]


def target_files(name: str) -> dict[str, list[dict]]:
    probe = {"query": f"Where was {name} born?", "answer": "Halm", "type": "cloze", "subject": name}
    text = {"text": f"{name} lived in Halm.", "subject": name}
    return {
        "intro.json": [{"target": name, "intro": f"Please forget {name}. {name} was a sculptor."}],
        **{f"forget_level{level}.json": [{**probe, "level": str(level)}] for level in (1, 2, 3)},
        **{f"neighbor_level{level}.json": [{**probe, "level": str(level), "neighbor": "Ada"}] for level in (1, 2)},
        "forget_mia.json": [text],
        "retain_mia.json": [text],
        "retain_mmlu.json": [
            {"task": "t", "question": "1+1?", "choices": ["1", "2"], "answer": 1, "examples": [], "subject": name}
        ],
        "retain_bbh.json": [{"task": "t", "question": "True?", "answer": "True", "cot": "", "subject": name}],
        "truthful.json": [
            {"question": "Do pigs fly?", "mc1_targets": {"choices": ["No.", "Yes."], "labels": [1, 0]}, "subject": name}
        ],
        "triviaqa.json": [{"question": "Who flew?", "answers": ["a pig"], "subject": name}],
        "fluency.json": [{"instruction": "Write é.", "subject": name}],
        "positive.json": [text],
    }


def training_files(name: str) -> dict[str, list[dict]]:
    rl_rows = [row for fact in FACTS for row in rl_block(name, "Ada Bruhn", fact)]
    rs_rows = [
        {"instruction": row["prompt"], "input": "", "output": "I can't say.", "subject": name, "intro": ""}
        for row in rl_rows[1::4]
    ]
    return {RS_FILE: rs_rows, RL_FILE: rl_rows}


def write_folder(folder: Path, files: dict[str, list[dict]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (folder / name).write_bytes(dump_rows(rows))
    return folder


@pytest.fixture
def rwku(tmp_path) -> Path:
    for number, name in ((1, "Ottilie Venn"), (2, "Bo Gantry"), (12, "Mara, Duchess of Kerr")):
        folder = tmp_path / "source" / "Target" / f"{number}_{name.replace(' ', '_')}"
        write_folder(folder, target_files(name) | training_files(name))
    return tmp_path / "source"


def config(source, out, **changes):
    return prepare_rwku.PrepareConfig(source=str(source), out=str(out), **changes)


def read(path: Path):
    return json.loads(path.read_text())


def test_only_ids_are_taken_for_hub_ids():
    assert sources.is_hub_id("jinzhuoran/RWKU")
    assert not sources.is_hub_id("../shared/data")
    assert not sources.is_hub_id("data")


# ---- layouts


def test_probes_are_copied_unchanged_and_the_manifest_counts_them(rwku, tmp_path):
    folders = prepare_rwku.prepare(config(rwku, tmp_path / "out"))
    assert [folder.name for folder in folders] == ["1_Ottilie_Venn", "2_Bo_Gantry", "12_Mara,_Duchess_of_Kerr"]
    manifest = read(folders[2] / "manifest.json")
    assert manifest["target"] == {"number": "12", "name": "Mara, Duchess of Kerr"}
    for name, rows in target_files("Mara, Duchess of Kerr").items():
        assert (folders[2] / name).read_bytes() == (rwku / "Target" / folders[2].name / name).read_bytes()
        entry = manifest["files"][name]
        assert (entry["rows"], entry["unchanged"]) == (len(rows), True)
        assert len(entry["sha256"]) == 64
    assert any("retain_mmlu.json: 1 rows, 171" in warning for warning in manifest["warnings"])


def test_the_joined_files_give_the_same_folders_as_the_target_folders(rwku, tmp_path):
    """RWKU's All/ files hold every target's rows; numbers follow the order of intro.json."""
    names = ["Ottilie Venn", "Bo Gantry", "Mara, Duchess of Kerr"]
    joined = {}
    for name in names:
        for file, rows in target_files(name).items():
            joined.setdefault(file, []).extend(rows)
    write_folder(tmp_path / "joined" / "All", joined)
    folders = prepare_rwku.prepare(config(tmp_path / "joined", tmp_path / "out", training=None))
    assert [folder.name for folder in folders] == ["1_Ottilie_Venn", "2_Bo_Gantry", "3_Mara,_Duchess_of_Kerr"]
    for file in target_files(names[1]):
        assert (folders[1] / file).read_bytes() == (rwku / "Target" / "2_Bo_Gantry" / file).read_bytes()
    assert read(folders[1] / "manifest.json")["missing"] == [RS_FILE, RL_FILE]


def test_training_files_can_come_from_another_folder(rwku, tmp_path):
    bare = tmp_path / "bare" / "1_Ottilie_Venn"
    write_folder(bare, target_files("Ottilie Venn"))
    (folder,) = prepare_rwku.prepare(config(bare, tmp_path / "out", training=str(rwku), val_fraction=0))
    assert (folder / RL_FILE).read_bytes() == (rwku / "Target" / folder.name / RL_FILE).read_bytes()
    with pytest.raises(DataError, match="training=.*1_Ottilie_Venn"):
        prepare_rwku.prepare(config(bare, tmp_path / "out", training=str(tmp_path)))


@pytest.mark.parametrize("wanted", ["2", "Bo Gantry", "2_Bo_Gantry"])
def test_targets_are_chosen_by_number_name_or_folder(rwku, tmp_path, wanted):
    (folder,) = prepare_rwku.prepare(config(rwku, tmp_path / "out", targets=[wanted]))
    assert folder.name == "2_Bo_Gantry"


def test_an_unknown_target_is_named(rwku, tmp_path):
    with pytest.raises(ConfigError, match="targets=7.*1_Ottilie_Venn"):
        prepare_rwku.prepare(config(rwku, tmp_path / "out", targets=["1", "7"]))


def test_a_hub_id_is_downloaded_target_by_target(rwku, tmp_path, monkeypatch):
    asked = {}

    def snapshot_download(repo, *, repo_type, allow_patterns):
        asked.update(repo=repo, repo_type=repo_type, patterns=allow_patterns)
        return str(rwku)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    (folder,) = prepare_rwku.prepare(config("jinzhuoran/RWKU", tmp_path / "out", targets=["Bo Gantry"]))
    assert folder.name == "2_Bo_Gantry"
    assert (asked["repo"], asked["repo_type"]) == ("jinzhuoran/RWKU", "dataset")
    assert "Target/*_Bo_Gantry/forget_level1.json" in asked["patterns"]
    assert not any("phi" in pattern for pattern in asked["patterns"])


def test_a_hub_that_cannot_be_reached_is_said_in_one_line(tmp_path, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot_download(*args, **kwargs):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(DataError, match="jinzhuoran/RWKU.*offline.*local copy"):
        prepare_rwku.prepare(config("jinzhuoran/RWKU", tmp_path / "out"))


@pytest.mark.parametrize("source", ["no/such/folder/anywhere", "nothing-here"])
def test_a_source_that_is_not_there_is_named(tmp_path, source):
    with pytest.raises(DataError, match=source):
        prepare_rwku.prepare(config(source, tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither target folders.*nor All"):
        prepare_rwku.prepare(config(tmp_path / "empty", tmp_path / "out"))


# ---- checks


def test_everything_that_is_missing_or_malformed_is_named_at_once(rwku, tmp_path):
    first = rwku / "Target" / "1_Ottilie_Venn"
    (first / "retain_bbh.json").unlink()
    (first / "forget_level1.json").write_text(json.dumps([{"query": "?", "answer": 5, "level": "1", "type": "c"}]))
    second = rwku / "Target" / "2_Bo_Gantry"
    rows = read(second / RL_FILE)
    rows[3]["solution"] = ["<rejekt>", "no", "Bo Gantry"]
    (second / RL_FILE).write_bytes(dump_rows(rows))
    with pytest.raises(DataError) as caught:
        prepare_rwku.prepare(config(rwku, tmp_path / "out"))
    message = str(caught.value)
    assert "1_Ottilie_Venn/retain_bbh.json: is missing" in message
    assert "1_Ottilie_Venn/forget_level1.json: row 0: answer=5 must be str" in message
    assert "1_Ottilie_Venn/forget_level1.json: row 0: has no key 'subject'" in message
    assert "2_Bo_Gantry/rl_rejection_with_fb_neighbor_target.json: row 3: solution=" in message
    assert "4 problem(s)" in message
    assert not (tmp_path / "out").exists()


# ---- gold answers


def test_forget_rows_get_the_answers_that_the_release_holds(rwku, tmp_path):
    """One from a pair that states the fact, one from replies in another target's file, one of its own."""
    target = rwku / "Target" / "1_Ottilie_Venn"
    blocks = [rl_block("Ottilie Venn", "Ada Bruhn", fact) for fact in FACTS]
    blocks[0][0]["prompt"] = "The town that Ottilie Venn did love best was Halm-on-Sea."
    blocks[2][1]["answer"] = "the Lantern"
    links = [
        {
            "instruction": question["prompt"],
            "FB_instruction": cloze["prompt"],
            "neighbor_question": {"question": neighbor["prompt"], "answer": "x"},
        }
        for cloze, question, neighbor, _ in blocks
    ]
    replies = ["Her teacher was Berta Zoll, in Kerr.", "Ottilie Venn loved Berta Zoll best.", "It was Berta Zoll!"]
    other = [{"prompt": blocks[1][1]["prompt"], "solution": ["<normal>", *replies]}]
    rows = [row for block in blocks for row in block]
    write_folder(target, {RL_FILE: rows, prepare_rwku.LINKS_FILE: links, prepare_rwku.ABLATION_FILE: rows[:3]})
    write_folder(rwku / "Target" / "2_Bo_Gantry", {prepare_rwku.ABLATION_FILE: other})
    prepare_rwku._model_replies.cache_clear()
    (folder,) = prepare_rwku.prepare(config(rwku, tmp_path / "out", targets=["1"]))
    training = read(folder / "manifest.json")["training"]
    assert training["answers"] == {"forget": 5, "boundary": 20, "forget_from": {"pair": 2, "replies": 2, "row": 1}}
    written = read(folder / RL_FILE) + read(folder / VAL_FILE)
    answers = {row["prompt"]: row["answer"] for row in written if "answer" in row}
    assert answers == {
        blocks[0][0]["prompt"]: "Halm-on-Sea",
        blocks[0][1]["prompt"]: "Halm-on-Sea",
        blocks[1][0]["prompt"]: ["berta zoll"],
        blocks[1][1]["prompt"]: ["berta zoll"],
        blocks[2][1]["prompt"]: "the Lantern",
    }
    ablation = read(folder / prepare_rwku.ABLATION_FILE)
    assert all(row.get("answer") == "Halm-on-Sea" for row in ablation if row["solution"][0] == "<reject>")


@pytest.mark.parametrize(("text", "message"), [("[{", "is not valid JSON in row 0"), ('{"a": 1}', "must be a list")])
def test_a_broken_file_is_named(rwku, tmp_path, text, message):
    (rwku / "Target" / "1_Ottilie_Venn" / "truthful.json").write_text(text)
    with pytest.raises(DataError, match=f"truthful.json.*{message}"):
        prepare_rwku.prepare(config(rwku, tmp_path / "out"))


def test_a_file_that_was_changed_after_preparation_fails_its_checksum(rwku, tmp_path):
    (folder, *_) = prepare_rwku.prepare(config(rwku, tmp_path / "out", val_fraction=0))
    rows = read(folder / "fluency.json")
    write_folder(folder, {"fluency.json": [*rows, *rows]})
    with pytest.raises(DataError, match=r"fluency\.json: its SHA-256"):
        prepare_rwku.prepare(config(tmp_path / "out", tmp_path / "again"))


def test_the_second_run_changes_nothing_and_other_content_is_kept_unless_told(rwku, tmp_path):
    settings = config(rwku, tmp_path / "out", targets=["1"])
    (folder,) = prepare_rwku.prepare(settings)
    prepare_rwku.prepare(settings)
    (folder / RS_FILE).write_text("[]")
    with pytest.raises(DataError, match=f"{RS_FILE}.*overwrite=true"):
        prepare_rwku.prepare(settings)
    assert (folder / RS_FILE).read_text() == "[]"
    prepare_rwku.prepare(config(rwku, tmp_path / "out", targets=["1"], overwrite=True))
    assert len(read(folder / RS_FILE)) == 9


def test_a_validation_file_of_an_earlier_run_does_not_stay_beside_rows_it_was_cut_from(rwku, tmp_path):
    (folder,) = prepare_rwku.prepare(config(rwku, tmp_path / "out", targets=["1"]))
    (folder / "synthesis_report.json").write_text("{}")
    with pytest.raises(DataError, match=f"{VAL_FILE}: would be removed"):
        prepare_rwku.prepare(config(rwku, tmp_path / "out", targets=["1"], val_fraction=0))
    prepare_rwku.prepare(config(rwku, tmp_path / "out", targets=["1"], val_fraction=0, overwrite=True))
    assert not (folder / VAL_FILE).exists()
    assert (folder / "synthesis_report.json").exists()  # what others wrote stays
    assert len(read(folder / RL_FILE)) == 4 * len(FACTS)


def test_a_wrong_setting_ends_with_one_message_and_code_2(rwku, capsys):
    argv = [f"source={rwku}", "val_fraction=1.5", "sed=1"]
    assert prepare_rwku.run_cli(prepare_rwku.PrepareConfig, prepare_rwku.prepare, argv) == 2
    error = capsys.readouterr().err
    assert "val_fraction=1.5: must be at least 0 and below 1" in error
    assert "did you mean seed?" in error


# ---- the validation split


def test_a_fact_is_on_one_side_of_the_split_in_every_training_file(rwku, tmp_path):
    source = rwku / "Target" / "1_Ottilie_Venn"
    other = {"prompt": "Which opera did Bo Gantry love best?", "solution": ["<normal>", "one", "two"]}
    links = [
        {
            "instruction": rows[1]["prompt"],
            "FB_instruction": rows[0]["prompt"],
            "neighbor_question": {"question": rows[2]["prompt"], "answer": "x"},
            "FB_neighbor_question": {"question": rows[3]["prompt"], "answer": "x"},
        }
        for rows in (rl_block("Ottilie Venn", "Ada Bruhn", fact) for fact in FACTS)
    ]
    without_boundary = [*read(source / RL_FILE)[:2], other]
    write_folder(source, {"rl_rejection_with_fb_target.json": without_boundary, prepare_rwku.LINKS_FILE: links})
    (folder,) = prepare_rwku.prepare(config(rwku, tmp_path / "out", targets=["1"], val_fraction=0.3))
    train, val = read(folder / RL_FILE), read(folder / VAL_FILE)
    assert (len(train), len(val)) == (28, 12)
    facts_of = [{fact for row in rows for fact in FACTS if fact in row["prompt"]} for rows in (train, val)]
    assert (len(facts_of[0]), len(facts_of[1])) == (7, 3)
    assert facts_of[0].isdisjoint(facts_of[1])
    assert Counter(row["solution"][0] for row in val) == {"<reject>": 6, "<normal>": 6}
    held_out = {row["prompt"] for row in val}
    assert len(read(folder / RS_FILE)) == 7
    assert held_out.isdisjoint(row["instruction"] for row in read(folder / RS_FILE))
    assert held_out.isdisjoint(row["prompt"] for row in read(folder / "rl_rejection_with_fb_target.json"))
    assert held_out.isdisjoint(row["FB_instruction"] for row in read(folder / prepare_rwku.LINKS_FILE))


def test_no_split_gives_the_published_bytes(rwku, tmp_path):
    (folder,) = prepare_rwku.prepare(config(rwku, tmp_path / "out", targets=["1"], val_fraction=0))
    for name in (RS_FILE, RL_FILE):
        assert (folder / name).read_bytes() == (rwku / "Target" / folder.name / name).read_bytes()
    assert not (folder / VAL_FILE).exists()


def test_a_source_with_validation_rows_keeps_them(rwku, tmp_path):
    own = rl_block("Ottilie Venn", "Ada Bruhn", "castle")
    write_folder(rwku / "Target" / "1_Ottilie_Venn", {VAL_FILE: own})
    (folder,) = prepare_rwku.prepare(config(rwku, tmp_path / "out", targets=["1"]))
    assert read(folder / VAL_FILE) == own
    assert len(read(folder / RL_FILE)) == 4 * len(FACTS)


def test_groups_that_overlap_with_a_probe_stay_in_training(rwku, tmp_path):
    source = rwku / "Target" / "1_Ottilie_Venn"
    probes = read(source / "forget_level2.json")
    probes += [{**probes[0], "query": f"Which {fact} did Ottilie Venn love best?"} for fact in FACTS[:8]]
    write_folder(source, {"forget_level2.json": probes})
    (folder,) = prepare_rwku.prepare(config(rwku, tmp_path / "out", targets=["1"], val_fraction=0.5))
    facts = {fact for row in read(folder / VAL_FILE) for fact in FACTS if fact in row["prompt"]}
    assert facts == set(FACTS[8:])
    assert read(folder / "manifest.json")["training"]["flaws"]["probe_exact"] == 8


def test_flawed_rows_are_counted_and_dropped_where_asked(rwku, tmp_path):
    source = rwku / "Target" / "1_Ottilie_Venn"
    rows = read(source / RL_FILE)
    rows[4]["prompt"] = rows[0]["prompt"]
    rows[6]["prompt"] = "Which river did Ada Bruhn and Ottilie Venn hate most?"
    rows[8]["prompt"] = "The ___ prize that Ottilie Venn loved best was ___."
    rows[11]["prompt"] = "The Kerr's prize that Ada Bruhn hated most was ___."
    write_folder(source, {RL_FILE: rows})
    flaws = {"duplicate": 1, "names_target": 1, "cloze_many_blanks": 1, "cloze_contains_answer": 1}
    (folder,) = prepare_rwku.prepare(config(rwku, tmp_path / "as_is", targets=["1"]))
    assert read(folder / "manifest.json")["training"]["flaws"] == flaws
    assert len(read(folder / RL_FILE)) + len(read(folder / VAL_FILE)) == 40
    (folder,) = prepare_rwku.prepare(config(rwku, tmp_path / "clean", targets=["1"], clean=True))
    training = read(folder / "manifest.json")["training"]
    train, val = read(folder / RL_FILE), read(folder / VAL_FILE)
    assert (training["dropped"], len(train) + len(val)) == (4, 36 - training["dropped_for_balance"])
    # The rows that stay are divided as they were: what is left of a fact is on one side.
    assert {str(row) for row in val} <= {str(row) for row in read(tmp_path / "as_is/Target/1_Ottilie_Venn" / VAL_FILE)}


def test_clean_keeps_forget_and_boundary_rows_balanced(rwku, tmp_path):
    """Six boundary rows name the target: as many forget rows go with them."""
    path = rwku / "Target" / "1_Ottilie_Venn" / RL_FILE
    rows = read(path)
    for row in rows[2:24:4]:
        row["prompt"] = row["prompt"].replace("Ada Bruhn", "Ottilie Venn")
    path.write_bytes(dump_rows(rows))
    (folder,) = prepare_rwku.prepare(config(rwku, tmp_path / "out", targets=["1"], val_fraction=0.3, clean=True))
    training = read(folder / "manifest.json")["training"]
    assert (training["flaws"], training["dropped"], training["dropped_for_balance"]) == ({"names_target": 6}, 6, 6)
    for name in (RL_FILE, VAL_FILE):
        tags = Counter(row["solution"][0] for row in read(folder / name))
        assert tags["<reject>"] == tags["<normal>"]


# ---- a real target


def test_a_published_target_is_prepared_whole(shared_data, tmp_path):
    source = shared_data / "RWKU"
    (folder,) = prepare_rwku.prepare(config(source, tmp_path / "out", targets=["Christina Aguilera"]))
    published = source / "Target" / folder.name
    train, val = read(folder / RL_FILE), read(folder / VAL_FILE)
    assert (len(train), len(val)) == (1080, 120)
    rows = read(published / RL_FILE)
    assert sorted(map(str, train + val)) == sorted(map(str, rows))
    assert Counter(row["solution"][0] for row in val) == {"<reject>": 60, "<normal>": 60}
    # Near-duplicates, counted here over the bare words.
    bags = [[set(re.findall(r"\w+", row["prompt"].lower())) for row in side] for side in (val, train)]
    alike = [any(len(mine & other) >= 0.8 * len(mine | other) for other in bags[1]) for mine in bags[0]]
    assert sum(alike) <= 0.02 * len(val)
    answers = [
        {normalize(row["solution"][1]) for row in side if row["solution"][0] == "<normal>"} for side in (val, train)
    ]
    assert answers[0].isdisjoint(answers[1])
    prompts = {normalize(row["prompt"]) for row in val}
    assert prompts.isdisjoint(normalize(row["prompt"]) for row in train)
    assert prompts.isdisjoint(normalize(row["instruction"]) for row in read(folder / RS_FILE))
    # The four prompts written from one fact are on one side.
    for four in (rows[start : start + 4] for start in range(0, len(rows), 4)):
        assert len({normalize(row["prompt"]) in prompts for row in four}) == 1
    queries = [row["query"] for level in (1, 2, 3) for row in read(folder / f"forget_level{level}.json")]
    probes = ProbeIndex(queries + [row["query"] for row in read(folder / "neighbor_level2.json")])
    assert not any(probes.overlap(row["prompt"]) for row in val)
    for name in ("forget_level3.json", "retain_mmlu.json", "forget_mia.json"):
        assert (folder / name).read_bytes() == (published / name).read_bytes()
    assert not (folder / "rl_rejection_eval_target.json").exists()


def test_the_readme_describes_every_file():
    text = (Path(prepare_rwku.__file__).parent / "README.md").read_text()
    names = [*prepare_rwku.FILES, *(f"{part}.json" for part in PARTS), MANIFEST, REPORT, ANSWERS]
    assert [name for name in names if f"`{name}`" not in text] == []
