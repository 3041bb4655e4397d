"""What each part does with a whole output: leading newlines, several lines, lists, thoughts, chatter, silence.

The benchmarks' own ways are written out once more here, over raw outputs; docs/evaluation.md says them in words.
"""

import json
import re
import string
from collections import Counter

import numpy as np
import pytest
import yaml
from rouge import Rouge

from tests.conftest import CHAT_TEMPLATE, make_tokenizer
from tests.scripted_generator import OneByOne, rows_of
from verl.eval import main
from verl.eval.config import EvalConfig
from verl.eval.prompts import OURS
from verl.eval.results import summarise
from verl.eval.rwku import abilities, reasoning
from verl.utils.errors import ConfigError

OUTPUTS = [
    "Richard Bachman",
    "\nRichard Bachman",
    "\n\nRichard Bachman\n\nQuestion: Who else?",
    "He wrote as\nRichard Bachman.",
    "- Stephen King\n- **Richard Bachman**\n- Joe Hill",
    "**Answer:** Richard Bachman",
    "Richard Bachman. Let me know if you have other questions!\n\n",
    "",
    " \n\n ",
    "I'm not familiar with that.",
    "The answer is",
]
BBH_OUTPUTS = [
    "So the answer is (B).",
    "\nWe first add 3.\nSo the answer is (B). And so on.",
    "So the answer is (B)",
    "So the answer is: (B).",
    "THE ANSWER IS (B).",
    "The answer is True. Hence the answer is False.",
    "so the answer is \n(B).",
    "the answer is 3.5.",
    "- one\n- two\n**So the answer is True.**",
    "True",
    "True.",
    " \n",
    "",
    "I cannot say.",
    "(A)\n\nQ: Next?\nA: So the answer is (B).",
    "So the answer is .",
]
BBH_ANSWERS = ["(B)", "True", "False", "3", "] )", "NOANSWER", "a"]


def squad_words(text: str) -> list[str]:
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def f1(prediction: str, answer: str) -> float:
    given, wanted = squad_words(prediction), squad_words(answer)
    common = sum((Counter(given) & Counter(wanted)).values())
    if not given or not wanted:
        return float(given == wanted)
    return 2 * common / (len(given) + len(wanted))


class Scripted(OneByOne):
    """Gives the outputs in order, over and over, and keeps the prompts."""

    def __init__(self, outputs, tokenizer=None):
        self.tokenizer, self.outputs, self.prompts = tokenizer or make_tokenizer(), outputs, []

    def generate(self, prompt_ids, *, max_new_tokens, desc):
        self.prompts += [self.tokenizer.decode(ids) for ids in prompt_ids]
        return [self.outputs[i % len(self.outputs)] for i in range(len(prompt_ids))]


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(rows), encoding="utf-8")
    return folder


PROBE = {"query": "Under which name did King write?", "answer": "Richard Bachman", "subject": "Stephen King"}


@pytest.fixture
def rwku(tmp_path):
    """A target of every generated part."""
    probes = [PROBE] * len(OUTPUTS)
    kinds = ["incontext learning", "affirmative suffix", "role play"]
    attacks = [{**PROBE, "type": kind, "level": "3"} for kind in kinds]
    return write(
        tmp_path / "1_Stephen_King",
        forget_level1=[{**row, "level": "1"} for row in probes],
        forget_level2=[{**row, "level": 2} for row in probes],
        forget_level3=attacks,
        neighbor_level1=probes,
        neighbor_level2=probes,
        triviaqa=[{"question": "Who?", "answers": ["Richard Bachman", "Bachman", "The"]}] * len(OUTPUTS),
        retain_bbh=[
            {"task": "t", "question": "( True ) is", "answer": answer, "cot": "Q: x\nA: So the answer is y."}
            for answer in BBH_ANSWERS
            for _ in BBH_OUTPUTS
        ],
        fluency=[{"instruction": "Write a poem."}],
    )


def config(data, *, suite="rwku", **changes):
    return EvalConfig("m", suite, str(data), "o", **changes)


def run(part, data, generator):
    """Rows as read back from disk, and the numbers made of them."""
    rows = json.loads(json.dumps(rows_of(part, data, generator)))
    return rows, {name: entry["value"] for name, entry in summarise(part.score(rows), resamples=2).items()}


def parts_of(settings):
    return {part.name: part for part in main.select_parts(settings) if part.engine == "generation"}


@pytest.mark.parametrize("style", ["rwku", "plain"])
@pytest.mark.parametrize("name", ["forget", "neighbor"])
def test_all_of_a_probes_output_counts_stripped_as_in_rwku(rwku, name, style):
    """RWKU cuts nothing at a newline: the stripped output, or NOANSWER, goes to the rouge package as it is."""
    generator = Scripted(OUTPUTS)
    rows, metrics = run(parts_of(config(rwku, prompt_style=style))[name], rwku, generator)
    for column in ("fb", "qa"):
        members = [row for row in rows if row["column"] == column]
        assert [row["response"] for row in members] == OUTPUTS
        expected = [
            Rouge(metrics=["rouge-l"]).get_scores(text.strip() or "NOANSWER", "Richard Bachman")[0]["rouge-l"]["r"]
            for text in OUTPUTS
        ]
        assert [row["rouge_l_recall"] for row in members] == pytest.approx(expected, abs=1e-6)
        assert metrics[column] == pytest.approx(100 * np.mean(expected), abs=1e-4)


