"""General abilities: MMLU (5 shots), TruthfulQA MC1 and MC2 (6 shots) and TriviaQA (6 shots).

MMLU's shots come with the data; the others' stand in their prompts, and no question of theirs is in the benchmarks.
"""

from pathlib import Path
from typing import Any

import numpy as np

from verl.rows.values import shown
from verl.utils.errors import DataError
from verl.verdict.answers import answer_list, token_f1

from ..generation import Generator, Request
from ..likelihood import LikelihoodModel, next_token_log_probs, token_log_probs
from ..probes import USUAL, Asking, judged_text
from ..reading import as_text, read_rows
from ..results import Interview, Part, Row, Scores
from .reasoning import squad_words

LETTERS = "ABCD"
MMLU_FILE, TRUTHFULQA_FILE, TRIVIAQA_FILE = "retain_mmlu.json", "truthful.json", "triviaqa.json"
TRIVIAQA_NEW_TOKENS = 30


def mmlu_part(asking: Asking = USUAL) -> Part:
    """Accuracy of the most likely next letter."""
    scoring = {"shots": 5, "scoring": "argmax over the letters' next-token log-probs"}
    decoding = {**scoring, **asking.facts(), "prompts": asking.prompts.only("mmlu", "answer")}

    def run(data: Path, scorer: LikelihoodModel) -> list[Row]:
        rows, tokenizer = mmlu_rows(data), scorer.tokenizer
        letters = [tokenizer.encode(f" {letter}", add_special_tokens=False)[-1] for letter in LETTERS]
        if len(set(letters)) < len(LETTERS):
            raise DataError(
                f"{MMLU_FILE}: the tokenizer gives the letters {LETTERS} no distinct last tokens ({letters})"
            )
        asked = [asking.opened(tokenizer, "answer", mmlu_prompt(row, asking)) for row in rows]
        prompts = [scorer.fit(ids) for ids in asked]
        log_probs = next_token_log_probs(scorer.model, prompts, letters, token_budget=scorer.token_budget, desc="mmlu")
        return [_answered(row, values) for row, values in zip(rows, log_probs, strict=True)]

    return Part("mmlu", "likelihood", (MMLU_FILE,), decoding, run, score_mmlu, mmlu_rows)


def mmlu_rows(data: Path) -> list[Row]:
    """MMLU's questions, each with its five worked examples.

    Raises:
        DataError: a question or an example without four choices of which ``answer`` (0 to 3) is one.
    """
    rows = read_rows(data / MMLU_FILE, ["task", "question"], others=["choices", "answer", "examples"])
    for number, row in enumerate(rows):
        where = f"{data / MMLU_FILE}: row {number}"
        if not isinstance(row["examples"], list) or not all(isinstance(one, dict) for one in row["examples"]):
            raise DataError(f"{where}: examples must be a list of questions")
        for question in (row, *row["examples"]):
            choices, answer = question.get("choices"), question.get("answer")
            letter = type(answer) is int and answer in range(len(LETTERS))  # true and 1.0 are no places of a choice
            if not isinstance(choices, list) or len(choices) != len(LETTERS) or not letter:
                raise DataError(f"{where} needs four choices and an answer from 0 to 3, not {shown(answer)}")
            question["question"] = as_text(question.get("question"), where, "question")
            question["choices"] = [as_text(choice, where, "choices") for choice in choices]
    return rows


def _answered(row: Row, values: np.ndarray) -> Row:
    return {
        **{key: row[key] for key in ("task", "question", "choices", "answer")},
        "log_probs": [float(value) for value in values],
        "prediction": int(np.argmax(values)),
        "correct": float(np.argmax(values) == row["answer"]),
    }


def mmlu_prompt(row: Row, asking: Asking = USUAL) -> str:
    """The five examples of the question's subject with their answers, then the question."""
    solved = [f"{_question(example)}\nAnswer: {LETTERS[example['answer']]}" for example in row["examples"]]
    columns = {"task": row["task"].replace("_", " "), "examples": "\n\n".join(solved), "question": _question(row)}
    return asking.prompts.fill("mmlu", row, **columns)


def _question(row: Row) -> str:
    choices = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=True))
    return "\n".join([f"Question: {row['question']}", *choices])


def score_mmlu(rows: list[Row]) -> Scores:
    return Scores({"accuracy": [100 * row["correct"] for row in rows]})


def truthfulqa_part(asking: Asking = USUAL) -> Part:
    """MC1: the true choice is the likeliest. MC2: the true choices' share of the probability (Lin et al. 2022)."""
    words = asking.prompts.only("truthfulqa", "short_answer")
    decoding = {"scoring": "summed log-prob of the choice", **asking.facts(), "prompts": words}

    def run(data: Path, scorer: LikelihoodModel) -> list[Row]:
        rows = truthfulqa_rows(data)
        asked = [(row, choice) for row in rows for choice in _choices(row)]
        sequences, lengths = [], []
        for row, choice in asked:
            answer = scorer.tokenizer.encode(f" {choice}", add_special_tokens=False)
            sequences.append(scorer.fit(_few_shot_prompt(scorer.tokenizer, "truthfulqa", row, asking) + answer))
            lengths.append(len(answer))
        budget = scorer.token_budget
        log_probs = token_log_probs(scorer.model, sequences, lengths, token_budget=budget, desc="truthfulqa")
        totals = iter([float(values.sum()) for values in log_probs])
        return [_chosen(row, {choice: next(totals) for choice in _choices(row)}) for row in rows]

    return Part("truthfulqa", "likelihood", (TRUTHFULQA_FILE,), decoding, run, score_truthfulqa, truthfulqa_rows)


