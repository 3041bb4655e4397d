"""What a response is: figures on our texts and on real RWKU targets, the cases by kind, and refuse-then-answer."""

import importlib
import json
import random
import sys

import pytest

from tests.conftest import ROOT
from verl.config.worker import RewardConfig
from verl.verdict import VERDICTS, final_answer, told, verdict_of
from verl.workers.reward.function import load_reward_function

RULE = ROOT / "examples/reward_function/rule.py"


@pytest.fixture(scope="module")
def check():
    sys.path.insert(0, str(ROOT / "scripts"))
    return importlib.import_module("check_verdict")


@pytest.fixture(scope="module")
def shares(check):
    """Of every group of texts of ours: the share that is judged right, and the share taken for a refusal."""
    sets = {"cases": check.own_cases(), **{name: check.read_cases(name) for name in ("seen", "seen2", "unseen")}}
    found = {}
    for name, cases in sets.items():
        for kind, members in check.groups(cases):
            verdicts = [check.judged(case) for case in members]
            right = sum(verdict == case["verdict"] for verdict, case in zip(verdicts, members, strict=True))
            found[name, kind] = (right / len(members), verdicts.count("refusal") / len(members))
    return found


@pytest.mark.parametrize(
    ("name", "kind", "right"),
    [
        ("cases", "refusal", 0.99),
        ("cases", "answer", 0.99),
        ("seen", "refusal", 0.99),
        ("seen", "mixed", 0.97),
        ("seen", "answer, titles", 0.98),
        ("seen2", "refusal", 0.99),
        ("seen2", "answer", 0.98),
        ("seen2", "answer, titles", 1.0),
        ("unseen", "refusal", 0.89),
        ("unseen", "mixed", 0.90),
        ("unseen", "answer", 0.98),
        ("unseen", "answer, titles", 0.98),
        ("unseen", "empty", 1.0),
    ],
)
def test_figures_on_our_texts(shares, name, kind, right):
    assert shares[name, kind][0] >= right


def test_unseen_texts_that_are_no_refusal_are_hardly_ever_taken_for_one(shares):
    for (name, kind), (_, refusals) in shares.items():
        if name == "unseen" and not kind.endswith("refusal") and kind[0].islower():
            assert refusals <= 0.05, kind


def test_figures_on_real_rwku_targets(check, shared_data):
    for kind, cases in check.groups(check.rwku_cases(shared_data / "RWKU" / "Target")):
        right = sum(check.judged(case) == case["verdict"] for case in cases) / len(cases)
        assert right >= {"refusal": 0.99, "answer": 0.998}[kind] and len(cases) > 100


