"""VerbMem and KnowMem: does the model continue the corpus word for word, and does it answer questions about it?

Both generate greedily. KnowMem's few-shot examples are those of the split's own file (``forget_qa_icl``,
``retain_qa_icl``), all of them and in their order for every question: nothing about a question or its label chooses
them. Left out: MUSE's max-over-examples aggregates.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl.utils.chat import encode_prompt, few_shot

from ..generation import Generator
from ..probes import read_rows
from ..results import Part, Row, Scores
from .config import MuseConfig, PromptStyle
from .metrics import rouge_l

VERBMEM_FILE = "verbmem/forget.json"
VERBMEM_TOKENS = 128
KNOWMEM_TOKENS = 32
PERCENT = 100.0
NEXT_QUESTION = "Question:"


def verbmem_part(config: MuseConfig) -> Part:
    """ROUGE-L F1 between the greedy continuation of a passage (128 new tokens) and what follows in the corpus."""

    def read(data: Path) -> list[Row]:
        return read_rows(data / VERBMEM_FILE, ["prompt", "gt"])

    def run(data: Path, generator: Generator) -> list[Row]:
        rows = read(data)
        encode = encode_prompt if config.prompt_style == "chat" else encode_raw
        prompts = [encode(generator.tokenizer, row["prompt"]) for row in rows]
        responses = generator.generate(prompts, max_new_tokens=VERBMEM_TOKENS, desc="verbmem")
        references = [_first_tokens(generator.tokenizer, row["gt"], VERBMEM_TOKENS) for row in rows]
        return [
            {**row, "reference": reference, "response": response, **_scores(response, reference)}
            for row, reference, response in zip(rows, references, responses, strict=True)
        ]

    decoding = _decoding(config.prompt_style or "raw", VERBMEM_TOKENS)
    return Part("verbmem", "generation", (VERBMEM_FILE,), decoding, run, _verbmem_scores, read)


def knowmem_part(split: str, config: MuseConfig) -> Part:
    """ROUGE-L recall of few-shot answers (32 new tokens, first line); ``split`` is ``forget`` or ``retain``."""
    questions_file, shots_file = f"knowmem/{split}_qa.json", f"knowmem/{split}_qa_icl.json"
    name = f"knowmem_{split}"

    def read(data: Path) -> tuple[list[Row], list[Row]]:
        questions, shots = (read_rows(data / file, ["question", "answer"]) for file in (questions_file, shots_file))
        return questions, shots

    def run(data: Path, generator: Generator) -> list[Row]:
        rows, shots = read(data)
        style = resolve_style(generator.tokenizer, config.prompt_style)
        prompts = [few_shot_prompt(generator.tokenizer, shots, row["question"], style) for row in rows]
        responses = generator.generate(prompts, max_new_tokens=KNOWMEM_TOKENS, desc=name)
        return [_answered(row, response) for row, response in zip(rows, responses, strict=True)]

    decoding = _decoding(config.prompt_style or "chat where there is a template, else raw", KNOWMEM_TOKENS)
    return Part(name, "generation", (questions_file, shots_file), decoding, run, _knowmem_scores, read)


def resolve_style(tokenizer: Any, style: PromptStyle | None) -> PromptStyle:
    """KnowMem's style in force: a chat model is asked in its own format unless told otherwise."""
    return style or ("chat" if tokenizer.chat_template else "raw")


def few_shot_prompt(tokenizer: Any, shots: Sequence[Row], question: str, style: PromptStyle) -> list[int]:
    """Token ids of the shots with their answers and the question with its answer open (``chat.few_shot``)."""
    prompt = few_shot(shots, question, as_chat=style == "chat")
    return encode_prompt(tokenizer, prompt) if style == "chat" else encode_raw(tokenizer, prompt)


def _answered(row: Row, response: str) -> Row:
    answer = first_line(response)
    return {**row, "response": response, "scored": answer, **_scores(answer, row["answer"])}


def first_line(response: str) -> str:
    """The answer in a response: its first line that is not blank, up to a question the model goes on to ask."""
    return response.strip().split("\n")[0].split(NEXT_QUESTION)[0].strip()


def encode_raw(tokenizer: Any, text: str) -> list[int]:
    """The text behind BOS where the tokenizer has one: what a base model expects."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return bos + tokenizer.encode(text, add_special_tokens=False)


def _first_tokens(tokenizer: Any, text: str, count: int) -> str:
    """The text's first ``count`` tokens: as much as the model may write (MUSE counts BOS among them, we do not)."""
    return tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)[:count], skip_special_tokens=True)


def _scores(prediction: str, reference: str) -> dict[str, float]:
    overlap = rouge_l(prediction, reference)
    return {"rouge_l_recall": overlap.recall, "rouge_l_f1": overlap.f1}


def _verbmem_scores(rows: list[Row]) -> Scores:
    return Scores(
        {
            "f1": [PERCENT * row["rouge_l_f1"] for row in rows],
            "recall": [PERCENT * row["rouge_l_recall"] for row in rows],
        }
    )


def _knowmem_scores(rows: list[Row]) -> Scores:
    return Scores(
        {
            "recall": [PERCENT * row["rouge_l_recall"] for row in rows],
            "f1": [PERCENT * row["rouge_l_f1"] for row in rows],
        }
    )


def _decoding(style: str, max_new_tokens: int) -> dict[str, Any]:
    return {"temperature": 0.0, "max_new_tokens": max_new_tokens, "prompt_style": style}
