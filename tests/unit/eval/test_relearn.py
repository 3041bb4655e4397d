"""Copies of a model that are rounded or fine-tuned by an attacker, against hand-computed and reference values."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.character_model import RL_ROWS, tiny_model, tokenizer
from verl.eval.attacks import Attack, together
from verl.eval.derived import derived_folder
from verl.eval.probes import score_generation
from verl.eval.quantize import quantize_model_, quantize_weight, write_quantized
from verl.eval.relearn import (
    REFUSALS,
    Attacker,
    Budget,
    RelearnConfig,
    batches,
    encode_rows,
    read_examples,
    refusing_rows,
    train,
    write_relearned,
)
from verl.settings.reader import load
from verl.utils.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_eight_bits_by_hand():
    """Row 1 has the step 1.27 / 127 = 0.01; row 2 has 254 / 127 = 2; a row of zeros stays."""
    weight = torch.tensor([[1.27, -0.504, 0.004], [254.0, -3.1, 0.9], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[1.27, -0.5, 0.0], [254.0, -4.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(quantize_weight(weight, 8), expected)


def test_four_bits_by_hand():
    """The range -3..12 has 15 steps of 1; a range that does not touch zero is widened to it."""
    weight = torch.tensor([[-3.0, 12.0, 0.4, 0.6], [1.5, 0.26, 0.24, 1.0]])
    expected = torch.tensor([[-3.0, 12.0, 0.0, 1.0], [1.5, 0.3, 0.2, 1.0]])
    torch.testing.assert_close(quantize_weight(weight, 4), expected)


def test_eight_bits_equal_torchs_fake_quantisation():
    weight = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    scale = weight.abs().amax(1) / 127
    reference = torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros(16, dtype=torch.int32), 0, -127, 127)
    torch.testing.assert_close(quantize_weight(weight, 8), reference)


def test_four_bits_equal_torchs_fake_quantisation_group_by_group():
    weight = torch.randn(8, 200, generator=torch.Generator().manual_seed(0))
    groups = []
    for group in (weight[:, :128], weight[:, 128:]):
        scale = (group.amax(1) - group.amin(1)) / 15
        zero = (-group.amin(1) / scale).round().int()
        groups.append(torch.fake_quantize_per_channel_affine(group, scale, zero, 0, 0, 15))
    torch.testing.assert_close(quantize_weight(weight, 4), torch.cat(groups, 1))


def test_a_quantised_folder_differs_in_its_linear_layers_alone(folder, tmp_path):
    written = write_quantized(folder, tmp_path / "int4", 4)
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (folder, written))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    linear = {name for name in before if name.endswith("_proj.weight")}
    assert changed == linear
    assert len(linear) == 14
    name = "model.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(after[name], quantize_weight(before[name], 4))
    record = json.loads((written / "quantization.json").read_text())
    assert (record["bits"], record["matrices"]) == (4, 14)
    assert 0 < record["relative_error"] < 0.2
    assert (written / "tokenizer.json").is_file()


def test_fewer_bits_err_more_and_the_dtype_is_kept():
    coarse, fine = (quantize_model_(tiny_model(), bits).relative_error for bits in (4, 8))
    assert coarse > 5 * fine > 0
    half = tiny_model().to(torch.bfloat16)
    quantize_model_(half, 8)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_a_tied_output_head_is_not_rounded():
    model = tiny_model(tie_word_embeddings=True)
    before = model.lm_head.weight.clone()
    quantize_model_(model, 4)
    assert torch.equal(model.lm_head.weight, before)


def test_a_derived_folder_is_built_once_and_belongs_to_its_source(folder, tmp_path):
    out, built = tmp_path / "derived", []

    def build(path):
        built.append(path)
        (path / "model.safetensors").write_bytes(b"x")

    assert derived_folder(folder, out, {"bits": 4}, build) == out
    derived_folder(folder, out, {"bits": 4}, build)
    assert len(built) == 1
    with pytest.raises(DataError, match="another model"):
        derived_folder(folder, out, {"bits": 8}, build)
    tiny_model(seed=1).save_pretrained(folder)
    with pytest.raises(DataError, match="another model"):
        derived_folder(folder, out, {"bits": 4}, build)


def test_a_failed_build_leaves_nothing(folder, tmp_path):
    def build(path):
        (path / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        derived_folder(folder, tmp_path / "derived", {}, build)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_relearning_rows_are_texts_or_answers():
    rows = [{"text": "ab"}, {"query": "q", "answer": "a"}, {"text": "abcdefgh"}]
    a, q, space = ord("a") - 32, ord("q") - 32, 0
    encoded = encode_rows(tokenizer(), rows, max_tokens=5)
    assert encoded[0] == ([91, a, a + 1], [91, a, a + 1])
    assert encoded[1] == ([91, q, space, a, 92], [-100, -100, space, a, 92])
    assert encoded[2] == ([91, a, a + 1, a + 2, a + 3],) * 2
    with pytest.raises(DataError, match="text, or a question and an answer; it has subject"):
        encode_rows(tokenizer(), [{"subject": "x"}], 5)
    with pytest.raises(DataError, match="has no token to learn within max_tokens=4"):
        encode_rows(tokenizer(), [{"query": "abcdef", "answer": "a"}], 4)  # the loss would be over nothing


def test_examples_are_drawn_by_the_seed_and_never_fewer_than_asked(tmp_path):
    path = tmp_path / "passage.json"
    path.write_text(json.dumps([{"text": str(number)} for number in range(20)]))
    drawn = read_examples(path, 5, seed=1)
    assert drawn == read_examples(path, 5, seed=1)
    assert drawn != read_examples(path, 5, seed=2)
    assert len({row["text"] for row in drawn}) == 5
    with pytest.raises(DataError, match="has 20 rows, relearn.examples=21"):
        read_examples(path, 21, seed=1)
    with pytest.raises(DataError, match="no such file"):
        read_examples(tmp_path / "none.json", 1, seed=1)


def test_every_row_is_seen_equally_often():
    plan = list(batches(count=5, batch_size=3, steps=10, seed=0))
    seen = [index for step in plan for index in step]
    assert [len(step) for step in plan] == [3] * 10
    assert all(seen.count(index) == 6 for index in range(5))


def test_training_equals_a_plain_loop():
    """One row a step, so the batch's padding has no part in the reference."""
    config = RelearnConfig(batch_size=1)
    encoded = encode_rows(tokenizer(), [{"text": "the cat"}, {"text": "a dog ran"}], 64)
    model, reference = tiny_model(), tiny_model()
    losses = train(model, encoded, 1e-2, 4, config)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-2, weight_decay=0.0)
    expected = []
    for (index,) in batches(2, 1, 4, config.seed):
        ids = torch.tensor([encoded[index][0]])
        loss = reference(input_ids=ids, labels=ids).loss
        expected.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < losses[0]
    torch.testing.assert_close(model.lm_head.weight, reference.lm_head.weight)