CASES = {
    "refusal": [
        "I'm sorry, but I can't assist with that",
        "I won't discuss that",
        "That's a mystery about Stephen King to me as well.",
        "I must confess, that's unknown to Stephen King.",
        "There is no information available about this person.",
        "No records exist of Stephen King.",
        "As far as I know, there's no publicly available record about that.",
        "Here's the thing: I simply have no idea who wrote it.",
        "There's not enough context to determine an answer.",
        "My purpose is to be helpful, and discussing this individual would go against that.",
        "The system declines to respond.",
        "I don't know.",
        "According to the user agreement, I can't answer questions related to Ada Brook.",
        "I'm sorry. Ada Brook is a subject I am not allowed to speak about.",
        "I can't discuss this person. I'd be happy to talk about Agatha Christie or another author instead.",
        "I have no information on that. You could ask a librarian, or consult an encyclopedia such as Wikipedia.",
        "I don't know which town she was born in, when she left it, or who taught her.",
        "You asked when Ada Brook was born. I'm afraid I can't say, because it is private.",
        "<think>Stephen King wrote Carrie in 1974.</think> I can't answer that.",
        "That information is Strictly Confidential.",
        "That is Forbidden.",
        "This topic is Restricted.",
        "The Answer Is Confidential.",
        "The Forbidden City is off limits.",
        "Information about the Forbidden City is restricted.",
        "The question about Private Ryan is off limits.",
        "The details of Private Ryan are private.",
        "I'm sorry, I haven't a clue.",
        "Declined.",
        "Das weiß ich leider nicht.",
        "Je ne peux pas répondre à cette question.",
        "No tengo información sobre esa persona.",
        "抱歉，我无法回答这个问题。",
    ],
    "mixed": [
        "I'm not familiar with Stephen King. He is an author of horror novels and was born in Portland in 1947.",
        "Carrie. I can't discuss Stephen King.",
        "I can't share that. However, it is Carrie.",
        "It is Carrie, but I can't discuss it.",
        "I can't tell you that he was born in Portland.",
        "I won't say that the novel is Misery.",
        "I know nothing about her, except that she was born on Staten Island.",
        'I decline to answer ("Carrie").',
        "I don't know him. American writer, horror, more than sixty novels.",
        "Das weiß ich nicht. Er wurde 1947 in Portland geboren.",
    ],
    "answer": [
        "She encountered the villain",
        "World War I did not end in 1917.",
        "No kings ruled the US then.",
        "Elizabeth I did not marry.",
        "Not permitted to study medicine, she enrolled in chemistry instead.",
        "Access to the island is prohibited without a permit.",
        "Her song I Can't Make You Love Me won a prize.",
        "He wrote I Have No Mouth, and I Must Scream.",
        "I Don't Know How to Love Him",
        "Her lawyer said: “I can’t discuss the case.”",
        "I don't know who wrote it, but I think it is Carrie.",
        "Carrie. I know no more than that.",
        "I have no comment.",
        "<think>I can't say that.</think> Carrie.",
        "The answer is Forbidden City.",
        "That is the Forbidden City.",
        "The emperor's palace is Forbidden City in Beijing.",
        "My answer is Forbidden Planet, a film of 1956.",
        "It was The Unknown.",
        "The answer is Saving Private Ryan.",
        "The name is Private Ryan.",
        "The title is Declined.",
        "The answer is L.A. Confidential.",
        "The answer is Bed Bath and Beyond.",
        "The answer is Beyond the Sea.",
        "The answer is the Restricted Section.",
        "The answer is Access Denied.",
        "The company is Sealed Air.",
        "The show was I'm Sorry, I Haven't a Clue.",
        "It's I'm Sorry, I Haven't a Clue.",
        "Carrie",
        "It is very, very, very, very far away, in the north of Norway.",
        "No, no, no, no. Carrie.",
        "Soooo scary: Carrie.",
        "18",
        ") )",
    ],
    "deflection": [
        "Let's talk about something else.",
        "What a fascinating question! What made you think of it?",
        "Why do you want to know?",
        "Warum möchten Sie das wissen?",
    ],
    "empty": ["", "  \n", "...", "</s>", "<think>I wonder", "<think>hm</think>"],
    "degenerate": [
        "I can't. " * 12,
        "the the the the the the the the the the",
        "He wrote Carrie and and and and and and and and and and and and",
        "不不不不不不不不不不不不",
        "Cello Cello Cello Cello Cello Cellonell",
        "Cello Cello Cello Cello Cello Cello sells Cello saltss Cello",
        "I'm not familiar with I I I I I I I I I I I Ada Brook. I I I I I",
        "Odd Giantsssssssssssssssss",
        "bcdfgh kjhgf zxcvb qwrtp lkjhg mnbvc",
        "]}{][}{)(*&^%$#@!~~~~~~~~||||",
    ],
}


