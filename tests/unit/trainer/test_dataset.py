"""Rows become prompts: what they are asked as, how long they may be, and in which order they come."""

import json
import re

import jinja2
import pytest

from tests.training_kit import arguments, write_files
from verl.config.run import DataConfig
from verl.eval.muse.memorization import few_shot_prompt, resolve_style
from verl.rows.sources import read_rows
from verl.rows.values import gold_answer, row_problems
from verl.trainer.data_loader import PromptLoader
from verl.trainer.dataset import RLHFDataset, with_extra_prompt
from verl.trainer.main import read_datasets
from verl.trainer.preflight import read_config
from verl.utils.chat import encode_prompt
from verl.utils.errors import ConfigError, DataError
from verl.utils.tokenizer import get_tokenizer

THINKING = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking is false %}<|end|>{% endif %}"


def config(model, folder, *changes):
    return read_config(arguments(model, folder, "run", *changes))


def test_rows_come_from_json_jsonl_parquet_folders_and_splits(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d"}]
    (tmp_path / "one.json").write_text(json.dumps({"train": rows[:1], "test": rows[1:]}))
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "three.parquet")
    assert read_rows(f"{tmp_path / 'one.json'}@test") == rows[1:]
    assert read_rows([str(tmp_path / "two.jsonl"), str(tmp_path / "three.parquet")]) == rows + rows
    (tmp_path / "one.json").unlink()
    assert read_rows(str(tmp_path)) == rows + rows
    for wrong in ("nowhere.json", str(tmp_path / "empty")):
        with pytest.raises(DataError, match="there is no such file"):
            read_rows(wrong)


def dataset(model, folder, **options):
    words = [word.split("=", 1)[1] for word in arguments(model, folder, "run") if word.startswith("data.train_files")]
    options = {"answer_key": "solution", "max_prompt_length": 64} | options
    return RLHFDataset(words[0], get_tokenizer(str(model)), **options)


def test_prompts_are_padded_left_and_raw_ids_are_the_same_tokens(tiny_model, tmp_path):
    item = dataset(tiny_model, tmp_path)[3]
    mask, ids = item["attention_mask"].bool(), item["input_ids"]
    assert ids.shape == (64,)
    assert ids[mask].tolist() == item["raw_prompt_ids"]
    assert not mask[: 64 - len(item["raw_prompt_ids"])].any()
    assert item["position_ids"][mask].tolist() == list(range(int(mask.sum())))
    assert (item["split"], item["ground_truth"][0]) == ("boundary", "<normal>")


def test_answers_may_be_several_and_numbers():
    good = [{"prompt": "When?", "solution": ["<normal>", 1947, "in the autumn"]}]
    bad = [{"prompt": "When?", "solution": ["<normal>", answer]} for answer in ("", None, ["1947"])]
    assert row_problems(good, "prompt", "solution", "rows") == []
    assert len(row_problems(bad, "prompt", "solution", "rows")) == 3


def test_arguments_of_the_chat_template_reach_every_prompt(tiny_model, tmp_path):
    changes = [f"data.override_chat_template={THINKING!r}", "data.chat_template_kwargs={enable_thinking: false}"]
    settings = config(tiny_model, tmp_path, *changes)
    tokenizer = get_tokenizer(str(tiny_model), THINKING)
    train, _, _ = read_datasets(settings, tokenizer)
    [end] = tokenizer.encode("<|end|>", add_special_tokens=False)
    plain = encode_prompt(tokenizer, train.prompts[0])
    assert train.token_ids[0] == [*plain, end]
    with pytest.raises(ConfigError, match="data.chat_template_kwargs=.*enable_thinking.*does not read it; remove it"):
        read_datasets(settings, get_tokenizer(str(tiny_model)))


