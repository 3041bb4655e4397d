"""MUSE's numbers against rouge-score, counted pairs and hand-computed cases; its prompts against their definition."""

import json
import random

import numpy as np
import pytest
import torch
from rouge_score import rouge_scorer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.scripted_generator import OneByOne, rows_of
from verl.eval import muse
from verl.eval.config import EvalConfig
from verl.eval.likelihood import LikelihoodModel
from verl.eval.muse.memorization import first_answer, knowmem_part, verbmem_part
from verl.eval.muse.metrics import auc, forget_holdout_auc, min_k_loss, priv_leak, rouge_l
from verl.eval.muse.privacy import privleak_part
from verl.eval.results import Part, summarise
from verl.settings.reader import load
from verl.utils.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("one_thread")

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SCORER = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)


def character_tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    """One token per character, so that token counts can be read off the text; BOS is ^."""
    letters = [chr(code) for code in range(32, 127)] + ["\n"]
    backend = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="^", eos_token="~", unk_token="?")
    tokenizer.chat_template = CHAT if chat else None
    return tokenizer


class ScriptedGenerator(OneByOne):
    """Keeps the prompts it gets, as text, and answers from a list."""

    def __init__(self, tokenizer, answers):
        self.tokenizer, self.answers, self.prompts, self.lengths = tokenizer, answers, [], []

    def generate(self, prompt_ids, *, max_new_tokens, desc):
        self.prompts += [self.tokenizer.decode(ids) for ids in prompt_ids]
        self.lengths.append(max_new_tokens)
        return self.answers[: len(prompt_ids)]


def auc_over_pairs(positive, negative) -> float:
    """The share of pairs in which the positive scores higher; a tie counts half."""
    return float(np.mean([(a > b) + (a == b) / 2 for a in positive for b in negative]))


def config(*words: str) -> EvalConfig:
    return load(EvalConfig, ["model=m", "suite=muse", "data=d", "out=o", *words])


def write(folder, name: str, rows) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(rows), encoding="utf-8")


def measured(part: Part, data, engine) -> tuple[list[dict], dict[str, float]]:
    found = part.run(data, engine) if part.engine == "likelihood" else rows_of(part, data, engine)
    rows = json.loads(json.dumps(found))  # as read back from disk
    return rows, {name: entry["value"] for name, entry in summarise(part.score(rows), resamples=2).items()}


WORDS = ["the", "Running", "runs", "it's", "3.5", "$$", "naïve", "x_y", "don’t", "\n", "日本", "end.", "İs", "a"]


def test_rouge_l_equals_rouge_score_without_a_stemmer():
    draw = random.Random(0)
    for _ in range(300):
        texts = [" ".join(draw.choices(WORDS, k=draw.randrange(12))) for _ in range(2)]
        expected, found = SCORER.score(texts[1], texts[0])["rougeL"], rouge_l(*texts)
        assert (found.recall, found.precision, found.f1) == pytest.approx(
            (expected.recall, expected.precision, expected.fmeasure), abs=1e-12
        )
    assert rouge_l("he runs", "he run").recall == 0.5  # a stemmer would make it 1


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [([3, 4], [1, 2], 1.0), ([1, 2], [3, 4], 0.0), ([1, 3], [2, 2], 0.5), ([2], [2], 0.5), ([1, 2, 3], [2], 0.5)],
)
def test_auc_by_hand(positive, negative, expected):
    assert auc(positive, negative) == expected


def test_auc_equals_a_direct_one_with_ties():
    draw = np.random.default_rng(0)
    for _ in range(100):
        positive, negative = (draw.integers(0, 6, size=draw.integers(1, 20)) / 3 for _ in range(2))
        assert auc(positive, negative) == pytest.approx(auc_over_pairs(positive, negative), abs=1e-12)


@pytest.mark.parametrize(("k", "expected"), [(0.4, 4.5), (0.59, 4.5), (0.6, 4.0), (1.0, 3.0), (0.01, 5.0)])
def test_min_k_takes_the_least_likely_share_rounded_down_and_at_least_one(k, expected):
    assert min_k_loss(np.array([-1.0, -5.0, -2.0, -4.0, -3.0]), k) == pytest.approx(expected)