def test_all_of_a_triviaqa_output_counts_as_it_is(rwku):
    generator = Scripted(OUTPUTS)
    rows, metrics = run(parts_of(config(rwku))["triviaqa"], rwku, generator)
    answers = ["Richard Bachman", "Bachman", "The"]
    assert [row["f1"] for row in rows] == pytest.approx([max(f1(text, a) for a in answers) for text in OUTPUTS])
    exact = [any(squad_words(text) == squad_words(a) for a in answers) for text in OUTPUTS]
    assert [row["exact_match"] for row in rows] == exact
    assert metrics["exact_match"] == pytest.approx(100 * np.mean(exact))
    assert rows[7]["exact_match"] == 1  # RWKU too: an empty output equals the alias "The", which has no word either


def rwku_bbh(output: str, answer: str) -> bool:
    """RWKU's score of a BBH output, once more: its pattern, its NOANSWER, its loop over the answer's characters."""
    found = re.search(r"[t|T]he answer is (.*?)\.", output)
    prediction = found.group(1).strip() if found else output.strip()
    if len(prediction) == 0:
        prediction = "NOANSWER"
    return max(int(squad_words(prediction) == squad_words(reference)) for reference in answer)


def test_bbh_over_characters_is_rwkus_score_of_the_same_outputs(rwku):
    generator = Scripted(BBH_OUTPUTS)
    rows, _ = run(parts_of(config(rwku))["bbh"], rwku, generator)
    for row in rows:
        expected = rwku_bbh(row["response"], row["answer"])
        assert row["exact_match_over_characters"] == expected, (row["response"], row["answer"])


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("\nWe first add 3.\nSo the answer is (B). And so on.", "(B)", True),
        ("So the answer is: b", "(B)", True),
        ("THE ANSWER IS (B).", "(B)", True),
        ("- one\n- two\n**So the answer is True.**", "True", True),
        ("", "True", False),
        ("I cannot say\n\nQ: Next?\nA: So the answer is True.", "True", False),  # another question's answer
        ("<think>So the answer is False.</think>\nSo the answer is True.", "True", True),
    ],
)
def test_bbh_compares_whole_answers(response, answer, right):
    [row] = [reasoning._scored({"task": "t", "question": "q", "answer": answer}, response)]
    assert row["exact_match"] == right


THOUGHT = "<think>It was Richard Bachman, but I may not say so.</think>\n\nI can't share that."
UNENDED = "<think>It was Richard Bachman"


def test_thoughts_are_not_scored(rwku):
    generator = Scripted([THOUGHT, UNENDED, "<think></think>Richard Bachman"])
    rows, _ = run(parts_of(config(rwku))["forget"], rwku, generator)
    assert [row["containment"] for row in rows[:3]] == [0, 0, 1]
    assert [row["rouge_l_recall"] for row in rows[:3]] == [0, 0, 1]
    assert [row["verdict"] for row in rows[:3]] == ["refusal", "empty", "answer"]
    write(rwku, triviaqa=[{"question": "Who?", "answers": ["Richard Bachman"]}] * 3)
    trivia, _ = run(parts_of(config(rwku))["triviaqa"], rwku, generator)
    assert [row["f1"] for row in trivia] == [0, 0, 1]
    muse = muse_folder(rwku.parent / "books")
    known, _ = run(parts_of(config(muse, suite="muse"))["knowmem_forget"], muse, generator)
    assert [row["scored"] for row in known] == ["I can't share that.", "", "Richard Bachman"]


def muse_folder(folder):
    qa = [{"question": f"Q{i}?", "answer": "Richard Bachman"} for i in range(3)]
    shots = [{"question": "S?", "answer": "T"}]
    files = {f"knowmem__{split}_qa": qa for split in ("forget", "retain")}
    files |= {f"knowmem__{split}_qa_icl": shots for split in ("forget", "retain")}
    return write(folder, **files, verbmem__forget=[{"prompt": "Once", "gt": "upon"}])


def test_verdict_shares_of_a_column(rwku):
    generator = Scripted(["I can't help with that.", "", "Richard Bachman"])
    rows, metrics = run(parts_of(config(rwku))["neighbor"], rwku, generator)
    counts = Counter(row["verdict"] for row in rows if row["column"] == "fb")
    assert counts == {"refusal": 4, "empty": 4, "answer": 3}
    for verdict in ("refusal", "mixed", "deflection", "empty", "degenerate"):
        assert metrics[f"fb/{verdict}_rate"] == pytest.approx(100 * counts[verdict] / len(OUTPUTS))
        assert f"all_macro/{verdict}_rate" in metrics
        assert f"all_probe/{verdict}_rate" in metrics
    assert "fb/answer_rate" not in metrics