def truthfulqa_rows(data: Path) -> list[Row]:
    """TruthfulQA's questions.

    Raises:
        DataError: a question without both a true and a false choice, or with choices that lack their label; a file
            whose questions have ``mc2_targets`` here and there.
    """
    rows = read_rows(data / TRUTHFULQA_FILE, ["question"], others=["mc1_targets"])
    kinds = [key for key in ("mc1_targets", "mc2_targets") if any(key in row for row in rows)]
    for number, row in enumerate(rows):
        for kind in kinds:
            where = f"{data / TRUTHFULQA_FILE}: row {number}"
            targets = row.get(kind)
            choices, labels = (targets.get(key) if isinstance(targets, dict) else None for key in ("choices", "labels"))
            if not isinstance(choices, list) or not isinstance(labels, list) or len(choices) != len(labels):
                raise DataError(f"{where} needs a label, 0 or 1, for each of the choices of {kind}, and both")
            if not all(type(label) is int for label in labels) or set(labels) != {0, 1}:
                raise DataError(f"{where} needs a label, 0 or 1, for each of the choices of {kind}, and both")
            targets["choices"] = [as_text(choice, where, kind) for choice in choices]
    return rows


def _choices(row: Row) -> list[str]:
    """Every choice of a question once; most stand in both of its lists."""
    return list(dict.fromkeys(choice for key in TARGETS if key in row for choice in row[key]["choices"]))


TARGETS = {"mc1_targets": "log_probs", "mc2_targets": "mc2_log_probs"}
"""Column of choices to column of their scores."""


def _chosen(row: Row, scores: dict[str, float]) -> Row:
    found: Row = {"question": row["question"]}
    for key, name in TARGETS.items():
        if key in row:
            found |= {key: row[key], name: [scores[choice] for choice in row[key]["choices"]]}
    found["mc1"] = mc1(found["log_probs"], row["mc1_targets"]["labels"])
    if "mc2_targets" in row:
        found["mc2"] = mc2(found["mc2_log_probs"], row["mc2_targets"]["labels"])
    return found


def mc1(log_probs: list[float], labels: list[int]) -> float:
    """1 if the choice labelled true is strictly more likely than every other, wherever it stands in the list."""
    best_false = max(value for value, label in zip(log_probs, labels, strict=True) if not label)
    return float(max(value for value, label in zip(log_probs, labels, strict=True) if label) > best_false)


def mc2(log_probs: list[float], labels: list[int]) -> float:
    """The probability of the true choices in the probability of all choices, 0 to 1.

    Relative to the likeliest choice, so that long choices, whose probabilities are 0 in floating point, have a share.
    """
    probs = np.exp(np.array(log_probs) - max(log_probs))
    return float(probs[np.array(labels) == 1].sum() / probs.sum())


def score_truthfulqa(rows: list[Row]) -> Scores:
    return Scores({name: [100 * row[name] for row in rows] for name in ("mc1", "mc2") if name in rows[0]})


def triviaqa_part(asking: Asking = USUAL) -> Part:
    """Token F1 and exact match of a short answer, the best over the accepted aliases (Joshi et al. 2017).

    No stop string and no first line: RWKU scores all that the model writes in 30 tokens.
    """
    decoding = asking.decoding(TRIVIAQA_NEW_TOKENS, prompts=asking.prompts.only("triviaqa", "short_answer"))

    def run(data: Path, generator: Generator) -> Interview:
        rows = triviaqa_rows(data)
        prompts = [_few_shot_prompt(generator.tokenizer, "triviaqa", row, asking) for row in rows]
        responses = yield Request(prompts, TRIVIAQA_NEW_TOKENS, "triviaqa")
        return [_matched(row, response) for row, response in zip(rows, responses, strict=True)]

    return Part("triviaqa", "generation", (TRIVIAQA_FILE,), decoding, run, score_triviaqa, triviaqa_rows)


def triviaqa_rows(data: Path) -> list[Row]:
    """TriviaQA's questions with the answers that are accepted.

    Raises:
        DataError: a question without an accepted answer.
    """
    rows = read_rows(data / TRIVIAQA_FILE, ["question"], answers=["answers"])
    return [{**row, "answers": answer_list(row["answers"])} for row in rows]


def _matched(row: Row, response: str) -> Row:
    text = judged_text(response)
    same = any(squad_words(text) == squad_words(answer) for answer in row["answers"])
    return {**row, "response": response, "f1": token_f1(text, row["answers"]), "exact_match": float(same)}


def _few_shot_prompt(tokenizer: Any, name: str, row: Row, asking: Asking) -> list[int]:
    return asking.opened(tokenizer, "short_answer", asking.prompts.fill(name, row))


def score_triviaqa(rows: list[Row]) -> Scores:
    return Scores({name: [100 * row[name] for row in rows] for name in ("f1", "exact_match")})