def test_priv_leak_has_the_sign_of_the_published_table():
    """Target on MUSE-News prints -99.8: a model that remembers every forget text has an AUC near 0."""
    remembered = forget_holdout_auc([0.1, 0.2], [2.0, 3.0])
    pushed_away = forget_holdout_auc([9.0, 9.5], [2.0, 3.0])
    assert (remembered, pushed_away) == (0.0, 1.0)
    assert priv_leak(remembered, 0.4772) == -100
    assert priv_leak(pushed_away, 0.4772) == pytest.approx(109.56, abs=0.01)  # WHP prints 109.6
    assert priv_leak(0.6, 0.5) == pytest.approx(20)
    with pytest.raises(ValueError, match="AUC"):
        priv_leak(0.5, 0.0)


QA = [{"question": "Who ran?", "answer": "Ann ran home"}, {"question": "Where?", "answer": "Oslo"}]
SHOTS = [{"question": "Q1?", "answer": "A1"}, {"question": "Q2?", "answer": "A2"}]


def knowmem_folder(folder, answers=("Ann ran home", "Oslo")):
    for split in ("forget", "retain"):
        rows = [{**row, "answer": answer} for row, answer in zip(QA, answers, strict=True)]
        write(folder, f"knowmem/{split}_qa.json", rows)
        write(folder, f"knowmem/{split}_qa_icl.json", SHOTS)
    return folder


@pytest.mark.parametrize("split", ["forget", "retain"])
def test_knowmem_asks_a_base_model_behind_bos_with_the_same_shots_for_every_question(tmp_path, split):
    generator = ScriptedGenerator(character_tokenizer(), ["Ann went\nhome\nQuestion: x", "\n\nOslo"])
    rows, metrics = measured(knowmem_part(split, config().muse), knowmem_folder(tmp_path), generator)
    prefix = "^Question: Q1?\nAnswer: A1\n\nQuestion: Q2?\nAnswer: A2\n\n"
    assert generator.prompts == [f"{prefix}Question: {row['question']}\nAnswer: " for row in QA]
    assert generator.lengths == [32]
    pairs = zip(QA, ["Ann went\nhome", ""], strict=True)
    expected = [SCORER.score(gold["answer"], text)["rougeL"] for gold, text in pairs]
    assert metrics["recall"] == pytest.approx(100 * np.mean([score.recall for score in expected]), abs=1e-6)
    assert metrics["f1"] == pytest.approx(100 * np.mean([score.fmeasure for score in expected]), abs=1e-6)
    assert [row["scored"] for row in rows] == ["Ann went\nhome", ""]


def test_a_knowmem_prompt_does_not_depend_on_the_label(tmp_path):
    prompts = []
    for name, answers in (("a", ("Ann ran home", "Oslo")), ("b", ("No", "Yes"))):
        generator = ScriptedGenerator(character_tokenizer(), ["", ""])
        rows_of(knowmem_part("forget", config().muse), knowmem_folder(tmp_path / name, answers), generator)
        prompts.append(generator.prompts)
    assert prompts[0] == prompts[1]


@pytest.mark.parametrize("style", [None, "chat", "raw"])
def test_knowmem_asks_a_chat_model_in_its_format_unless_told_otherwise(tmp_path, style):
    generator = ScriptedGenerator(character_tokenizer(chat=True), ["", ""])
    settings = config() if style is None else config(f"muse.prompt_style={style}")
    rows_of(knowmem_part("forget", settings.muse), knowmem_folder(tmp_path), generator)
    turns = "<user>Q1?<assistant>A1<user>Q2?<assistant>A2<user>Who ran?<assistant>"
    assert (generator.prompts[0] == turns) == (style != "raw")
    assert generator.prompts[0].startswith("^Question: Q1?") == (style == "raw")


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Oslo\nParis", "Oslo\nParis"),
        ("\nOslo", "\nOslo"),
        ("\n\n Oslo \nx", ""),
        ("Oslo\n\nParis", "Oslo"),
        ("- Oslo\n- **Bergen**\nQuestion 2: Who?", "- Oslo\n- **Bergen**"),
        ("Oslo Question: Who?\n\nx", "Oslo "),
        ("", ""),
        (" \n ", " \n "),
    ],
)
def test_an_answer_is_cut_where_muse_cuts_it(response, answer):
    """At a blank line, then at a line that begins with Question, then at Question: anywhere; nothing is stripped."""
    assert first_answer(response) == answer