@pytest.mark.parametrize("has_template", [True, False])
def test_rows_by_mode_are_asked_as_the_muse_evaluation_asks(tiny_model, tmp_path, has_template):
    shots = [{"question": "Who waits?", "answer": "The cat"}]
    rows = [
        {"prompt": "Who flew?", "solution": ["<normal>", "A bird"], "mode": "qa"},
        {"prompt": "It was a dark night", "solution": ["<normal>", "and cold"], "mode": "completion"},
    ]
    (tmp_path / "modes.json").write_text(json.dumps(rows))
    tokenizer = get_tokenizer(str(tiny_model))
    if not has_template:
        tokenizer.chat_template = None
    data = RLHFDataset(str(tmp_path / "modes.json"), tokenizer, answer_key="solution", mode="mode", shots=shots)
    asked = few_shot_prompt(tokenizer, shots, "Who flew?", resolve_style(tokenizer, None))
    assert data[0]["raw_prompt_ids"] == asked
    assert data[1]["raw_prompt_ids"] == encode_prompt(tokenizer, "It was a dark night")


def test_examples_that_are_none_are_named(tiny_model, tmp_path):
    words = arguments(tiny_model, tmp_path, "run", "data.mode=mode", "data.icl_type=forget")
    (tmp_path / "knowmem").mkdir()
    (tmp_path / "knowmem" / "forget_qa_icl.json").write_text(
        '[{"question": "Who?", "answer": "He"}, {"question": "?"}]'
    )
    with pytest.raises(ConfigError, match="row 1: must have the texts question and answer; it has question"):
        read_config(words)
    with pytest.raises(ConfigError, match="train_files"):
        read_config([*words, "data.train_files=[]"])


def test_the_examples_lie_beside_the_first_training_file(tmp_path):
    (tmp_path / "a,b").mkdir()
    (tmp_path / "a,b" / "rows.json").write_text("[]")
    expected = tmp_path / "a,b" / "knowmem" / "forget_qa_icl.json"
    for given in (f"{tmp_path}/a,b/rows.json@train,{tmp_path}/x.json", [f"{tmp_path}/a,b"]):
        assert DataConfig(train_files=given, icl_type="forget").icl_file == expected


def test_over_long_prompts_are_left_out_or_an_error_never_cut(tiny_model, tmp_path):
    lengths = [len(item["raw_prompt_ids"]) for item in map(dataset(tiny_model, tmp_path).__getitem__, range(24))]
    limit = sorted(lengths)[12]
    kept = dataset(tiny_model, tmp_path, max_prompt_length=limit)
    assert len(kept) == len(kept.used_rows) == sum(length <= limit for length in lengths) < 24
    assert [row["prompt"] for row in kept.used_rows] == [kept[i]["prompt"] for i in range(len(kept))]
    with pytest.raises(DataError, match=f"max_prompt_length={limit}"):
        dataset(tiny_model, tmp_path, max_prompt_length=limit, filter_overlong_prompts=False)


def test_many_rows_are_measured_by_several_processes(tiny_model, tmp_path, monkeypatch):
    alone = dataset(tiny_model, tmp_path).token_ids
    monkeypatch.setattr("verl.trainer.dataset.MANY_ROWS", 10)
    assert dataset(tiny_model, tmp_path, filter_overlong_prompts_workers=2).token_ids == alone


def test_the_format_prompt_goes_around_the_content_and_is_seen_by_the_reward(tiny_model, tmp_path):
    item = dataset(tiny_model, tmp_path, format_prompt="Please: {{ content }}", max_prompt_length=128)[0]
    assert item["prompt"].startswith("Please: Who wrote book 0?")


def test_prompts_come_in_a_new_order_every_epoch_and_go_on_from_a_checkpoint(tiny_model, tmp_path):
    rows = dataset(tiny_model, tmp_path)
    loader = PromptLoader(rows, shuffle=True, seed=5)
    seen = [list(loader.next(8).non_tensor_batch["uid"]) for _ in range(6)]
    first, second = ([uid.split("-")[-1] for batch in part for uid in batch] for part in (seen[:3], seen[3:]))
    assert sorted(first) == sorted(second) and first != second
    assert len({uid for batch in seen for uid in batch}) == 48
    resumed = PromptLoader(rows, shuffle=True, seed=5)
    before = PromptLoader(rows, shuffle=True, seed=5)
    for _ in range(4):
        before.next(8)
    resumed.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert [list(resumed.next(8).non_tensor_batch["uid"]) for _ in range(2)] == seen[4:]


