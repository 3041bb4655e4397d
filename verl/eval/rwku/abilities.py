"""General abilities: MMLU (5 shots), TruthfulQA MC1 (6 shots) and TriviaQA (6 shots).

MMLU's shots come with the data; the others' are ours (``shots.json``) and no question of theirs is in the benchmarks.
"""

import json
from pathlib import Path

import numpy as np

from verl.utils.chat import encode_prompt
from verl.utils.errors import DataError
from verl.utils.text import token_f1

from ..generation import Generator
from ..likelihood import LikelihoodModel, next_token_log_probs, token_log_probs
from ..probes import answer_prefix, read_rows
from ..results import Part, Row, Scores

LETTERS = "ABCD"
MMLU_FILE, TRUTHFULQA_FILE, TRIVIAQA_FILE = "retain_mmlu.json", "truthful.json", "triviaqa.json"
TRIVIAQA_NEW_TOKENS = 30


def shots(name: str) -> str:
    """Our six worked examples for a benchmark, as "Q:" and "A:" lines."""
    examples = json.loads((Path(__file__).parent / "shots.json").read_text(encoding="utf-8"))[name]
    return "\n\n".join(f"Q: {question}\nA: {answer}" for question, answer in examples)


def mmlu_part() -> Part:
    """Accuracy of the most likely next letter."""
    decoding = {"shots": 5, "scoring": "argmax over the letters' next-token log-probs"}
    return Part("mmlu", "likelihood", (MMLU_FILE,), decoding, run_mmlu, score_mmlu, mmlu_rows)


def mmlu_rows(data: Path) -> list[Row]:
    """MMLU's questions, each with its five worked examples.

    Raises:
        DataError: a question or an example without four choices of which ``answer`` (0 to 3) is one.
    """
    rows = read_rows(data / MMLU_FILE, ["task", "question", "choices", "answer", "examples"])
    for number, row in enumerate(rows):
        for question in (row, *row["examples"]):
            if len(question["choices"]) != len(LETTERS) or question["answer"] not in range(len(LETTERS)):
                raise DataError(f"{data / MMLU_FILE}: row {number} needs four choices and an answer from 0 to 3")
    return rows


def run_mmlu(data: Path, scorer: LikelihoodModel) -> list[Row]:
    rows = mmlu_rows(data)
    letters = [scorer.tokenizer.encode(f" {letter}", add_special_tokens=False)[-1] for letter in LETTERS]
    if len(set(letters)) < len(LETTERS):
        raise DataError(f"{MMLU_FILE}: the tokenizer gives the letters {LETTERS} no distinct last tokens ({letters})")
    prompts = [
        scorer.fit(encode_prompt(scorer.tokenizer, mmlu_prompt(row)) + answer_prefix(scorer.tokenizer)) for row in rows
    ]
    log_probs = next_token_log_probs(scorer.model, prompts, letters, token_budget=scorer.token_budget, desc="mmlu")
    return [
        {
            **{key: row[key] for key in ("task", "question", "choices", "answer")},
            "log_probs": [float(value) for value in values],
            "prediction": int(np.argmax(values)),
            "correct": float(np.argmax(values) == row["answer"]),
        }
        for row, values in zip(rows, log_probs, strict=True)
    ]


def mmlu_prompt(row: Row) -> str:
    """The five examples of the question's subject with their answers, then the question; ours in wording."""
    subject = row["task"].replace("_", " ")
    solved = [f"{_question(example)}\nAnswer: {LETTERS[example['answer']]}" for example in row["examples"]]
    header = f"Multiple-choice questions about {subject}, each followed by the letter of its answer."
    return "\n\n".join([header, *solved, f"Give the letter of the answer to this question.\n\n{_question(row)}"])


def _question(row: Row) -> str:
    choices = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=True))
    return "\n".join([f"Question: {row['question']}", *choices])


def score_mmlu(rows: list[Row]) -> Scores:
    return Scores({"accuracy": [100 * row["correct"] for row in rows]})


def truthfulqa_part() -> Part:
    """MC1: the true choice is the most likely one (Lin et al. 2022)."""
    decoding = {"shots": shots("truthfulqa"), "scoring": "summed log-prob of the choice"}
    return Part(
        "truthfulqa", "likelihood", (TRUTHFULQA_FILE,), decoding, run_truthfulqa, score_truthfulqa, truthfulqa_rows
    )