def test_verbmem_is_f1_against_as_many_tokens_as_the_model_may_write(tmp_path):
    rows = [{"prompt": "Once upon", "gt": "ab cd " * 40}, {"prompt": "Then", "gt": "it rained all day"}]
    write(tmp_path, "verbmem/forget.json", rows)
    answers = ["ab cd", "it snowed all day long"]
    generator = ScriptedGenerator(character_tokenizer(), answers)
    found, metrics = measured(verbmem_part(config().muse), tmp_path, generator)
    assert generator.prompts == ["^Once upon", "^Then"]
    assert generator.lengths == [128]
    references = [rows[0]["gt"][:128], rows[1]["gt"]]
    assert [row["reference"] for row in found] == references
    expected = [SCORER.score(ref, out)["rougeL"].fmeasure for ref, out in zip(references, answers, strict=True)]
    assert metrics["f1"] == pytest.approx(100 * np.mean(expected), abs=1e-6)
    assert verbmem_part(config("muse.prompt_style=chat").muse).decoding != verbmem_part(config().muse).decoding


@pytest.mark.parametrize(("style", "prompt"), [(None, "^Go"), ("chat", "<user>Go<assistant>")])
def test_verbmem_continues_raw_text_even_with_a_chat_model(tmp_path, style, prompt):
    write(tmp_path, "verbmem/forget.json", [{"prompt": "Go", "gt": "on"}])
    generator = ScriptedGenerator(character_tokenizer(chat=True), ["on"])
    settings = config() if style is None else config(f"muse.prompt_style={style}")
    rows_of(verbmem_part(settings.muse), tmp_path, generator)
    assert generator.prompts == [prompt]


TEXTS = {
    "forget": ["abc abc abc abc", "the cat sat on the mat", "zzz yyy xxx"],
    "retain": [{"text": "one two three four"}, {"text": "five six"}],
    "holdout": ["what is this thing", "never seen before", "q", "and another one, longer than the others"],
}


def tiny_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=99, max_position_embeddings=24, **sizes)).eval()


def direct_losses(model, tokenizer, texts: list[str], k: float) -> list[float]:
    """Min-K% text by text, unbatched, straight from the definition."""
    losses = []
    for text in texts:
        ids = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)][:24]
        with torch.no_grad():
            log_probs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        seen = sorted(log_probs[i, token].item() for i, token in enumerate(ids[1:]))
        losses.append(-float(np.mean(seen[: max(1, int(len(seen) * k))])))
    return losses


def privleak_folder(folder):
    for split, rows in TEXTS.items():
        write(folder, f"privleak/{split}.json", rows)
    return folder


def direct_auc(model, tokenizer, k: float) -> float:
    forget, holdout = (direct_losses(model, tokenizer, TEXTS[split], k) for split in ("forget", "holdout"))
    return auc_over_pairs(forget, holdout)