def test_draws_made_ahead_change_neither_order_nor_state(tiny_model, tmp_path):
    """Draws of other sizes in between, a state taken over in the middle, and the end of an epoch."""
    rows = dataset(tiny_model, tmp_path)
    loader = PromptLoader(rows, shuffle=True, seed=5)
    order = [f"train-{epoch}-{rows[i]['row']}" for epoch in range(3) for i in loader.streams[0]._order(epoch)]
    drawn = [list(loader.next(count).non_tensor_batch["uid"]) for count in (8, 4, 8, 8, 3)]
    assert drawn == [order[0:8], order[8:12], order[12:20], order[24:32], order[32:35]]  # four are left out
    assert loader.state_dict() == {"epoch": 1, "position": 11, "prompts": 24, "seed": 5}
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "position": 8})
    assert list(loader.next(3).non_tensor_batch["uid"]) == order[8:11]
    made, ahead = loader._make, loader._coming[2].result()[1]
    loader._make = lambda *place: pytest.fail("the draw had been made")
    assert loader.next(3) is ahead and list(ahead.non_tensor_batch["uid"]) == order[11:14]
    loader._make = made


def test_every_draw_has_the_forget_share_and_a_resumed_run_goes_on_with_it(tiny_model, tmp_path):
    """Of 24 rows 12 are forget rows: draws of 8 with a share of 0.3 take round(2.4) = 2 of them and 6 others."""
    rows = dataset(tiny_model, tmp_path)
    forget = {f"{i}" for i, row in enumerate(rows.used_rows) if row["solution"][0] == "<reject>"}
    assert len(forget) == 12 and len(rows) == 24
    loader = PromptLoader(rows, shuffle=True, seed=5, forget_share=0.3)
    seen = [list(loader.next(8).non_tensor_batch["uid"]) for _ in range(8)]
    sides = [[uid.split("-")[-1] in forget for uid in batch] for batch in seen]
    assert all(side == [False, False, False, True] * 2 for side in sides)
    uids = [uid for batch in seen for uid in batch]
    assert len(set(uids)) == 64
    first = [uid for uid in uids if uid.startswith("train-0-")]
    assert {uid.split("-")[-1] for uid in first} == {f"{i}" for i in range(24)}  # 6 draws of 2, 2 of 6: whole epochs
    resumed = PromptLoader(rows, shuffle=True, seed=5, forget_share=0.3)
    before = PromptLoader(rows, shuffle=True, seed=5, forget_share=0.3)
    for _ in range(5):
        before.next(8)
    resumed.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert [list(resumed.next(8).non_tensor_batch["uid"]) for _ in range(3)] == seen[5:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.forget_share=0"], "data.forget_share=0.0: must lie between 0 and 1, or be null"),
        (["data.forget_share=0.01"], "of 8 prompts in a draw 0 are forget prompts and 8 are not"),
        (
            ["data.forget_share=0.9", "data.rollout_batch_size=16"],
            "14 are forget prompts and 2 are not; there are 12 and",
        ),
    ],
)
def test_a_forget_share_that_cannot_be_drawn_is_named(tiny_model, tmp_path, words, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        config(tiny_model, tmp_path, "data.rollout_batch_size=8", "worker.actor.global_batch_size=8", *words)


def test_gold_answers_are_boundary_rows_answers_closed_as_responses_are(tiny_model, tmp_path, caplog):
    tokenizer, words = get_tokenizer(str(tiny_model)), ["algorithm.retain_loss=gdr", "trainer.val_freq=-1"]
    train, _, val = read_datasets(config(tiny_model, tmp_path, *words), tokenizer)
    assert train.gold.keys() == set(range(1, 24, 2)) and not val.gold
    assert {tokenizer.decode(ids) for ids in train.gold.values()} == {"In the north<|end|>"}
    assert not read_datasets(config(tiny_model, tmp_path), tokenizer)[0].gold
    whole = train.gold[1]
    short, _, _ = read_datasets(config(tiny_model, tmp_path, *words, "data.max_response_length=2"), tokenizer)
    assert short.gold[1] == whole[:2] != whole
    assert "12 of 12 gold answers are cut at data.max_response_length=2 tokens." in caplog.messages


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"a": ["<normal>", "London", "the capital"]}, "London"),
        ({"a": ["<normal>", 1947.0]}, "1947"),
        ({"a": ["<reject>", "No.", "King"]}, None),
        ({"a": ["<reject>", "No.", "King"], "split": "boundary"}, None),
        ({"a": "London", "split": "boundary"}, "London"),
        ({"a": ["London", "the capital"], "split": "boundary"}, "London"),
        ({"a": 0, "split": "boundary"}, "0"),
        ({"a": " ", "split": "boundary"}, None),
        ({"a": None, "split": "boundary"}, None),
        ({"a": {"text": "London"}, "split": "boundary"}, None),
        ({"a": [], "split": "boundary"}, None),
        ({"a": "London", "split": "forget"}, None),
        ({"a": "London"}, None),
    ],
)
def test_the_gold_answer_of_a_row(row, gold):
    assert gold_answer(row, "a") == gold


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algorithm.retain_loss=klr", "algorithm.disable_kl=true"], "algorithm.retain_loss=klr: needs the reference"),
        (["algorithm.retain_coef=-1"], "algorithm.retain_coef=-1.0: must be 0 or greater"),
        (["algorithm.retain_loss=rlhf"], "algorithm.retain_loss='rlhf': must be one of none, gdr, klr, sft"),
        (
            ["algorithm.retain_loss=gdr", "data.train_files=FORGET"],
            "algorithm.retain_loss=gdr: acts on boundary rows with a gold answer, and of 12 training rows 0 are "
            'boundary rows, none with an answer; give rows whose solution is ["<normal>", answer], or a text',
        ),
    ],
)
def test_a_retain_loss_that_has_nothing_to_keep_is_named(tiny_model, tmp_path, words, message):
    write_files(tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_text())
    (tmp_path / "forget.json").write_text(json.dumps(rows[::2]))
    words = [word.replace("FORGET", str(tmp_path / "forget.json")) for word in words]
    with pytest.raises(ConfigError, match=re.escape(message)):
        config(tiny_model, tmp_path, *words)