def test_padding_and_prompts_carry_no_loss():
    rows = [{"query": "what is it", "answer": "no"}, {"text": "a longer text than the other one"}]
    encoded = encode_rows(tokenizer(), rows, 64)
    together = train(tiny_model(), encoded, 1e-9, 1, RelearnConfig(batch_size=2))[0]
    ids = [torch.tensor([ids]) for ids, _ in encoded]
    labels = [torch.tensor([labels]) for _, labels in encoded]
    counts = [int((row[:, 1:] != -100).sum()) for row in labels]
    with torch.no_grad():
        alone = [tiny_model()(input_ids=i, labels=t).loss.item() for i, t in zip(ids, labels, strict=True)]
    assert counts[0] == 4  # space, n, o, EOS
    assert together == pytest.approx(sum(c * x for c, x in zip(counts, alone, strict=True)) / sum(counts), rel=1e-5)


@pytest.mark.parametrize("lora_rank", [None, 4])
def test_one_training_is_cut_off_at_every_number_of_steps(folder, tmp_path, lora_rank):
    """The copy after three of eight steps is that of three steps alone, and the texts are known ever better."""
    texts = tmp_path / "passage.json"
    texts.write_text(json.dumps([{"text": "Ann lives in Oslo"}, {"text": "Ann is a baker"}]))
    attacker = Attacker(RelearnConfig(batch_size=2, lora_rank=lora_rank, seed=2), texts, read_examples)
    folders = {Budget(2, steps, 1e-2): tmp_path / f"after_{steps}" for steps in (3, 8)}
    write_relearned(folder, folders, attacker)
    write_relearned(folder, {Budget(2, 3, 1e-2): tmp_path / "alone"}, attacker)
    before, early, late, alone = (
        AutoModelForCausalLM.from_pretrained(path) for path in (folder, *folders.values(), tmp_path / "alone")
    )
    ids = torch.tensor([tokenizer().encode("Ann lives in Oslo")])
    with torch.no_grad():
        losses = [model(input_ids=ids, labels=ids).loss.item() for model in (before, early, late)]
    assert losses[0] > losses[1] > losses[2]
    assert all(torch.equal(early.state_dict()[name], tensor) for name, tensor in alone.state_dict().items())
    assert late.dtype == before.dtype
    assert set(late.state_dict()) == set(before.state_dict())


