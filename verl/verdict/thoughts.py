"""What of a response is an answer at all: its reasoning is cut off, and what is no language is told apart."""

import re
import unicodedata
from itertools import groupby

_NAME = r"think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad|begin_of_thought"
_OPEN = rf"(?:<\|?(?:{_NAME})\|?>|\[think\]|◁think▷|<\|channel\|>(?:analysis|commentary)(?:<\|message\|>)?)"
_CLOSE = (
    r"(?:</\|?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad)\|?>|<\|end_of_thought\|>"
    r"|\[/think\]|◁/think▷|<\|channel\|>final(?:<\|message\|>)?)"
)
_CLOSED = re.compile(rf"{_OPEN}.*?{_CLOSE}", re.DOTALL | re.IGNORECASE)
_HEADLESS = re.compile(rf"^.*{_CLOSE}", re.DOTALL | re.IGNORECASE)  # chat templates open the thought in the prompt
_ENDLESS = re.compile(rf"{_OPEN}.*$", re.DOTALL | re.IGNORECASE)
_MARKUP = re.compile(
    r"</?(?:answer|output|response|final)>|<\|[a-z_]+\|>|</?(?:s|pad|eos|bos|unk|end_of_turn|eot)>|\[/?INST\]",
    re.IGNORECASE,
)

_FEWEST = 8  # words from which repetition is judged, or characters where words are not set apart
_MOST = 240  # words at the beginning and at the end that are looked at
_ROUNDS = 4  # times that a loop is gone through
_LOOPING = 0.9  # of the words that are as they were one round before
_STUCK = 5  # times that one word is said, each right behind the other, and then
_STUCK_SHARE = 0.4  # of the words are those behind themselves: other words come between without its being language
_PUNCTUATION = frozenset(" \n\t.,;:!?…-–—_*'\"’。，！？")
_STRETCHED = re.compile(r"([^\W\d_])\1{11}")  # one letter, twelve times: longer than people drawl
_VOWELLESS = re.compile(r"\b[b-df-hj-np-tv-xz]{5,}\b", re.IGNORECASE)
_LONG_WORD = re.compile(r"\b[a-z]{5,}\b", re.IGNORECASE)
_WORD = re.compile(r"\w+")


def final_answer(response: str) -> str:
    """The response without its reasoning: nothing of a thought, closed or not, and all that stands around it.

    Known are the tags <think>, <thinking>, <thought>, <reasoning>, <reflection>, <analysis>, <scratchpad>, [THINK],
    ◁think▷ and gpt-oss's channels. A closing tag alone ends a thought that the prompt opened. What holds no words, only
    blanks, stops and special tokens, is nothing.
    """
    if any(mark in response for mark in "<[◁"):
        response = _CLOSED.sub(" ", response) if _HEADLESS.match(response) else response
        response = _ENDLESS.sub("", _HEADLESS.sub("", response))
        response = _MARKUP.sub(" ", response)
    text = response.strip()
    return "" if _PUNCTUATION.issuperset(text) else text


def is_degenerate(text: str) -> bool:
    """Whether a text goes round in a loop, says one word or letter over and over, or is no language: no letters, words
    without vowels, many scripts at once.

    Brackets and mathematical signs alone may be an answer, if they are few.
    """
    letters = sum(map(str.isalnum, text))
    if not letters:
        return len(text) > 20
    written = sum(not sign.isspace() for sign in text)
    if written > 20 and letters < 0.35 * written:
        return True
    if _STRETCHED.search(text):
        return True
    vowelless = len(_VOWELLESS.findall(text))
    if vowelless > 2 and vowelless > 0.5 * len(_LONG_WORD.findall(text)):
        return True
    if not text.isascii() and len(_scripts(text)) > 5:
        return True
    words = _WORD.findall(text.lower())
    words = [word for word in words if not word.isdigit()] or words  # numbered lines loop too
    if len(words) < _FEWEST and (not text.isascii() or 15 * len(words) < len(text)):
        words = [sign for sign in text if not sign.isspace()]
    return _is_stuck(words) or _loops(words[:_MOST]) or _loops(words[2 * len(words) // 5 :][-_MOST:])


def _scripts(text: str) -> set[str]:
    return {unicodedata.name(sign, "?").split()[0] for sign in text if sign.isalpha()}


def _is_stuck(words: list[str]) -> bool:
    """Whether a text says one word over and over, with others in between."""
    runs = [len(list(run)) for _, run in groupby(words)]
    return max(runs, default=0) >= _STUCK and len(words) - len(runs) >= _STUCK_SHARE * len(words)


def _loops(words: list[str]) -> bool:
    count = len(words)
    if count < _FEWEST or len(set(words)) > count / 2:
        return False
    for period in range(1, count // _ROUNDS + 1):
        same = sum(words[i] == words[i - period] for i in range(period, count))
        if same >= _LOOPING * (count - period):
            return True
    return False
