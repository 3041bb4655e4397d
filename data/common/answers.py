"""Finds the gold answer of a published forget row, which has none, in the other files of the RULE release.

A published forget row asks and is to be refused; what must not be told stands elsewhere, if anywhere:

- in the row's pair (`FB_instruction`), where it states the fact instead of leaving a blank;
- in `rl_rejection_with_fb_target.json` of ANOTHER target, whose boundary rows ask this target's questions and hold what
  the original model replied, five times over: the names, titles and years on which the replies agree.

A probe's answer is never taken: probes have no part in training. What is found goes to both prompts of a pair.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from typing import Any

from verl.verdict.answers import normalize

from .splits import STOPWORDS

Row = dict[str, Any]
AGREEMENT = 0.8
"""Share of the replies that must have a name for it to be the answer."""
FEWEST_REPLIES = 3
OPENING = 3
"""Sentences of a reply in which an answer is looked for; what follows is elaboration."""
STEM = 7
"""Letters."""
LONGEST_FILLED_IN = 6
"""Words. A pair that says more than this beyond its question is reworded, not filled in."""
_BLANK = re.compile(r"_{2,}")
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+|\n+")
_CAPITALISED = r"(?:[A-ZÀ-Þ][\w'’-]*|\d{4})"
_NAME = re.compile(rf"\"([^\"\n]{{3,60}})\"|({_CAPITALISED}(?: (?:(?:of|the|and|in|to|a|for|on|de) )?{_CAPITALISED})*)")
_LOWER_CASE = re.compile(r"(?<![\w'])[a-z]+")
_PLAIN = str.maketrans("“”’", '""\'', "*_")
_INSIDE = frozenset(["of", "the", "and", "a", "an", "in", "on", "to", "for"])
"""Words that an answer may have inside ("The Lord of the Rings")."""
_FUNCTION_WORDS = STOPWORDS | _INSIDE | {"called", "titled", "named", "known", "been"}
_NO_NAMES = frozenset(["s", "m", "d", "ll", "re", "bce", "ce", "bc", "ad"])


def gold_answers(
    links: Iterable[Row], replies: dict[str, list[str]], known: str
) -> dict[str, tuple[str, str | list[str]]]:
    """Normalised forget prompt to where its answer was found and the answer or answers.

    It was found in a ``column`` of the link, in the ``pair``, or in ``replies``.

    Args:
        links: rows of `reject_with_fb_neighbor_target.json`.
        replies: normalised question to the replies of the original model.
        known: names and introduction of the target; what stands there gives nothing away.
    """
    # Words that the replies also write in lower case ("may", "with you") would turn up in plain refusals.
    ordinary = {word for texts in replies.values() for text in texts for word in _LOWER_CASE.findall(text)}
    told = _stems(known) | _stems(" ".join(ordinary)) | _NO_NAMES
    found: dict[str, tuple[str, str | list[str]]] = {}
    for row in links:
        question, statement = row["instruction"], row["FB_instruction"]
        if gold := next((held for key in ("answer", "org_answer") if (held := _answer(row.get(key)))), None):
            origin = "column"
        elif gold := filled_in(question, statement):
            origin = "pair"
        else:
            asked = told | _stems(f"{question} {statement}")
            origin, gold = "replies", agreed_names(replies.get(normalize(question), []), asked)
        if not gold:
            continue
        for prompt in (question, statement):
            found.setdefault(normalize(prompt), (origin, gold))
    return found


def _answer(value: Any) -> str | list[str] | None:
    several = value if isinstance(value, list) else [value]
    return value if all(isinstance(one, str) and one for one in several) else None


def filled_in(question: str, statement: str) -> str | None:
    """The words by which a statement without a blank goes beyond its question, if they are one short run."""
    if _BLANK.search(statement):
        return None
    given, asked = statement.split(), _stems(question)
    said = [normalize(word) for word in given]
    new = [place for place, word in enumerate(said) if word not in _FUNCTION_WORDS and not _stems(word) <= asked]
    run = range(new[0], new[-1] + 1) if new else range(0)
    if not 0 < len(run) <= LONGEST_FILLED_IN or any(place not in new and said[place] not in _INSIDE for place in run):
        return None
    return " ".join(given[place] for place in run).strip(" .,;:!?\"'")


def agreed_names(replies: Sequence[str], told: Set[str]) -> list[str]:
    """Names, titles and years that nearly all replies have in their opening, normalised.

    Args:
        told: stems of words that give nothing away; a name of nothing else is none.
    """
    if len(replies) < FEWEST_REPLIES:
        return []
    votes = Counter(name for reply in replies for name in _names(reply))
    return [
        name
        for name, count in votes.most_common()
        if count >= AGREEMENT * len(replies) and not told.issuperset(_stems(name))
    ]


def _stems(text: str) -> set[str]:
    """The text's words, cut so that Confucius and Confucian are one."""
    return {word[:STEM] for word in normalize(text).split()}


def _names(reply: str) -> set[str]:
    """The names in the opening of a reply, normalised. A capital at the start of a sentence makes no name."""
    found: set[str] = set()
    for sentence in _SENTENCE_END.split(reply.translate(_PLAIN))[:OPENING]:
        for match in _NAME.finditer(sentence):
            name = normalize((match[1] or match[2]).removesuffix("'s"))
            opens = match.start() == 0 and " " not in name
            if len(name) > 2 and not opens:
                found.add(name)
    return found