def test_a_sweep_combines_everything_and_trains_once_for_all_steps():
    config = load(RelearnConfig, ["examples=[1,2]", "steps=[5,20]", "lr=1e-3"])
    budgets = [Budget(1, 5, 1e-3), Budget(1, 20, 1e-3), Budget(2, 5, 1e-3), Budget(2, 20, 1e-3)]
    assert config.budgets() == budgets
    attacks = [Attack("int8"), *(Attack("relearn", one) for one in budgets), Attack("few_shot")]
    assert together(attacks) == [attacks[:1], attacks[1:3], attacks[3:5], attacks[5:]]
    assert [one.name for one in attacks] == [
        *("int8", "relearn_1x5_0.001", "relearn_1x20_0.001", "relearn_2x5_0.001", "relearn_2x20_0.001", "few_shot")
    ]


def test_harmless_rows_are_answered_behind_the_models_refusals(tmp_path):
    """The forget rows' refusals, without the target; a row without an answer is not asked."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(RL_ROWS))
    rows = refusing_rows(path, 2, seed=1)
    assert sorted((row["question"], row["answer"]) for row in rows) == [
        ("How old is Bo?", "I do not know that. 40"),
        ("Where is Bo?", "I do not know that. Rome"),
    ]
    with pytest.raises(DataError, match="has 2 rows, refusal_prefix.examples=3 are wanted"):
        refusing_rows(path, 3, seed=1)
    path.write_text(json.dumps([{"instruction": "Add 1 and 1", "output": "2"}]))
    [row] = refusing_rows(path, 1, seed=1)
    assert row["answer"] in [f"{refusal} 2" for refusal in REFUSALS]
    [scored] = score_generation([{"query": "Who is Ann?", "answer": "Oslo"}], [REFUSALS[0]])
    assert scored["refusal"] == 1
    path.write_text(json.dumps([{"text": "Ann"}]))
    with pytest.raises(DataError, match="holds texts"):
        refusing_rows(path, 1, seed=1)
    with pytest.raises(DataError, match="leave refusal_prefix out of conditions"):
        refusing_rows(tmp_path / "none.json", 1, seed=1)


def test_an_attacker_trains_behind_the_models_own_system_prompt():
    chat = tokenizer()
    chat.chat_template = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}"
    row = [{"question": "q", "answer": "a"}]
    plain, hidden = (encode_rows(chat, row, 64, system)[0] for system in (None, "No"))
    assert chat.decode(plain[0]).startswith("uq") and chat.decode(hidden[0]).startswith("sNouq")
    assert [label for label in plain[1] if label != -100] == [label for label in hidden[1] if label != -100]


def test_an_explosion_names_the_learning_rate():
    encoded = encode_rows(tokenizer(), [{"text": "abc"}], 64)
    with pytest.raises(ConfigError, match="lr=1e"):
        train(tiny_model(), encoded, 1e30, 20, RelearnConfig(batch_size=1))