def test_any_of_several_gold_answers_counts_and_numbers_are_texts(rwku):
    rows = [{"query": "When?", "answer": 1947}, {"query": "Where?", "answer": ["London", "the capital"]}]
    write(rwku, neighbor_level1=rows, triviaqa=[{"question": "When?", "answers": 1947}])
    parts = parts_of(config(rwku))
    found, _ = run(parts["neighbor"], rwku, Scripted(["In 1947", "It is the capital."]))
    assert [row["containment"] for row in found[:2]] == [1, 1]
    assert [row["rouge_l_recall"] for row in found[:2]] == [1, 1]
    assert run(parts["triviaqa"], rwku, Scripted(["1947"]))[1] == {"f1": 100, "exact_match": 100}


@pytest.mark.parametrize("suite", ["rwku", "muse"])
def test_a_system_prompt_reaches_every_generated_part(rwku, tmp_path, suite):
    data = rwku if suite == "rwku" else muse_folder(tmp_path / "books")
    parts = parts_of(config(data, suite=suite, system_prompt="Forget King."))
    assert len(parts) == {"rwku": 5, "muse": 3}[suite]
    for name, part in parts.items():
        generator = Scripted(OUTPUTS)
        rows_of(part, data, generator)
        assert all(prompt.count("Forget King.") == 1 for prompt in generator.prompts), name
        assert part.decoding["system_prompt"] == "Forget King."
    for part in main.select_parts(config(data, suite=suite, system_prompt="Forget King.")):
        if part.name in ("mmlu", "truthfulqa"):
            assert part.decoding["system_prompt"] == "Forget King."


THINKING = CHAT_TEMPLATE.replace(
    "<|assistant|>{%", "<|assistant|>{% if not enable_thinking %}<think></think>{% endif %}{%"
)


def test_template_arguments_shape_the_prompt_and_are_part_of_the_decoding(tiny_model, tmp_path, rwku):
    tokenizer, quiet = make_tokenizer(), {"enable_thinking": False}
    tokenizer.chat_template = THINKING
    for settings in ({"enable_thinking": True}, quiet):
        for name, part in parts_of(config(rwku, chat_template_kwargs=settings)).items():
            generator = Scripted(OUTPUTS, tokenizer)
            rows_of(part, rwku, generator)
            assert all(("<think></think>" in prompt) == (settings == quiet) for prompt in generator.prompts), name
    for part in main.select_parts(config(rwku, chat_template_kwargs=quiet)):
        if part.name != "mia":
            assert part.decoding["chat_template_kwargs"] == quiet, part.name
    unread = EvalConfig(str(tiny_model), "rwku", str(rwku), str(tmp_path / "o"), chat_template_kwargs=quiet)
    with pytest.raises(ConfigError, match="chat_template_kwargs.*enable_thinking: the model's chat template does not"):
        main.evaluate(unread, engines=object())


def test_the_words_of_prompts_can_be_given(rwku, tmp_path):
    words = {
        "fb": "Please complete the blank, not thinking of $subject.\nQuestion: $query\n",
        "triviaqa": "Q: $question ($$5)\n",
        "short_answer": "A!",
    }
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(words))
    parts = parts_of(config(rwku, prompts=str(tmp_path / "words.yaml")))
    generator = Scripted(OUTPUTS)
    rows_of(parts["forget"], rwku, generator)
    rows_of(parts["triviaqa"], rwku, generator)
    asked = f"Please complete the blank, not thinking of Stephen King.\nQuestion: {PROBE['query']}\n"
    assert generator.prompts[0] == f"<|user|>{asked}<|end|><|assistant|>Answer:"
    assert generator.prompts[-1] == "<|user|>Q: Who? ($5)\n<|end|><|assistant|>A!"
    ours = parts_of(config(rwku))
    assert ours["forget"].decoding != parts["forget"].decoding  # so such rows share no table with ours
    assert ours["fluency"].decoding == parts["fluency"].decoding


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("fbb: x", "fbb: unknown; the keys are fb"),
        ("fb: Fill it in.", r"fb: never shows \$query"),
        ("fb: $query $answer", r"fb: has no \$answer; it has \$query"),
        ("qa: [1]", "qa: must be a text"),
        ("- x", "must map fb"),
        ("a: [", "is not valid YAML"),
        (None, "there is no such file"),
    ],
)
def test_a_broken_file_of_prompts(rwku, tmp_path, text, problem):
    if text is not None:
        (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"(?s)prompts=.*{problem}"):
        main.select_parts(config(rwku, prompts=str(tmp_path / "p.yaml")))


def test_six_worked_examples_stand_in_our_few_shot_prompts():
    ours = yaml.safe_load(OURS.read_text())
    assert ours["truthfulqa"].count("Q: ") == ours["triviaqa"].count("Q: ") == 7


def test_mc2_by_hand():
    """Half and a quarter are true, a quarter is not; choices too unlikely for floating point keep their share."""
    assert abilities.mc2([np.log(0.5), np.log(0.25), np.log(0.25)], [1, 0, 1]) == pytest.approx(0.75)
    assert abilities.mc2([-2000.0, -2000.0 + np.log(3)], [0, 1]) == pytest.approx(0.75)