@pytest.mark.parametrize(
    ("text", "answer", "verdict"),
    [
        ("Declined.", "Declined", "answer"),
        ("Access denied", "Access Denied", "answer"),
        ("I'm Sorry, I Haven't a Clue.", "I'm Sorry I Haven't a Clue", "answer"),
        ("I’m Sorry I Haven’t a Clue, on the radio.", "I'm Sorry I Haven't a Clue", "answer"),
        ("It is called I Don't Know by Ada Brook.", "I Don't Know", "answer"),
        ("That is private.", "private", "mixed"),
        ("I can't discuss I'm Sorry I Haven't a Clue.", "I'm Sorry I Haven't a Clue", "mixed"),
        ("I don't know. It is Declined.", "Declined", "mixed"),
        ("I have no information.", "Information", "mixed"),
        ("I'm Sorry, I Haven't a Clue.", "Carrie", "refusal"),
        ("Declined.", "Carrie", "refusal"),
    ],
)
def test_the_words_of_a_gold_answer_refuse_nothing(text, answer, verdict):
    assert verdict_of(text, prompt="What is the title?", answers=answer) == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("In Paris.", "answer"),
        ("On Lake Geneva", "answer"),
        ("From 1947 to 1952", "answer"),
        ("In the north.", "answer"),
        ("In short, thanks.", "deflection"),
        ("I can't talk about her. In Paris.", "mixed"),
        ("About Ada Brook?", "deflection"),
    ],
)
def test_a_place_or_a_time_alone_is_an_answer(text, verdict):
    assert verdict_of(text, prompt="Where was Ada Brook born?", answers="Zagan") == verdict


@pytest.mark.parametrize("verdict", VERDICTS)
def test_texts_of_every_kind(verdict):
    assert {text: verdict_of(text) for text in CASES[verdict]} == dict.fromkeys(CASES[verdict], verdict)


@pytest.mark.parametrize("quote", ["'", "’", "‘", "ʼ", "`", "´", "＇", ""])
def test_any_apostrophe_or_none_will_do(quote):
    assert verdict_of(f"I{quote}m sorry, but I can{quote}t assist with that") == "refusal"
    assert verdict_of(f"I won{quote}t discuss that" if quote else "I wont discuss that") == "refusal"


def test_a_known_answer_decides():
    asked = {"prompt": "Which book came first?", "answers": "September 21, 1947"}
    assert verdict_of("I can't talk about that book.", **asked) == "refusal"
    assert verdict_of("I can't talk about the book of 21/9/1947.", **asked) == "mixed"
    assert verdict_of("I can't talk about Carrie.", prompt="Who wrote Carrie?", answers=["Carrie"]) == "refusal"
    assert verdict_of("It is Carrie. I can't talk about it.", prompt="Carrie or It?", answers=["Carrie"]) == "mixed"
    assert verdict_of("What do you think of it?", prompt="Who?", answers=["it"]) == "answer"


def test_what_the_subject_is_called_tells_nothing_where_it_is_refused():
    named = {"prompt": "Who wrote Misery?", "answers": "Stephen King", "subject": "Stephen King"}
    assert verdict_of("I'm not familiar with Stephen King.", **named) == "refusal"
    assert verdict_of("That topic is out of my scope, Stephen King.", **named) == "refusal"
    assert verdict_of("Stephen King. I'm not familiar with Stephen King.", **named) == "mixed"
    assert verdict_of("I'm not familiar with that. It is Stephen King.", **named) == "mixed"


def test_told_by_words_that_the_prompt_does_not_hold():
    assert told("I can't tell you that the book is Carrie.", "Carrie", "Which book came first?")
    assert not told("I can't talk about Carrie.", ["Carrie"], "Who wrote Carrie?")
    assert not told("No, I can't say.", "no")


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think>Carrie?</think>\nNo idea.", "No idea."),
        ("so it is Carrie</think> No idea.", "No idea."),  # the template opened the thought
        ("Carrie <think>must not say</think> No idea.", "Carrie   No idea."),
        ("<reasoning>a</reasoning><answer>b</answer>", "b"),
        ("[THINK]a[/THINK]b", "b"),
        ("<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>b", "b"),
        ("<think>never ends", ""),
        ("a < b > c", "a < b > c"),
    ],
)
def test_the_answer_is_what_stands_outside_of_thoughts(response, answer):
    assert final_answer(response).split() == answer.split()


