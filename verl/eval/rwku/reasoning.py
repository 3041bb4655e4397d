"""BIG-Bench Hard: three worked examples, then a question; the answer is what follows "the answer is"."""

import re
import string
from pathlib import Path

from ..generation import Generator, Request
from ..probes import NO_ANSWER, USUAL, Asking, judged_text
from ..reading import read_rows
from ..results import Interview, Part, Row, Scores

FILE = "retain_bbh.json"
MAX_NEW_TOKENS = 256
NEXT_QUESTION = "\n\nQ:"


def bbh_part(asking: Asking = USUAL) -> Part:
    """3-shot chain of thought; the shots come with the data. No stop string: RWKU has none."""
    decoding = asking.decoding(MAX_NEW_TOKENS, prompts=asking.prompts.only("bbh", "short_answer"))

    def run(data: Path, generator: Generator) -> Interview:
        rows = load(data)
        prompts = [asking.opened(generator.tokenizer, "short_answer", bbh_prompt(row, asking)) for row in rows]
        responses = yield Request(prompts, MAX_NEW_TOKENS, "bbh")
        return [_scored(row, response) for row, response in zip(rows, responses, strict=True)]

    return Part("bbh", "generation", (FILE,), decoding, run, score, load)


def load(data: Path) -> list[Row]:
    return read_rows(data / FILE, ["task", "question", "answer", "cot"])


def bbh_prompt(row: Row, asking: Asking) -> str:
    """The worked examples and the question."""
    return asking.prompts.fill("bbh", row, cot=row["cot"].strip())


def _scored(row: Row, response: str) -> Row:
    text = judged_text(response)
    prediction = extract_answer(text)
    return {
        **{key: row[key] for key in ("task", "question", "answer")},
        "response": response,
        "prediction": prediction,
        "exact_match": float(exact_match(prediction, row["answer"])),
        "exact_match_over_characters": float(exact_match_over_characters(text, row["answer"])),
    }


def extract_answer(response: str) -> str:
    """What stands between the first "the answer is" and the end of its sentence or line; without one, all of it.

    A question that the model goes on to ask, and all behind it, is not part of the response.
    """
    response = response.split(NEXT_QUESTION)[0]
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


def exact_match_over_characters(response: str, answer: str) -> bool:
    """RWKU's published score of a whole response, kept to compare with its table and for nothing else.

    The prediction is what stands on one line between the first "The answer is " or "the answer is " and the next
    period; without the words, the blank behind them or the period it is the whole response, and an empty one is
    NOANSWER. It is compared with the *characters* of the answer as if they were alternative answers, without
    punctuation and articles: "True" never matches "True", and a prediction that loses all its characters, such as
    "(A)", matches any "(B)".
    """
    match = re.search(r"[tT|]he answer is (.*?)\.", response)
    prediction = (match.group(1) if match else response).strip() or NO_ANSWER
    return any(squad_words(prediction) == squad_words(character) for character in answer)


def squad_words(text: str) -> list[str]:
    """Lower-cased words without ASCII punctuation and articles (Rajpurkar et al. 2016)."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(?:a|an|the)\b", " ", bare).split()


def score(rows: list[Row]) -> Scores:
    names = ("exact_match", "exact_match_over_characters")
    return Scores({name: [100 * row[name] for row in rows] for name in names})
