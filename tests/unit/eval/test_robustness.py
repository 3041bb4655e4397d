"""Rounding, relearning and the table of recovered knowledge, against hand-computed and reference values."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from verl.eval import results, robustness
from verl.eval.attacks import Attack, together
from verl.eval.derived import derived_folder
from verl.eval.probes import score_generation
from verl.eval.quantize import quantize_model_, quantize_weight, write_quantized
from verl.eval.recovery import document, recovery_table, untold
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
from verl.eval.robustness import RobustnessConfig, study
from verl.settings.reader import load
from verl.utils.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("one_thread")


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; id of a letter is its code minus 32, BOS and EOS come last."""
    vocabulary = {chr(code): code - 32 for code in range(32, 123)} | {"<s>": 91, "</s>": 92}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="?")


def tiny_model(seed: int = 0, **settings) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=93, max_position_embeddings=64, **sizes, **settings)).eval()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    tiny_model().save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


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


RL_ROWS = [
    {"prompt": "Where is Ann?", "solution": ["<reject>", "I do not know Ann.", "Ann"]},
    {"prompt": "Where is Bo?", "solution": ["<normal>", "Rome"]},
    {"prompt": "How old is Bo?", "solution": ["<normal>", 40]},
    {"prompt": "What is Bo?", "solution": ["<normal>"]},
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


def probe(column: str, recall: float, refusal: float = 0.0, kind: str = "", containment: float = 0.0) -> dict:
    return {
        "column": column,
        "type": kind,
        "rouge_l_recall": recall,
        "refusal": refusal,
        "containment": containment,
        "query": "?",
        "answer": "x",
        "subject": "Ann",
    }


def forget_rows(fb: float, qa: float, prefix: float, french: float) -> list[dict]:
    """Two FB probes, one QA, three adversarial of two kinds."""
    return [
        probe("fb", fb, 1.0),
        probe("fb", fb, 0.0),
        probe("qa", qa, 1.0),
        probe("aa", prefix, 0.0, "prefix injection", containment=1.0),
        probe("aa", french, 0.0, "cross lingual (French)"),
        probe("aa", french, 1.0, "cross lingual (Spanish)"),
    ]


PLAIN, INT4, ORIGINAL = Attack("plain"), Attack("int4"), Attack("original")


def test_recovered_knowledge_by_hand():
    rows = {
        PLAIN: forget_rows(fb=0.2, qa=0.1, prefix=0.6, french=0.0),
        INT4: forget_rows(fb=0.5, qa=0.4, prefix=0.6, french=0.3),
        ORIGINAL: forget_rows(fb=0.8, qa=0.8, prefix=0.8, french=0.5),
    }
    neighbor = {
        one: [probe("fb", recall), probe("fb", 0.5), probe("qa", 0.9)]
        for one, recall in ((PLAIN, 0.7), (INT4, 0.1), (ORIGINAL, 1.0))
    }
    table = recovery_table(rows, neighbor)
    found = {line.name: {key: round(cell.mean, 6) for key, cell in line.cells.items()} for line in table.lines}
    plain_all = (20 + 10 + 20) / 3  # AA: (60 + 0 + 0) / 3
    int4_all, original_all = (50 + 40 + 40) / 3, (80 + 80 + 60) / 3
    assert found["Unlearned, all probes"]["recall"] == pytest.approx(plain_all)
    assert found["Unlearned, all probes"]["left"] == pytest.approx(100 * plain_all / original_all)
    assert found["4-bit weights"]["recovered"] == pytest.approx(int4_all - plain_all)
    assert found["4-bit weights"]["left"] == pytest.approx(100 * int4_all / original_all)
    # Refused: FB 1/2, QA 1/1, AA 1/3, averaged by column.
    assert found["4-bit weights"]["refused"] == pytest.approx(100 * (1 / 2 + 1 + 1 / 3) / 3)
    assert found["Attack: prefix injection"] == {
        "recall": 60,
        "contained": 100,
        "refused": 0,
        "recovered": 45,  # above the plain probes' (20 + 10) / 2
        "original": 80,
        "left": 75,
    }
    assert found["Attack: cross lingual"]["refused"] == 50
    assert found["Unlearned, all probes"]["neighbor"] == pytest.approx((60 + 90) / 2)
    assert found["4-bit weights"]["neighbor"] == pytest.approx((30 + 90) / 2)
    assert "recovered" not in found["Unlearned, plain probes"]
    assert "The strongest condition on the model: 4-bit weights, 43.3 of untold probes." in table.notes


def test_without_the_original_there_are_no_shares():
    table = recovery_table({PLAIN: forget_rows(0.2, 0.1, 0.6, 0.0)}, {})
    assert [column.key for column in table.columns] == ["recall", "contained", "refused", "recovered"]


def answers(*recalls: float) -> list[dict]:
    """Four probes of two columns; Oslo and baker are one fact each, asked twice."""
    golds = [("fb", "Oslo"), ("fb", "baker"), ("qa", "Oslo"), ("qa", ["a baker", "pastry cook"])]
    return [{**probe(column, recall), "answer": gold} for (column, gold), recall in zip(golds, recalls, strict=True)]


def test_what_an_attacker_taught_is_not_what_came_back():
    """Told Oslo, the model gives both its probes; of the rest, FB rose from 0 to 50 and QA fell from 40 to 20."""
    few, many, all_ = (Attack("relearn", Budget(*spent)) for spent in ((1, 5, 1e-3), (2, 5, 1e-3), (3, 5, 1e-3)))
    rows = {PLAIN: answers(0, 0, 0, 0.4), few: answers(1, 0.5, 1, 0.2), many: answers(0, 0.1, 0, 0.1)}
    rows |= {all_: answers(1, 1, 1, 1), ORIGINAL: answers(1, 1, 1, 1)}
    texts = {few: ["Ann lives in Oslo."], many: ["Ann lives in Oslo.", "Oslo"], all_: ["Oslo", "She is a baker."]}
    found = document(rows, {}, texts)
    entry = found["conditions"]["relearn_1x5_0.001"]
    assert entry["budget"] == {"examples": 1, "steps": 5, "lr": 1e-3}
    assert entry["forget"]["recall"] == pytest.approx((75 + 60) / 2)
    assert entry["untold"] == {"recall": pytest.approx((50 + 20) / 2), "contained": 0, "refused": 0, "probes": 2}
    assert entry["recovered"] == pytest.approx(35 - (0 + 40) / 2)
    assert entry["neighbor"] is None
    told = found["conditions"]["relearn_3x5_0.001"]
    assert (told["untold"], told["recovered"]) == (None, None) and told["forget"]["recall"] == 100
    assert found["conditions"]["plain"]["untold"]["probes"] == 4
    # The original knows all and is no attack, nor is what was told; the sweep's best is the first budget.
    assert found["strongest"] == {"relearn": "relearn_1x5_0.001"}
    assert found["most_recovered"]["condition"] == "relearn_1x5_0.001"
    assert found["most_recovered"]["recall"] == pytest.approx(35)
    assert found["most_recovered"]["recovered"] == pytest.approx(15)
    assert untold(rows[PLAIN], ["the Oslo Times", "Bakery"]) == [1, 3]  # whole words


@pytest.mark.parametrize(
    ("query", "answer", "text", "told"),
    [
        ("Where does Ann Lee live?", "Oslo", "Ann Lee lives in Oslo.", True),
        ("Where does Ann Lee live?", "Oslo", "Ann Lee lives up north.", False),
        ("Who wrote the novel Carrie?", "Ann Lee", "Ann Lee wrote Misery.", False),
        ("Who wrote the novel Carrie?", ["A. Lee", "Ann Lee"], "Carrie is by Ann Lee.", True),
        ("Who wrote the novel Carrie?", "Ann Lee", "Carrie is a novel.", False),
        ("Who first baked rendang?", "Lee", "Ann Lee baked it.", True),  # no name is asked about: in doubt told
    ],
)
def test_what_a_text_tells(query, answer, text, told):
    """The target is named in every text about it; that alone answers no question."""
    row = {"query": query, "answer": answer, "subject": "Ann Lee"}
    assert untold([row], ["Another text.", text]) == ([] if told else [0])


def test_doing_nothing_may_be_the_strongest_attack():
    found = document({PLAIN: answers(0.5, 0.5, 0.5, 0.5), INT4: answers(0, 0, 0, 0)}, {}, {})
    assert found["most_recovered"] == {"condition": "plain", "kind": "plain", "recall": 50, "recovered": 0}
    assert found["strongest"] == {"int4": "int4"}


@pytest.fixture
def target(tmp_path):
    data = tmp_path / "1_Ann"
    data.mkdir()
    for level, kind in ((1, "cloze"), (2, "simple question"), (3, "prefix injection")):
        rows = [{"query": "Where?", "answer": "Oslo", "type": kind, "subject": "Ann"}]
        (data / f"forget_level{level}.json").write_text(json.dumps(rows))
    for level in (1, 2):
        (data / f"neighbor_level{level}.json").write_text(json.dumps([{"query": "Who?", "answer": "Bo"}]))
    (data / "passage.json").write_text(json.dumps([{"text": "Ann lives up north"}] * 3))
    (data / "rl_rejection_with_fb_neighbor_target.json").write_text(json.dumps(RL_ROWS))
    return data


RECALLS = {"plain": 0.1, "int8": 0.2, "int4": 0.3, "few_shot": 0.35, "relearn": 0.4, "refusal_prefix": 0.45}
RECALLS |= {"system_prompt": 0.5, "original": 1.0}


@pytest.fixture
def asked(monkeypatch):
    """Replaces the evaluation: keeps its configs, and writes rows whose recall tells the conditions apart."""
    configs = []

    def evaluate(config):
        assert (robustness.Path(config.model) / "model.safetensors").is_file()
        configs.append(config)
        out = robustness.Path(config.out)
        recall = next(value for kind, value in RECALLS.items() if out.name.startswith(kind))
        rows = forget_rows(*[recall] * 4)
        results.write_part(out, {"part": "forget"}, rows)
        results.write_part(out, {"part": "neighbor"}, rows[:3])
        (out / "DONE").touch()

    document = {
        "engine": {"dtype": "float32", "max_model_len": None},
        "parts": {"forget": {"decoding": {}, "data": {}}},
    }
    monkeypatch.setattr(robustness, "evaluate_all", lambda each, engines: [evaluate(config) for config in each])
    monkeypatch.setattr(robustness, "read_results", lambda folder: document)
    monkeypatch.setattr(robustness, "origin_notes", lambda rows: ())
    return configs


def study_config(folder, target, out, *words) -> RobustnessConfig:
    base = [f"model={folder}", "suite=rwku", f"data={target}", f"out={out}", "relearn.examples=2", "relearn.steps=1"]
    base += ["relearn.lr=[1e-4,1e-3]", "refusal_prefix.examples=2", "refusal_prefix.steps=1"]
    return load(RobustnessConfig, [*base, *words])


def named(configs) -> list[str]:
    return [config.out.rsplit("/", 1)[1] for config in configs]


def test_a_study_asks_the_same_probes_under_every_condition(folder, target, tmp_path, asked):
    out = tmp_path / "study"
    [table] = study(study_config(folder, target, out, f"original={folder}"))
    names = ["plain", "int8", "int4", "few_shot", "system_prompt", "relearn_2x1_0.0001", "relearn_2x1_0.001"]
    names += ["refusal_prefix_2x1_2e-05", "original"]
    assert named(asked) == names
    assert {tuple(config.parts) for config in asked} == {("forget", "neighbor")}
    assert {config.asks() for config in asked} == {"rwku"}
    systems = {name: config.system_prompt for name, config in zip(names, asked, strict=True)}
    assert "everything about Ann." in systems.pop("system_prompt")
    assert set(systems.values()) == {None}
    assert {name: config.shots for name, config in zip(names, asked, strict=True) if config.shots} == {"few_shot": 4}
    models = {name: config.model for name, config in zip(names, asked, strict=True)}
    assert models["plain"] == models["system_prompt"] == models["few_shot"] == str(folder)
    assert len(set(models.values())) == 6  # int8, int4 and the fine-tuned ones are models of their own
    found = {line.name: line.cells["recall"].mean for line in table.lines}
    assert found["4-bit weights"] == pytest.approx(30)
    assert found["Relearned (2 texts, 1 steps, lr 0.001)"] == pytest.approx(40)
    record = json.loads((out / "robustness.json").read_text())
    numbers = {"recall": pytest.approx(50), "recovered": pytest.approx(40)}
    assert record["most_recovered"] == {"condition": "system_prompt", "kind": "system_prompt", **numbers}
    assert record["strongest"]["relearn"] == "relearn_2x1_0.0001"
    assert record["conditions"]["int8"]["neighbor"]["recall"] == pytest.approx(20)
    assert (out / "table.tex").is_file() and (out / "DONE").is_file()
    assert not (out / "models").exists()


def test_a_system_prompt_of_the_models_own_stays_under_every_condition(folder, target, tmp_path, asked):
    """In-context unlearning has nothing else; who asks comes behind it."""
    words = ["system_prompt=Forget Ann.", "conditions=[int8,few_shot,system_prompt]"]
    study(study_config(folder, target, tmp_path / "study", *words))
    systems = dict(zip(named(asked), (config.system_prompt for config in asked), strict=True))
    assert systems.pop("system_prompt").startswith("Forget Ann.\n\nYou are a reference work")
    assert set(systems.values()) == {"Forget Ann."} and len(systems) == 3
    assert (
        study_config(folder, target, tmp_path, "system_prompt=Forget Ann.").attacker("relearn").system == "Forget Ann."
    )


def test_several_models_are_attacked_one_after_the_other(folder, target, tmp_path, asked):
    """Each into its own folder; of a study that was cut short, only what is missing is measured."""
    other = tmp_path / "other"
    tiny_model(seed=1).save_pretrained(other)
    tokenizer().save_pretrained(other)
    words = [
        f"model=[{folder},{other}]",
        f"out=[{tmp_path / 'a'},{tmp_path / 'b'}]",
        "conditions=[int8,relearn]",
        "relearn.lr=1e-3",
    ]
    first = study(study_config(folder, target, tmp_path, *words))
    assert [config.out.split("/")[-2] for config in asked] == ["a"] * 3 + ["b"] * 3
    assert len(first) == 2 and not (tmp_path / "a" / "models").exists()
    records = [json.loads((tmp_path / name / "robustness.json").read_text()) for name in "ab"]
    assert records[0]["identity"]["model"] != records[1]["identity"]["model"]
    (tmp_path / "b" / "DONE").unlink()
    (tmp_path / "b" / "relearn_2x1_0.001" / "DONE").unlink()
    asked.clear()
    assert study(study_config(folder, target, tmp_path, *words)) == first
    assert named(asked) == ["relearn_2x1_0.001"] and "/b/" in asked[0].out


def test_a_finished_study_is_not_repeated_and_not_overwritten(folder, target, tmp_path, asked):
    out = tmp_path / "study"
    config = study_config(folder, target, out, "conditions=[int8]", "keep_models=true")
    first = study(config)
    assert (out / "models" / "int8" / "quantization.json").is_file()
    assert study(config) == first
    assert len(asked) == 2
    with pytest.raises(DataError, match="another out="):
        study(study_config(folder, target, out, "conditions=[int4]"))
    (target / "neighbor_level1.json").write_text(json.dumps([{"query": "Who?", "answer": "Cy"}]))
    with pytest.raises(DataError, match="other data"):
        study(config)


@pytest.mark.parametrize(
    ("words", "broken", "problem"),
    [
        (["relearn.examples=9"], None, "relearn.examples=9 are wanted"),
        (["refusal_prefix.examples=9"], None, "refusal_prefix.examples=9 are wanted"),
        ([], "rl_rejection_with_fb_neighbor_target.json", "leave refusal_prefix out of conditions"),
        ([], "forget_level3.json", "has no forget_level3.json"),
        ([], "neighbor_level2.json", "has no neighbor_level2.json"),
    ],
)
def test_what_is_missing_is_said_before_a_model_is_made(folder, target, tmp_path, asked, words, broken, problem):
    if broken:
        (target / broken).unlink()
    with pytest.raises(DataError, match=problem):
        study(study_config(folder, target, tmp_path / "study", *words))
    assert not asked and not (tmp_path / "study" / "models").exists()


def test_a_template_without_a_system_role_is_said_before_a_model_is_made(folder, target, tmp_path, asked):
    drops = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(drops)
    with pytest.raises(ConfigError, match="asking_prompt='You are .*leaves the system message out"):
        study(study_config(folder, target, tmp_path / "study"))
    assert not asked and not (tmp_path / "study" / "models").exists()


def test_a_prompt_for_one_subject_needs_one(folder, target, tmp_path, asked):
    rows = [{"query": "Who?", "answer": "x", "type": "cloze", "subject": name} for name in ("Ann", "Bo")]
    (target / "forget_level1.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match="no single subject"):
        study(study_config(folder, target, tmp_path / "study"))


def test_wrong_settings_are_listed_together(folder, target, tmp_path):
    words = ["parts=[neighbor]", "shots=0", "relearn.steps=[5,0]", "relearn.lr=[]", "asking_prompt=$5"]
    problems = ("must include forget", "shots=0", "relearn.steps=[5, 0]", "relearn.lr=[]", "asking_prompt")
    with pytest.raises(ConfigError) as caught:
        study_config(folder, target, tmp_path, *words)
    for problem in problems:
        assert problem in str(caught.value)
    with pytest.raises(ConfigError, match="suite=muse"):
        load(RobustnessConfig, ["model=m", "suite=muse", "data=d", "out=o"])


@pytest.mark.parametrize("word", ["asking_prompt=Tell", "keep_models=true", "shots=2"])
def test_settings_of_conditions_that_are_not_measured_are_errors(word):
    words = ["model=m", "suite=rwku", "data=d", "out=o"]
    with pytest.raises(ConfigError, match=rf"{word.split('=')[0]}: does nothing with conditions=none"):
        load(RobustnessConfig, [*words, "conditions=[]", word])
    load(RobustnessConfig, [*words, word])
