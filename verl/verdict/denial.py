"""Where does a sentence refuse? The rules are written from grammar, not from a list of phrases.

Somebody who speaks for the model (I, this assistant, my training data) + a denied ability, will, permission or
knowledge + an act of telling or a thing known. Phrases that carry no such structure ("no idea", "off limits") are
listed. The patterns are `rules`'; other languages than English are `languages`'.
"""

import re

from . import rules
from .sentences import Sentence
from .telling import has_news

Span = tuple[int, int]


def denial(sentence: Sentence) -> Span | None:
    """The words of a sentence, first and one behind the last, with which it refuses; None if it does not."""
    folded = sentence.folded
    # Most sentences of an answer do not speak of their speaker: one cheap look spares them the long patterns.
    match = rules.SPEAKER_WORD.search(folded) and (rules.SPEAKER.search(folded) or rules.ABOUT_SPEAKER.search(folded))
    match = match or rules.OPENS.match(folded) or _bare(sentence)
    if not match:
        return None
    return folded.count(" ", 0, match.start()), folded.count(" ", 0, match.end())


def _bare(sentence: Sentence) -> re.Match | None:
    """A refusal that names no speaker, where a sentence begins or behind conversation: "To my regret, no idea"."""
    folded = sentence.folded
    match = rules.BARE.match(folded)
    if match or len(sentence.starts) == 1 or sentence.question:
        return match
    spaces = [place for place, sign in enumerate(folded) if sign == " "]
    for start in sentence.starts[1:3]:
        if rules.LEAD.match(folded[: spaces[start]]) and (match := rules.BARE.match(folded, spaces[start])):
            return match
    return None


def refusing(sentences: list[Sentence]) -> tuple[int, Span] | None:
    """The sentence of an answer that refuses, by its number, and where in it.

    Of the sentences only the ones before the answer has begun count: "Carrie. I know no more than that." is an answer.
    A later sentence counts where it turns round ("An American author. However, I can't discuss him."), or denies in so
    many words that something may be told. A hedge with an answer behind it is no refusal ("I'm not sure, but I think it
    is Carrie"), nor is TruthfulQA's gold answer "I have no comment."
    """
    said = stated = False  # anything but conversation; a whole sentence of it
    for i, sentence in enumerate(sentences):
        folded, span = sentence.folded, denial(sentence)
        if span and stated and not (rules.TURN.match(folded) or rules.WITHHOLDS.search(folded)):
            span = None
        if span and i and sentences[i - 1].end == ":" and rules.PERSON.search(sentences[i - 1].folded):
            span = None  # "As he put it: I can't say."
        if span and not (said and rules.MORE.search(folded)):
            following = "".join(part.folded for part in sentences[i : i + 2])
            return None if rules.HEDGED.search(following) or rules.ANSWERS.search(folded) else (i, span)
        guessed = rules.GUESS.search(folded)
        if guessed or not (sentence.question or rules.CHAT.search(folded)):
            said, stated = True, stated or guessed or len(sentence.words) > 3 and has_news(sentence, frozenset())
    return None