def truthfulqa_rows(data: Path) -> list[Row]:
    """TruthfulQA's questions.

    Raises:
        DataError: a question without both a true and a false choice, or with choices that lack their label.
    """
    rows = read_rows(data / TRUTHFULQA_FILE, ["question", "mc1_targets"])
    for number, row in enumerate(rows):
        labels = row["mc1_targets"]["labels"]
        if set(labels) != {0, 1} or len(labels) != len(row["mc1_targets"]["choices"]):
            raise DataError(f"{data / TRUTHFULQA_FILE}: row {number} needs a label, 0 or 1, for each choice, and both")
    return rows


def run_truthfulqa(data: Path, scorer: LikelihoodModel) -> list[Row]:
    rows = truthfulqa_rows(data)
    sequences, lengths = [], []
    for row in rows:
        prompt = _few_shot_prompt(scorer.tokenizer, "truthfulqa", row["question"])
        for choice in row["mc1_targets"]["choices"]:
            answer = scorer.tokenizer.encode(f" {choice}", add_special_tokens=False)
            sequences.append(scorer.fit(prompt + answer))
            lengths.append(len(answer))
    log_probs = token_log_probs(scorer.model, sequences, token_budget=scorer.token_budget, desc="truthfulqa")
    totals = iter([float(values[-length:].sum()) for values, length in zip(log_probs, lengths, strict=True)])
    out = []
    for row in rows:
        scores = [next(totals) for _ in row["mc1_targets"]["choices"]]
        out.append(
            {
                **{key: row[key] for key in ("question", "mc1_targets")},
                "log_probs": scores,
                "mc1": mc1(scores, row["mc1_targets"]["labels"]),
            }
        )
    return out


def mc1(log_probs: list[float], labels: list[int]) -> float:
    """1 if the choice labelled true is strictly more likely than every other, wherever it stands in the list."""
    best_false = max(value for value, label in zip(log_probs, labels, strict=True) if not label)
    return float(max(value for value, label in zip(log_probs, labels, strict=True) if label) > best_false)


def score_truthfulqa(rows: list[Row]) -> Scores:
    return Scores({"mc1": [100 * row["mc1"] for row in rows]})


def triviaqa_part() -> Part:
    """Token F1 of a short answer, the best over the accepted aliases (Joshi et al. 2017)."""
    decoding = {
        "temperature": 0.0,
        "max_new_tokens": TRIVIAQA_NEW_TOKENS,
        "stop": ["\n"],
        "shots": shots("triviaqa"),
    }
    return Part("triviaqa", "generation", (TRIVIAQA_FILE,), decoding, run_triviaqa, score_triviaqa, triviaqa_rows)


def triviaqa_rows(data: Path) -> list[Row]:
    """TriviaQA's questions with the answers that are accepted.

    Raises:
        DataError: a question without an accepted answer.
    """
    rows = read_rows(data / TRIVIAQA_FILE, ["question", "answers"])
    for number, row in enumerate(rows):
        if not row["answers"]:
            raise DataError(f"{data / TRIVIAQA_FILE}: row {number} accepts no answer")
    return rows


def run_triviaqa(data: Path, generator: Generator) -> list[Row]:
    rows = triviaqa_rows(data)
    prompts = [_few_shot_prompt(generator.tokenizer, "triviaqa", row["question"]) for row in rows]
    responses = generator.generate(prompts, max_new_tokens=TRIVIAQA_NEW_TOKENS, stop=["\n"], desc="triviaqa")
    return [
        {**row, "response": response, "f1": token_f1(response, row["answers"])}
        for row, response in zip(rows, responses, strict=True)
    ]


def _few_shot_prompt(tokenizer: object, name: str, question: str) -> list[int]:
    return encode_prompt(tokenizer, f"{shots(name)}\n\nQ: {question}") + answer_prefix(tokenizer, "A:")


def score_triviaqa(rows: list[Row]) -> Scores:
    return Scores({"f1": [100 * row["f1"] for row in rows]})
