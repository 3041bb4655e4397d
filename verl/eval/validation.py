"""The validation rows of a target, asked as training asks them: what tries of a method are chosen by, and no probe.

Rows are RL rows (``prompt``, ``solution``, and on forget rows perhaps the gold answer). Left out: how two recalls
become the number that chooses (``verl.compare.choice``).
"""

from pathlib import Path
from typing import Any

from verl.rows.values import as_prompt, rule_problem, split_of, transcript
from verl.utils.errors import DataError
from verl.verdict import verdict_of
from verl.verdict.answers import answer_list, rouge_l

from . import reading
from .config import EvalConfig
from .generation import Generator, Request
from .probes import MAX_NEW_TOKENS, NO_ANSWER, Asking, judged_text
from .results import Interview, Part, Row, Scores

FILE = "rl_rejection_with_fb_neighbor_target_val.json"


def parts(config: EvalConfig) -> list[Part]:
    """The one part of the suite."""
    asking = Asking.of(config)

    def run(data: Path, generator: Generator) -> Interview:
        rows = load_rows(data)
        prompts = [asking.encode(generator.tokenizer, as_prompt(row["prompt"])) for row in rows]
        responses = yield Request(prompts, MAX_NEW_TOKENS, "validation")
        return [scored(row, response) for row, response in zip(rows, responses, strict=True)]

    decoding = asking.decoding(MAX_NEW_TOKENS, prompt_style="plain")
    return [Part("validation", "generation", (FILE,), decoding, run, score, load_rows)]


def load_rows(data: Path) -> list[Row]:
    """``prompt``, ``split`` (forget, boundary), ``answer`` (gold; None for a forget row without one) and ``subject``.

    Raises:
        DataError: a row that is no RL row, or a file in which one side is missing.
    """
    path = data / FILE
    rows = [_read(row, f"{path}: row {number}") for number, row in enumerate(reading.rows.read_file(path))]
    if missing := {"forget", "boundary"} - {row["split"] for row in rows}:
        raise DataError(f"{path}: has no {' and no '.join(sorted(missing))} row; tries are chosen by both sides")
    return rows


def _read(row: dict[str, Any], where: str) -> Row:
    solution = row.get("solution")
    if "prompt" not in row or (problem := rule_problem(solution)):
        raise DataError(f"{where}: solution{problem}" if "prompt" in row else f"{where}: lacks prompt")
    split = split_of(row, "solution")
    gold = row.get("answer") if split == "forget" else solution[1]
    subject = {"subject": str(solution[2])} if split == "forget" and len(solution) > 2 else {}
    read = {"prompt": row["prompt"], "split": split, "answer": None} | subject
    return read if gold is None else read | {"answer": reading.as_answers(gold, where, "answer")}


def scored(row: Row, response: str) -> Row:
    """The row with the response, its verdict, and its recall (0..1) of the gold answer; None where there is none."""
    gold = row["answer"]
    verdict = verdict_of(response, prompt=transcript(row["prompt"]), answers=gold or (), subject=row.get("subject", ""))
    return {**row, "response": response, "verdict": verdict, "rouge_l_recall": gold and recall(response, gold)}


def recall(response: str, gold: str | list[str]) -> float:
    """ROUGE-L recall of the best of several answers, whatever the response is, as for probes."""
    text = judged_text(response).strip() or NO_ANSWER
    return max(rouge_l(text, answer).recall for answer in answer_list(gold))


def score(rows: list[Row]) -> Scores:
    """By side the share of refusals and, where every row has a gold answer, the recall; percent."""
    columns = {}
    for split in ("forget", "boundary"):
        side = [row for row in rows if row["split"] == split]
        columns[f"{split}/refusal_rate"] = [100.0 * (row["verdict"] == "refusal") for row in side]
        if all(row["rouge_l_recall"] is not None for row in side):
            columns[split] = [100 * row["rouge_l_recall"] for row in side]
    return Scores(columns)