@pytest.mark.parametrize("k", [0.4, 0.2])
def test_privleak_equals_a_direct_computation(tmp_path, k):
    tokenizer, model = character_tokenizer(), tiny_model(1)
    part = privleak_part(config(f"muse.min_k={k}", "muse.auc_retrain=0.6"))
    scorer = LikelihoodModel(model, tokenizer, token_budget=64)
    rows, metrics = measured(part, privleak_folder(tmp_path), scorer)
    expected = direct_losses(model, tokenizer, TEXTS["forget"], k)
    assert [row["loss"] for row in rows if row["split"] == "forget"] == pytest.approx(expected, abs=1e-5)
    area = direct_auc(model, tokenizer, k)
    assert metrics["auc"] == pytest.approx(area, abs=1e-6)
    assert metrics["privleak"] == pytest.approx(100 * (area - 0.6) / 0.6, abs=1e-6)
    assert scorer.truncated == 1  # the longest holdout text, cut to the model's 24 positions


def test_privleak_measures_the_retrained_model_in_the_same_way(tmp_path):
    tokenizer, retrained = character_tokenizer(), tiny_model(2)
    retrained.save_pretrained(tmp_path / "retrained")
    tokenizer.save_pretrained(tmp_path / "retrained")
    part = privleak_part(config(f"muse.retrain_model={tmp_path / 'retrained'}", "dtype=float32"))
    _, metrics = measured(part, privleak_folder(tmp_path), LikelihoodModel(tiny_model(1), tokenizer))
    area = direct_auc(retrained, tokenizer, 0.4)
    assert metrics["auc_retrain"] == pytest.approx(area, abs=1e-6)
    assert metrics["privleak"] == pytest.approx(100 * (metrics["auc"] - area) / area, abs=1e-6)


def test_without_a_retrained_auc_privleak_is_absent_and_not_zero(tmp_path):
    part = privleak_part(config())
    _, metrics = measured(part, privleak_folder(tmp_path), LikelihoodModel(tiny_model(1), character_tokenizer()))
    assert set(metrics) == {"auc", "auc_retain"}


def test_another_retrained_reference_is_another_measurement():
    given = [privleak_part(config(f"muse.auc_retrain={value}")).decoding for value in (0.4, 0.5)]
    assert given[0] != given[1]


@pytest.mark.parametrize("rows", [[], {}, ["ok", 3], [{"txt": "x"}], ["ok", "  "]])
def test_malformed_privleak_texts_name_the_file(tmp_path, rows):
    write(privleak_folder(tmp_path), "privleak/holdout.json", rows)
    with pytest.raises(DataError, match=r"holdout\.json"):
        privleak_part(config()).run(tmp_path, LikelihoodModel(tiny_model(1), character_tokenizer()))


@pytest.mark.parametrize(
    ("file", "rows"),
    [
        ("verbmem/forget.json", [{"prompt": "Go"}]),
        ("knowmem/forget_qa_icl.json", [{"question": "Q1?"}]),
        ("knowmem/retain_qa.json", []),
        ("privleak/retain.json", [{"text": ""}]),
    ],
)
def test_malformed_files_are_found_before_an_engine_starts(tmp_path, file, rows):
    write(privleak_folder(knowmem_folder(tmp_path)), "verbmem/forget.json", [{"prompt": "Go", "gt": "on"}])
    parts = muse.parts(config())
    for part in parts:
        part.check(tmp_path)
    write(tmp_path, file, rows)
    with pytest.raises(DataError, match=file.rsplit("/", 1)[1]):
        for part in parts:
            part.check(tmp_path)


def test_wrong_settings_are_listed_together():
    with pytest.raises(ConfigError) as caught:
        config("muse.min_k=40", "muse.auc_retrain=47.7", "muse.retrain_model=nowhere")
    for key in ("muse.min_k=40", "muse.auc_retrain=47.7", "exclude each other", "muse.retrain_model=nowhere"):
        assert key in str(caught.value)


def test_the_suite_reads_the_whole_layout():
    parts = muse.parts(config())
    assert [part.name for part in parts] == ["verbmem", "knowmem_forget", "knowmem_retain", "privleak"]
    assert {name for part in parts for name in part.files} == {
        *(f"knowmem/{name}.json" for name in ("forget_qa", "forget_qa_icl", "retain_qa", "retain_qa_icl")),
        *(f"privleak/{name}.json" for name in ("forget", "retain", "holdout")),
        "verbmem/forget.json",
    }
