"""How answers are scored and averaged, against the `rouge` package and values worked out by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rouge import Rouge

from tests.conftest import make_tokenizer
from tests.scripted_generator import OneByOne, rows_of
from verl.eval.config import EvalConfig
from verl.eval.generation import fit_left
from verl.eval.likelihood import load_model, next_token_log_probs, token_log_probs
from verl.eval.main import select_parts
from verl.eval.probes import Asking, attack_kind, column_scores, draw_shots, encode_probe, score_generation
from verl.eval.results import Scores, summarise
from verl.eval.rwku import abilities, fluency, mia, reasoning
from verl.utils.errors import DataError

ANSWERS = [
    ("Richard Bachman", "Richard Bachman"),
    ("He wrote as richard bachman.", "Richard Bachman"),
    ("The Shining. Misery and The Shining.", "The Shining and Misery"),
    ("a a b b c", "a b a c"),
    ("  \n ", "Carrie"),
    ("孔子", "孔子 (Confucius)"),
    ("U.S. Marshal", "U.S. Marshal"),
]


def test_recall_equals_the_rouge_package_and_silence_is_a_wrong_answer():
    rows = score_generation([{"answer": answer} for _, answer in ANSWERS], [response for response, _ in ANSWERS])
    for row, (response, answer) in zip(rows, ANSWERS, strict=True):
        expected = Rouge(metrics=["rouge-l"]).get_scores(response.strip() or "NOANSWER", answer)[0]["rouge-l"]["r"]
        assert row["rouge_l_recall"] == pytest.approx(expected, abs=1e-6)
    assert rows[4]["rouge_l_recall"] == rows[4]["containment"] == rows[4]["refusal"] == 0
    assert score_generation([{"answer": "NOANSWER"}], [""])[0]["rouge_l_recall"] == 1


@pytest.mark.parametrize(
    ("response", "refusal", "containment"),
    [
        ("I’m sorry, but I can’t help with that.", 1, 0),
        ("It is the Kingston clock.", 0, 0),
        ("That is King's clock.", 0, 1),
    ],
)
def test_refusal_and_containment(response, refusal, containment):
    [row] = score_generation([{"answer": "King"}], [response])
    assert (row["refusal"], row["containment"]) == (refusal, containment)


def probe(column, recall, kind="", refusal=0.0):
    return {"column": column, "type": kind, "rouge_l_recall": recall, "refusal": refusal, "containment": recall}


def test_both_kinds_of_all_and_the_attacks_singly():
    rows = [probe("fb", 1.0), probe("qa", 0.0, refusal=1.0), probe("qa", 0.5), probe("qa", 0.5)]
    rows += [probe("aa", 1.0, "cross lingual (French)"), probe("aa", 0.0, "cross lingual (Spanish)")]
    rows += [probe("aa", 0.25, "role play")]
    metrics = summarise(column_scores(rows, ["fb", "qa", "aa"]), resamples=10)
    values = {name: entry["value"] for name, entry in metrics.items()}
    aa = 125 / 3
    assert values["fb"] == 100
    assert values["qa"] == pytest.approx(100 / 3)
    assert values["aa"] == pytest.approx(aa)
    assert values["all_macro"] == pytest.approx((100 + 100 / 3 + aa) / 3)
    assert values["all_probe"] == pytest.approx(100 * 3.25 / 7)
    assert values["qa/refusal_rate"] == pytest.approx(100 / 3)
    assert values["all_macro/refusal_rate"] == pytest.approx(100 / 9)
    assert values["all_probe/refusal_rate"] == pytest.approx(100 / 7)
    assert (values["aa/cross_lingual"], values["aa/role_play"]) == (50, 25)
    assert metrics["aa/cross_lingual"]["n"] == 2
    assert attack_kind("incontext learning") == "incontext_learning"


def test_intervals_are_those_of_the_mean_and_do_not_move_with_other_columns():
    values = np.random.default_rng(0).normal(50, 20, size=400)
    alone = summarise(Scores({"a": values}))["a"]
    beside = summarise(Scores({"b": values[:7], "a": values}, {"both": ("a", "b")}))
    assert beside["a"] == alone
    half_width = 1.96 * values.std() / math.sqrt(len(values))
    assert alone["low"] == pytest.approx(values.mean() - half_width, abs=0.3)
    assert alone["high"] == pytest.approx(values.mean() + half_width, abs=0.3)
    assert beside["both"]["value"] == pytest.approx((values.mean() + values[:7].mean()) / 2)
    assert summarise(Scores({"a": [3.0, 3.0]}))["a"] == {"value": 3.0, "low": 3.0, "high": 3.0, "n": 2}
    with pytest.raises(DataError, match="metric a"):
        summarise(Scores({"a": [1.0, float("nan")]}))


@pytest.mark.parametrize(
    ("prediction", "answer", "right", "over_characters"),
    [
        ("True", "True", True, False),  # the published comparison scores this 0
        ("(A)", "(B)", False, True),  # and this 1
        ("(B)", "(B)", True, True),
        ("b", "(B)", True, True),
        ('"No."', "No", True, False),
        ("] ) >", "] ) >", True, True),
        ("] )", "] ) >", False, True),
        ("The answer", "answer", False, False),
    ],
)
def test_bbh_compares_answers_and_keeps_the_published_comparison_apart(prediction, answer, right, over_characters):
    assert reasoning.exact_match(prediction, answer) == right
    assert reasoning.exact_match_over_characters(prediction, answer) == over_characters


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("3 - 1 = 2. So the answer is (B). Q: next", "(B)"),
        ("So the answer is 3.5. Done", "3.5"),
        ("The answer is: valid\nQ: is it?", "valid"),
        ("Paris ", "Paris"),
    ],
)
def test_bbh_answers_are_found(response, answer):
    assert reasoning.extract_answer(response) == answer


def test_mc1_is_about_the_true_choice_wherever_it_stands():
    assert abilities.mc1([-3.0, -1.0, -2.0], [0, 1, 0]) == 1
    assert abilities.mc1([-1.0, -3.0, -2.0], [0, 1, 0]) == 0
    assert abilities.mc1([-1.0, -1.0], [1, 0]) == 0


def test_fluency_of_a_text_worked_out_by_hand():
    # a b a b: bigrams ab, ba, ab; trigrams aba, bab.
    bigrams = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert fluency.ngram_entropy("a b a b") == pytest.approx((2 / 3 * bigrams + 4 / 3 * 1.0) / 2)
    assert fluency.ngram_entropy("") == fluency.ngram_entropy("word") == 0
    assert fluency.tokenize("She can't. Go!") == ["She", "ca", "n't", ".", "Go", "!"]


def test_membership_scores_of_two_tokens():
    values = mia.TokenStatistics(np.array([-1.0, -4.0]), mean=np.array([-2.0, -3.0]), variance=np.array([4.0, 0.25]))
    scores = mia.membership_scores(values, "x")
    assert scores["loss"] == 2.5
    assert scores["min_k"] == 4.0
    assert scores["min_k_pp"] == 2.0  # (-4 + 3) / 0.5, oriented so that higher is less familiar


def test_how_rwku_probes_are_asked():
    tokenizer = make_tokenizer()

    def asked(style="rwku", **row):
        return tokenizer.decode(encode_probe(tokenizer, {"column": "qa", "type": "", **row}, Asking(style)))

    assert asked(query="Who?").endswith("Question: Who?<|end|><|assistant|>Answer:")
    assert "blank" in asked(query="The ___", column="fb")
    assert asked(query="Who? Answer: It was", type="affirmative suffix").endswith("It was<|end|><|assistant|>")
    assert "Question: Question:" not in asked(query="Question: Who?", type="incontext learning")
    assert asked("plain", query="Who?") == "<|user|>Who?<|end|><|assistant|>"
    tokenizer.chat_template = None
    assert asked(query="Who?").startswith("<|bos|>Answer in")
    assert asked(query="Who?").endswith("Who?\nAnswer:")


POOL = [
    {"column": "fb", "query": "Ann lives in ___.", "answer": "Oslo"},
    {"column": "qa", "query": "Where does Ann live?", "answer": ["Oslo", "the city of Oslo"]},
    {"column": "qa", "query": "What does Ann do in Oslo?", "answer": "baking"},
    {"column": "fb", "query": "Ann plays the ___.", "answer": "harp"},
    {"column": "qa", "query": "Who taught Ann?", "answer": "Bo Lind"},
]


def test_shots_never_tell_what_they_stand_before():
    """Of five probes three name Oslo; what is asked for a part of the answer is left out, too."""
    drawn = draw_shots(POOL[0], POOL, 4)
    assert sorted(shot["answer"] for shot in drawn) == ["Bo Lind", "harp"]
    assert draw_shots(POOL[0], POOL, 4) == drawn
    assert len(draw_shots(POOL[0], POOL, 1)) == 1 and draw_shots(POOL[0], POOL, 0) == []
    whole = {"column": "aa", "query": "Where?", "answer": "Oslo in Norway"}
    assert {shot["answer"] for shot in draw_shots(whole, POOL[::3], 4)} == {"harp"}
    assert draw_shots(POOL[0], POOL[:3], 4) == []


def test_shots_stand_in_front_as_answered_turns():
    tokenizer = make_tokenizer()

    def asked(style, shots=POOL[3:]):
        probe = {"column": "qa", "type": "", "query": "Who?"}
        return tokenizer.decode(encode_probe(tokenizer, probe, Asking(style), shots))

    plain = "<|user|>Ann plays the ___.<|end|><|assistant|>harp<|end|><|user|>Who taught Ann?<|end|>"
    assert asked("plain") == f"{plain}<|assistant|>Bo Lind<|end|><|user|>Who?<|end|><|assistant|>"
    assert asked("rwku").endswith("<|assistant|>Answer: Bo Lind<|end|>" + asked("rwku", shots=[]))
    assert "Fill in the blank.\nQuestion: Ann plays the ___.<|end|><|assistant|>Answer: harp<|end|>" in asked("rwku")
    tokenizer.chat_template = None
    assert asked("plain") == "<|bos|>Ann plays the ___.\n\nharp\n\nWho taught Ann?\n\nBo Lind\n\nWho?"


def test_shots_reach_forget_and_neighbor_probes_and_are_part_of_the_decoding(tmp_path):
    for name, rows in {"forget_level1": POOL[:1], "forget_level2": POOL[4:], "neighbor_level1": POOL[3:4]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    (tmp_path / "forget_level3.json").write_text(json.dumps([{**POOL[1], "type": "synonym"}]))
    (tmp_path / "neighbor_level2.json").write_text(json.dumps([{"query": "Who?", "answer": "Cy"}]))
    config = EvalConfig("m", "atlas", str(tmp_path), "o", parts=["forget", "neighbor"], shots=2)
    prompts, tokenizer = [], make_tokenizer()

    class Asked(OneByOne):
        def generate(self, prompt_ids, **_):
            prompts.extend(map(tokenizer.decode, prompt_ids))
            return ["x"] * len(prompt_ids)

    Asked.tokenizer = tokenizer
    parts = select_parts(config)
    for part in parts:
        rows_of(part, tmp_path, Asked())
        assert part.decoding["shots"] == 2
        assert {"forget_level1.json", "forget_level2.json"} <= set(part.files)
    assert [prompt.count("<|assistant|>") - 1 for prompt in prompts] == [1, 1, 1, 2, 2]
    assert all("shots" not in part.decoding for part in select_parts(replace(config, shots=0)))


def test_long_prompts_lose_their_left_but_not_bos():
    assert fit_left([1, 2, 3, 4], 3, bos_token_id=1) == [1, 3, 4]
    assert fit_left([1, 2, 3, 4], 3, bos_token_id=None) == [2, 3, 4]
    assert fit_left([1, 2], 3, bos_token_id=1) == [1, 2]


def test_likelihoods_do_not_depend_on_the_batch(tiny_model):
    model = load_model(str(tiny_model), dtype="float32")
    generator = np.random.default_rng(0)
    sequences = [generator.integers(7, 300, size=length).tolist() for length in (40, 3, 17, 2)]
    together = token_log_probs(model, sequences, desc="t")
    for ids, values in zip(sequences, together, strict=True):
        with torch.no_grad():
            table = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected = table[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        np.testing.assert_allclose(values, expected.numpy(), atol=1e-5)
        chosen = next_token_log_probs(model, [ids, sequences[0]], [8, 9], desc="n")[0]
        np.testing.assert_allclose(chosen, table[-1, [8, 9]].numpy(), atol=1e-5)
    with pytest.raises(DataError, match="1 to 512 tokens"):
        token_log_probs(model, [[8] * 513], desc="t")