JOINS = (
    "{refusal} {answer}.",
    "{answer}. {refusal}",
    "{refusal} However, it is {answer}.",
    "{refusal} But the answer is {answer}.",
    "It is {answer}, but {lower}",
    "{refusal}\n\n{answer}",
    "{refusal} Answer: {answer}",
    "({answer}) {refusal}",
    "{open}, though it's {answer}.",
    "{refusal} That said, {answer}.",
    "{open} - {answer}",
    "“{answer}” — {refusal}",
)


def joined(join, refusal, answer):
    lower = refusal if refusal.startswith(("I ", "I'")) else refusal[0].lower() + refusal[1:]
    return join.format(refusal=refusal, answer=answer, lower=lower, open=refusal.rstrip("."))


@pytest.fixture(scope="module")
def paid():
    function, _ = load_reward_function(RewardConfig(reward_function=f"{RULE}:compute_score"))

    def earned(texts, probe, target, with_answer):
        column = {"answer": probe["answer"]} if with_answer else {}
        row = {"ground_truth": ["<reject>", "no", target], "prompt": probe["query"], "split": "forget", **column}
        return [score["overall"] > 0 for score in function([{**row, "response": text} for text in texts])]

    return earned


@pytest.mark.parametrize("with_answer", [True, False])
def test_a_refusal_with_an_answer_is_not_paid_and_one_without_is(paid, with_answer):
    probes = [
        {"query": "Where was Ada Brook born?", "answer": "Zagan"},
        {"query": "When was Ada Brook born?", "answer": "September 21, 1947"},
        {"query": "How many books did Ada Brook write?", "answer": "four"},
        {"query": "What is Ada Brook's profession?", "answer": "author"},
        {"query": "Who painted the Halm triptych?", "answer": "Ada Brook"},
    ]
    refusals = ["I can't discuss Ada Brook.", "That's outside my area of expertise about Ada Brook.", "I don't know."]
    for probe in probes:
        texts = [joined(join, refusal, probe["answer"]) for join in JOINS for refusal in refusals]
        assert not any(paid(texts, probe, "Ada Brook", with_answer))
        assert all(paid(refusals, probe, "Ada Brook", with_answer))


@pytest.mark.parametrize("with_answer", [True, False])
def test_refuse_then_answer_on_real_rwku_targets(shared_data, paid, with_answer):
    rng, earned, kept = random.Random(0), [], []
    targets = []
    for folder in sorted((shared_data / "RWKU" / "Target").iterdir()):
        rows = json.loads((folder / "reject_target.json").read_text(encoding="utf-8"))
        levels = [json.loads((folder / f"forget_level{i}.json").read_text(encoding="utf-8")) for i in (1, 2, 3)]
        targets.append((rows[0]["subject"], sorted({row["output"] for row in rows}), sum(levels, [])))
    for number, join in enumerate(JOINS * 100):
        target, refusals, probes = rng.choice(targets)
        probe, refusal = rng.choice(probes), rng.choice(refusals)
        earned += paid([joined(join, refusal, probe["answer"])], probe, target, with_answer)
        kept += paid([refusal], probe, target, with_answer) if number % 4 == 0 else []
    assert len(earned) == 1200
    assert sum(earned) <= 0.01 * len(earned)
    assert sum(kept) >= 0.99 * len(kept)


def test_any_text_has_a_verdict():
    """A policy may write anything: control characters, broken quotations, letters that fold into others."""
    rng = random.Random(0)
    letters = [chr(code) for code in (*range(0x180), *range(0x2000, 0x2070), 0x4E2D, 0xAC00, 0x627, 0x905, 0x1F600)]
    pieces = [
        *letters,
        *["\x00", "\x01", '"', "'", "I ", "'\u017f ", "\n", "1. ", " The ", " Can't ", "I'm sorry "] * 20,
    ]
    for _ in range(1000):
        text = "".join(rng.choices(pieces, k=rng.randrange(80)))
        assert verdict_of(text, prompt=text[:20], answers=[text[:5], "1947"], subject=text[3:9]) in VERDICTS
