"""VerbMem and KnowMem: does the model continue the corpus word for word, and does it answer questions about it?

Both generate greedily. KnowMem's few-shot examples are those of the split's own file (``forget_qa_icl``,
``retain_qa_icl``), all of them and in their order for every question: nothing about a question or its label chooses
them. Left out: MUSE's max-over-examples aggregates.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl.utils.chat import Prompt, few_shot
from verl.verdict.answers import answer_list

from ..generation import Generator, Request
from ..likelihood import encode_raw
from ..probes import USUAL, Asking, judged_text
from ..reading import read_rows
from ..results import Interview, Part, Row, Scores
from .config import MuseConfig, PromptStyle
from .metrics import rouge_l

VERBMEM_FILE = "verbmem/forget.json"
VERBMEM_TOKENS = 128
KNOWMEM_TOKENS = 32
PERCENT = 100.0
ENDS = ("\n\n", "\nQuestion", "Question:")
"""Where MUSE cuts an answer, one mark after the other: at a blank line, and at the next question."""


def verbmem_part(config: MuseConfig, asking: Asking = USUAL) -> Part:
    """ROUGE-L F1 between the greedy continuation of a passage (128 new tokens) and what follows in the corpus."""
    style = config.prompt_style or "raw"

    def read(data: Path) -> list[Row]:
        return read_rows(data / VERBMEM_FILE, ["prompt", "gt"])

    def run(data: Path, generator: Generator) -> Interview:
        rows = read(data)
        prompts = [_encode(generator.tokenizer, row["prompt"], style, asking) for row in rows]
        responses = yield Request(prompts, VERBMEM_TOKENS, "verbmem")
        references = [_first_tokens(generator.tokenizer, row["gt"], VERBMEM_TOKENS) for row in rows]
        return [
            {**row, "reference": reference, "response": response, **_scores(judged_text(response), [reference])}
            for row, reference, response in zip(rows, references, responses, strict=True)
        ]

    decoding = asking.decoding(VERBMEM_TOKENS, prompt_style=style)
    return Part("verbmem", "generation", (VERBMEM_FILE,), decoding, run, _percent, read)


def knowmem_part(split: str, config: MuseConfig, asking: Asking = USUAL) -> Part:
    """ROUGE-L F1 and recall of few-shot answers (32 new tokens); ``split`` is ``forget`` or ``retain``."""
    questions_file, shots_file = f"knowmem/{split}_qa.json", f"knowmem/{split}_qa_icl.json"
    name = f"knowmem_{split}"

    def read(data: Path) -> tuple[list[Row], list[Row]]:
        questions = read_rows(data / questions_file, ["question"], answers=["answer"])
        return questions, read_rows(data / shots_file, ["question", "answer"])

    def run(data: Path, generator: Generator) -> Interview:
        rows, shots = read(data)
        style = resolve_style(generator.tokenizer, config.prompt_style)
        prompts = [few_shot_prompt(generator.tokenizer, shots, row["question"], style, asking) for row in rows]
        responses = yield Request(prompts, KNOWMEM_TOKENS, name)
        return [_answered(row, response) for row, response in zip(rows, responses, strict=True)]

    style = config.prompt_style or "chat where there is a template, else raw"
    decoding = asking.decoding(KNOWMEM_TOKENS, prompt_style=style, ends=list(ENDS))
    return Part(name, "generation", (questions_file, shots_file), decoding, run, _percent, read)


def resolve_style(tokenizer: Any, style: PromptStyle | None) -> PromptStyle:
    """KnowMem's style in force: a chat model is asked in its own format unless told otherwise."""
    return style or ("chat" if tokenizer.chat_template else "raw")


def few_shot_prompt(
    tokenizer: Any, shots: Sequence[Row], question: str, style: PromptStyle, asking: Asking = USUAL
) -> list[int]:
    """Token ids of the shots with their answers and the question with its answer open (``chat.few_shot``)."""
    return _encode(tokenizer, few_shot(shots, question, as_chat=style == "chat"), style, asking)


def _encode(tokenizer: Any, prompt: Prompt, style: PromptStyle, asking: Asking) -> list[int]:
    """A conversation, or raw text; there a system message is a paragraph in front."""
    if style == "chat":
        return asking.encode(tokenizer, prompt)
    return encode_raw(tokenizer, f"{asking.system}\n\n{prompt}" if asking.system else prompt)


def _answered(row: Row, response: str) -> Row:
    answer = first_answer(judged_text(response))
    return {**row, "response": response, "scored": answer, **_scores(answer, answer_list(row["answer"]))}


def first_answer(response: str) -> str:
    """The answer in a response, as MUSE cuts it: several lines may belong to it, and one that opens with a blank line
    is empty."""
    for end in ENDS:
        response = response.split(end)[0]
    return response


def _first_tokens(tokenizer: Any, text: str, count: int) -> str:
    """The text's first ``count`` tokens: as much as the model may write (MUSE counts BOS among them, we do not)."""
    return tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)[:count], skip_special_tokens=True)


def _scores(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """The best recall and the best F1 over the references."""
    overlaps = [rouge_l(prediction, reference) for reference in references]
    return {"rouge_l_recall": max(one.recall for one in overlaps), "rouge_l_f1": max(one.f1 for one in overlaps)}


def _percent(rows: list[Row]) -> Scores:
    return Scores({name: [PERCENT * row[f"rouge_l_{name}"] for row in rows] for name in ("f1", "recall")})
