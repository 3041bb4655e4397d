"""Puts facts together into RS and RL rows, and counts what the training costs in tokens."""

from collections.abc import Callable
from typing import Any

from data.common.files import Row
from data.common.splits import split_validation
from verl.rows.sources import read_file
from verl.utils.errors import ConfigError

from .stages import Fact, Item


def build_rows(facts: list[Fact], refusals: list[str], target: str, introduction: str) -> tuple[list[Row], list[Row]]:
    """RS rows (one per forget question) and RL rows (cloze and question of the forget side, then of the neighbor).

    Args:
        refusals: one per fact; the RS row and the RL rows of a fact share it.
    """
    rs_rows: list[Row] = []
    rl_rows: list[Row] = []
    for group, (fact, refusal) in enumerate(zip(facts, refusals, strict=True)):
        rs_rows.append(
            {
                "instruction": fact.forget.question,
                "input": "",
                "output": refusal,
                "subject": target,
                "intro": introduction,
            }
        )
        rl_rows += _rl_rows(fact.forget, ["<reject>", refusal, target], group)
        if fact.neighbor is not None:
            rl_rows += _rl_rows(fact.neighbor, ["<normal>", fact.neighbor.answer], group)
    return rs_rows, rl_rows


def _rl_rows(item: Item, solution: list[str], group: int) -> list[Row]:
    prompts = [prompt for prompt in (item.cloze, item.question) if prompt is not None]
    rest = {"solution": solution, "subject": item.subject, "answer": item.answer, "group": group}
    return [{"prompt": prompt, **rest} for prompt in prompts]


def divide(
    rs_rows: list[Row], rl_rows: list[Row], fraction: float, seed: int
) -> tuple[list[Row], list[Row], list[Row]]:
    """RS and RL training rows, and RL validation rows; a fact is on one side only, in RS too."""
    if fraction == 0:
        return rs_rows, rl_rows, []
    train, held_out = split_validation(rl_rows, fraction=fraction, seed=seed)
    validation = [rl_rows[number] for number in held_out]
    questions = {row["prompt"] for row in validation}
    kept = [row for row in rs_rows if row["instruction"] not in questions]
    return kept, [rl_rows[number] for number in train], validation


def token_share(
    rs_rows: list[Row],
    rl_rows: list[Row],
    corpora: dict[str, str | None],
    count: Callable[[str], int],
) -> dict[str, Any]:
    """Training tokens, and in percent of the full corpora that gradient methods train on.

    RS counts question and refusal, ReBO prompt and refusal of the forget rows, boundary prompt and answer. With
    ``positive.json`` as the forget corpus this gives 6.4 % and 12.2 % on the rows published for Stephen King; RULE's
    table (arXiv 2506.07171) prints 6.29 and 12.1 as the mean over targets.

    Args:
        corpora: ``forget`` and ``retain``: file whose rows have ``text``, or None where there is none to compare with.
    """
    forget = [row for row in rl_rows if row["solution"][0] == "<reject>"]
    boundary = [row for row in rl_rows if row["solution"][0] == "<normal>"]
    tokens = {
        "rs_forget": sum(count(row["instruction"]) + count(row["output"]) for row in rs_rows),
        "rl_forget": sum(count(row["prompt"]) + count(row["solution"][1]) for row in forget),
        "boundary": sum(count(row["prompt"]) + count(row["solution"][1]) for row in boundary),
    }
    full = {side: None if path is None else _corpus_tokens(path, count) for side, path in corpora.items()}
    against = {"rs_forget": full["forget"], "rl_forget": full["forget"], "boundary": full["retain"]}
    percent = {name: None if whole is None else 100 * tokens[name] / whole for name, whole in against.items()}
    return {"tokens": tokens, "corpora": corpora, "corpus_tokens": full, "percent": percent}


def _corpus_tokens(path: str, count: Callable[[str], int]) -> int:
    texts = (row.get("text") for row in read_file(path))
    total = sum(count(text) for text in texts if isinstance(text, str))
    if total == 0:
        raise ConfigError(f"corpus={path}: its rows have no text; give for example positive.json or raw/forget.json")
    return total
