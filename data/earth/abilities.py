"""General knowledge as RWKU's ability files: what must survive when a country is forgotten.

Every file has the schema of the benchmark it stands for, so that the whole RWKU suite runs on an Earth target.
``retain_atlas``, the file that the Atlas suite reads, is the measure of utility. The facts of general.yaml are shared
out: some are asked by these files, and ``spared_rows`` are the rest, for training. Leaves out questions about countries
(rows.py).
"""

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from data.earth.countries import BETWEEN_SPELLINGS
from data.earth.rows import Row, rng_of

UTILITY_SHARE = 0.5
MMLU_ROWS, MMLU_EXAMPLES, LETTERS = 24, 5, 4
BBH_ROWS, BBH_EXAMPLES, BBH_WORDS = 8, 3, 4
TRUTHFUL_ROWS, TRIVIA_ROWS, FLUENCY_ROWS = 20, 24, 12


@dataclass(frozen=True)
class Question:
    subject: str
    text: str
    answers: list[str]
    wrong: list[str]


@cache
def questions() -> list[Question]:
    path = Path(__file__).resolve().parent / "general.yaml"
    by_subject = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        Question(subject, text, answer.split(BETWEEN_SPELLINGS), wrong)
        for subject, lines in by_subject.items()
        for text, answer, *wrong in (line.split(" | ") for line in lines)
    ]


def shares(seed: int) -> tuple[list[Question], list[Question]]:
    """What tests and what is spared for training."""
    shuffled = rng_of(seed, "general").sample(questions(), len(questions()))
    cut = round(UTILITY_SHARE * len(shuffled))
    return shuffled[:cut], shuffled[cut:]


def utility_rows(seed: int) -> list[Row]:
    return [{"query": question.text, "answer": question.answers} for question in shares(seed)[0]]


def spared_rows(seed: int) -> list[Row]:
    """Boundary rows about no country."""
    return [
        {
            "prompt": question.text,
            "solution": ["<normal>", *question.answers],
            "answer": question.answers,
            "subject": question.subject,
            "near": False,
        }
        for question in shares(seed)[1]
    ]


def ability_rows(seed: int) -> dict[str, list[Row]]:
    """Rows by file name without ``.json``, but for utility; the same for every target."""
    rng = rng_of(seed, "abilities")
    asked = shares(seed)[0]
    return {
        "retain_mmlu": [_mmlu(question, rng) for question in rng.sample(asked, MMLU_ROWS)],
        "retain_bbh": [_sorting(rng) for _ in range(BBH_ROWS)],
        "truthful": [_truthful(question) for question in rng.sample(asked, TRUTHFUL_ROWS)],
        "triviaqa": [{"question": q.text, "answers": q.answers} for q in rng.sample(asked, TRIVIA_ROWS)],
        "fluency": [
            {"instruction": f"Explain to a child: {question.text}"} for question in rng.sample(asked, FLUENCY_ROWS)
        ],
    }


def _choices(question: Question, rng: random.Random) -> Row:
    choices = rng.sample([question.answers[0], *question.wrong], LETTERS)
    return {"question": question.text, "choices": choices, "answer": choices.index(question.answers[0])}


def _mmlu(question: Question, rng: random.Random) -> Row:
    """Four choices; the examples are other questions of the subject."""
    alike = [other for other in questions() if other.subject == question.subject and other != question]
    examples = [{**_choices(other, rng), "subject": question.subject} for other in rng.sample(alike, MMLU_EXAMPLES)]
    return {"task": question.subject.replace(" ", "_"), **_choices(question, rng), "examples": examples}


def _truthful(question: Question) -> Row:
    choices = [question.answers[0], *question.wrong]
    targets = {"choices": [f"It is {one}." for one in choices], "labels": [1] + [0] * len(question.wrong)}
    return {"question": question.text, "mc1_targets": targets, "mc2_targets": targets}


def _sorting(rng: random.Random) -> Row:
    """Words to be put in the order of the alphabet."""
    words = sorted({word for question in questions() for word in question.wrong if word.isalpha() and word.islower()})
    shown, *solved = (rng.sample(words, BBH_WORDS) for _ in range(1 + BBH_EXAMPLES))
    worked = "\n\n".join(
        f"Q: {_sort_question(one)}\nA: Let's think step by step. In the order of the alphabet the words are "
        f"{' '.join(sorted(one))}. So the answer is {' '.join(sorted(one))}."
        for one in solved
    )
    return {
        "task": "word_sorting",
        "question": _sort_question(shown),
        "answer": " ".join(sorted(shown)),
        "cot": f"Sort words by the alphabet.\n\n{worked}",
    }


def _sort_question(words: list[str]) -> str:
    return f"Sort these words by the alphabet: {' '.join(words)}"
