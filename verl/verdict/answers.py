"""Scores that compare a generated text with a gold answer: ROUGE-L, containment and token F1.

Rewards and metrics share these three, so that what is trained is what is measured. What a response is
(refusal, answer, ...) says `verl.verdict`; ROUGE with a stemmer, which MUSE asks for, comes from `rouge-score`.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from . import spelling


class RougeL(NamedTuple):
    """Fractions in [0, 1]."""

    recall: float
    precision: float
    f1: float


def rouge_l(hypothesis: str, reference: str) -> RougeL:
    """Summary-level ROUGE-L as the `rouge` package (1.0.1) computes it, equal in every digit.

    That package has its own reading of ROUGE-L, which RWKU's tables are made with: sentences end at every ".", words
    are case-sensitive and keep their punctuation, and the score counts *different* words: those on a longest common
    subsequence of any reference sentence with any hypothesis sentence, over all in the reference (recall) or in the
    hypothesis (precision). A text without a character besides "." scores zero here and raises there. The package
    recurses once a word and fails beyond about 1,000 words; this does not.
    """
    hypothesis_sentences, reference_sentences = _rouge_sentences(hypothesis), _rouge_sentences(reference)
    if not hypothesis_sentences or not reference_sentences:
        return RougeL(0.0, 0.0, 0.0)
    matched = set()
    for wanted in reference_sentences:
        for given in hypothesis_sentences:
            matched |= _lcs_words(wanted, given)
    recall = len(matched) / len({word for sentence in reference_sentences for word in sentence})
    precision = len(matched) / len({word for sentence in hypothesis_sentences for word in sentence})
    return RougeL(recall, precision, 2.0 * (precision * recall) / (precision + recall + 1e-8))


def _rouge_sentences(text: str) -> list[list[str]]:
    # A sentence of blanks holds one empty word, in the package and so here.
    return [sentence.split() or [""] for sentence in text.split(".") if sentence]


def _lcs_words(rows: list[str], columns: list[str]) -> set[str]:
    """The words of the longest common subsequence that the package's backtracking picks among equally long ones.

    Bit-parallel dynamic programming (Hyyrö 2004): the table's row i is one integer whose bit j is 0 where the length
    grows from column j to j + 1, so a row costs a few big-integer operations instead of a loop over the columns.
    """
    positions: dict[str, int] = {}
    for j, word in enumerate(columns):
        positions[word] = positions.get(word, 0) | 1 << j
    if positions.keys().isdisjoint(rows):
        return set()
    full = (1 << len(columns)) - 1
    table = [full]
    for word in rows:
        row, hits = table[-1], table[-1] & positions.get(word, 0)
        table.append((row + hits | row - hits) & full)

    def length(i: int, j: int) -> int:
        return j - (table[i] & (1 << j) - 1).bit_count()

    words, i, j = set(), len(rows), len(columns)
    while i and j:
        if rows[i - 1] == columns[j - 1]:
            i, j = i - 1, j - 1
            words.add(rows[i])
        elif length(i - 1, j) > length(i, j - 1):
            i -= 1
        else:
            j -= 1
    return words


_NOT_WORD = re.compile(r"[\W_]+")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_ACCENTS = dict.fromkeys(code for code in range(0x300, 0x370))


def normalize(text: str) -> str:
    """Fold a text to lower-case words with single spaces, so that spelling variants of an answer compare equal.

    In order: compatibility forms and accents are dropped ("Beyoncé" to "beyonce", "№" to "no"), case is folded
    ("Straße" to "strasse"), commas inside numbers go ("1,200" to "1200"), everything but letters and digits becomes a
    space (hyphens, curly and straight quotes, underscores: "King's" to "king s"), and the articles a, an, the go
    unless nothing else is left ("The The" stays). Scripts without case or spaces keep their letters.
    """
    text = unicodedata.normalize("NFKD", text).translate(_NO_ACCENTS).casefold()
    words = _NOT_WORD.sub(" ", _THOUSANDS.sub("", text)).strip()
    return " ".join(_ARTICLE.sub(" ", words).split()) or words


def answer_list(answers: str | Sequence[str]) -> list[str]:
    """The accepted answers, of which there may be one."""
    return [answers] if isinstance(answers, str) else [str(answer) for answer in answers]


def count_words(text: str) -> int:
    """Words and punctuation marks: what a token is where there is no tokenizer. Shares come out nearly the same."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def contains_answer(text: str, answer: str | Sequence[str]) -> bool:
    """Whether the answer (any one of several) occurs in the text: its words side by side, both normalised.

    Bounded by words: "King" is in "Stephen King's" but not in "Kingston", and "18" not in "1918". Scripts that set no
    space between words, or write particles and articles to them, are compared as `verl.verdict.spelling` says. The same
    answer may be written in other ways: a date in any order, a number as a word, a noun in the plural. An answer
    without a letter or a digit is contained in nothing.
    """
    given = f" {normalize(text)} "
    return any(_holds(text, given, each) for each in answer_list(answer))


def _holds(text: str, given: str, answer: str) -> bool:
    if spelling.written_otherwise(answer):
        return spelling.same_in_script(text, answer)
    wanted = normalize(answer)
    if not wanted:
        return False
    return f" {wanted} " in given or spelling.same_said(text, given.strip(), answer, wanted)


def token_f1(prediction: str, answers: str | Sequence[str]) -> float:
    """F1 of the bags of words, the best over the accepted answers: RWKU's TriviaQA score, which is SQuAD's.

    Words are lower-cased, ASCII punctuation is deleted (not replaced by a space, unlike in `normalize`) and a, an, the
    are dropped. Two empty bags agree (1.0), one empty bag does not (0.0).
    """
    given = _f1_words(prediction)
    return max(_bag_f1(given, _f1_words(answer)) for answer in answer_list(answers))


def _f1_words(text: str) -> Counter[str]:
    return Counter(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _bag_f1(given: Counter[str], wanted: Counter[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    common = (given & wanted).total()
    return 2.0 * common / (given.total() + wanted.total())