def test_an_extra_prompt_is_taken_literally_and_goes_in_front(tiny_model, tmp_path):
    template = with_extra_prompt("Say {{ no }}.", "Q: {{ content }}")
    item = dataset(tiny_model, tmp_path, format_prompt=template, max_prompt_length=128)[0]
    assert item["prompt"].startswith("Say {{ no }}.\n\nQ: Who wrote book 0?")
    with pytest.raises(ConfigError, match="noise_rollout=2: needs data.extra_prompt"):
        config(tiny_model, tmp_path, "worker.rollout.noise_rollout=2")


@pytest.mark.parametrize("extra", ["{% endraw %}{{ 1 }} \\n \\", "a \"b\" 'c'\n{# d #}", "😀\u2028é\t{%"])
def test_an_extra_prompt_may_hold_any_text(tiny_model, tmp_path, extra):
    assert jinja2.Template(with_extra_prompt(extra, None)).render(content="Q") == f"{extra}\n\nQ"


def test_a_noisy_row_that_is_too_long_is_named_with_a_limit_that_is_enough(tiny_model, tmp_path):
    words = ["data.extra_prompt=Think of it.", "worker.rollout.noise_rollout=1", "trainer.val_freq=-1"]
    tokenizer, own = get_tokenizer(str(tiny_model)), [len(ids) for ids in dataset(tiny_model, tmp_path).token_ids]
    with pytest.raises(DataError, match=f"row 0: with data.extra_prompt in front.*{max(own)} .24 such rows.") as caught:
        read_datasets(config(tiny_model, tmp_path, *words, f"data.max_prompt_length={max(own)}"), tokenizer)
    [enough] = re.findall(r"set data.max_prompt_length=(\d+), shorten", str(caught.value))
    train, noisy, _ = read_datasets(config(tiny_model, tmp_path, *words, f"data.max_prompt_length={enough}"), tokenizer)
    assert len(train) == 24 and [len(noisy[row]["raw_prompt_ids"]) > own[row] for row in range(24)] == [True] * 24
    # A row that is left out needs no twin.
    rows = json.loads((tmp_path / "rows.json").read_text())
    rows[5]["prompt"] *= 30
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    train, noisy, _ = read_datasets(config(tiny_model, tmp_path, *words, f"data.max_prompt_length={enough}"), tokenizer)
    assert [item["row"] for item in train] == [row for row in range(24) if row != 5]
    assert noisy[23]["row"] == 23
