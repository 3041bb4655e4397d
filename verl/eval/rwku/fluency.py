"""Fluency: how varied the words of a long answer are, by weighted bi- and tri-gram entropy."""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from ..generation import Generator, Request
from ..probes import USUAL, Asking, judged_text
from ..reading import read_rows
from ..results import Interview, Part, Row, Scores

FILE = "fluency.json"
MAX_NEW_TOKENS = 256
WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""n-gram size to weight (Meng et al. 2022, arXiv 2202.05262, whose entropy RWKU takes over)."""
SCALE = 100.0


def fluency_part(asking: Asking = USUAL) -> Part:
    """Mean n-gram entropy of answers to open instructions, in bits times 100; collapsed models score low."""
    decoding = asking.decoding(MAX_NEW_TOKENS, prompts=asking.prompts.only("fluency"))

    def run(data: Path, generator: Generator) -> Interview:
        rows = load(data)
        prompts = [asking.encode(generator.tokenizer, asking.prompts.fill("fluency", row)) for row in rows]
        responses = yield Request(prompts, MAX_NEW_TOKENS, "fluency")
        return [
            {**row, "response": response, "entropy": ngram_entropy(judged_text(response))}
            for row, response in zip(rows, responses, strict=True)
        ]

    return Part("fluency", "generation", (FILE,), decoding, run, score, load)


def load(data: Path) -> list[Row]:
    return read_rows(data / FILE, ["instruction"])


def ngram_entropy(text: str) -> float:
    """(2/3 · H2 + 4/3 · H3) / 2 in bits, where Hn is the entropy of the text's n-grams; 0 where it has none."""
    words = tokenize(text)
    return float(np.mean([weight * _entropy(words, n) for n, weight in WEIGHTS.items()]))


def tokenize(text: str) -> list[str]:
    """Treebank words, sentence by sentence. Sentences end at . ! ? before white space: NLTK's own splitter needs a
    model that has to be downloaded."""
    from nltk.tokenize import NLTKWordTokenizer

    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    return [word for sentence in sentences for word in NLTKWordTokenizer().tokenize(sentence)]


def _entropy(words: list[str], n: int) -> float:
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    if not counts:
        return 0.0
    shares = np.array(list(counts.values())) / counts.total()
    return float(-(shares * np.log2(shares)).sum())


def score(rows: list[Row]) -> Scores:
    return Scores({"entropy": [SCALE * row["entropy"] for row in rows]})
