"""BIG-Bench Hard: three worked examples, then a question; the answer is what follows "the answer is"."""

import re
import string
from pathlib import Path

from verl.utils.chat import encode_prompt

from ..generation import Generator
from ..probes import answer_prefix, read_rows
from ..results import Part, Row, Scores

FILE = "retain_bbh.json"
MAX_NEW_TOKENS = 256
STOP = ["\n\nQ:"]
INSTRUCTION = (
    "Solve the next problem in the same way: reason step by step, and finish with a sentence that begins "
    '"So the answer is".'
)


def bbh_part() -> Part:
    """3-shot chain of thought; the shots come with the data."""
    decoding = {"temperature": 0.0, "max_new_tokens": MAX_NEW_TOKENS, "stop": STOP, "prompt": INSTRUCTION}
    return Part("bbh", "generation", (FILE,), decoding, run, score, load)


def load(data: Path) -> list[Row]:
    return read_rows(data / FILE, ["task", "question", "answer", "cot"])


def run(data: Path, generator: Generator) -> list[Row]:
    rows = load(data)
    tokenizer = generator.tokenizer
    prompts = [
        encode_prompt(tokenizer, f"{row['cot'].strip()}\n\n{INSTRUCTION}\n\nQ: {row['question']}")
        + answer_prefix(tokenizer, "A:")
        for row in rows
    ]
    responses = generator.generate(prompts, max_new_tokens=MAX_NEW_TOKENS, stop=STOP, desc="bbh")
    return [
        {
            **{key: row[key] for key in ("task", "question", "answer")},
            "response": response,
            "prediction": (prediction := extract_answer(response)),
            "exact_match": float(exact_match(prediction, row["answer"])),
            "exact_match_over_characters": float(exact_match_over_characters(prediction, row["answer"])),
        }
        for row, response in zip(rows, responses, strict=True)
    ]


def extract_answer(response: str) -> str:
    """What stands between the first "the answer is" and the end of its sentence or line; without one, all of it."""
    match = re.search(r"the answer is:?\s*(.*?)(?:\.(?=\s|$)|\n|$)", response, flags=re.IGNORECASE)
    return (match.group(1) if match else response).strip()


def exact_match(prediction: str, answer: str) -> bool:
    """Equality of the whole answers, after folding case, white space, quotes, bold marks and a final period.

    Brackets stay, since some answers consist of nothing else, except around a single letter: an option "(A)" may be
    given as "A".
    """
    return _fold(prediction) == _fold(answer)


def _fold(text: str) -> str:
    folded = " ".join(text.casefold().replace("**", "").split()).strip("\"'`").rstrip(".").strip()
    return re.sub(r"^\(([a-z])\)$", r"\1", folded)


def exact_match_over_characters(prediction: str, answer: str) -> bool:
    """RWKU's published behaviour, kept to compare with its table and for nothing else.

    It iterates over the answer's characters as if they were alternative answers: "True" never matches "True", and a
    prediction that normalises to nothing, such as "(A)", matches any "(B)".
    """
    return any(_squad_words(prediction) == _squad_words(character) for character in answer)


def _squad_words(text: str) -> list[str]:
    """Lower-cased words without ASCII punctuation and articles (Rajpurkar et al. 2016)."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(?:a|an|the)\b", " ", bare).split()


def score(rows: list[Row]) -> Scores:
    names = ("exact_match", "exact_match_over_characters")
    return Scores({name: [100 * row[name] for row in rows] for name in names})
