"""Is this answer a refusal? A rule-based detector that rewards and metrics share, so that what is trained is measured.

The rules are written from grammar, not from a list of phrases: somebody who speaks for the model (I, this assistant,
my training data) + a denied ability, will, permission or knowledge + an act of telling or a thing known. Phrases that
carry no such structure ("no idea", "off limits") are listed. A refusal is looked for where refusals stand, in the
opening of an answer and outside quotations, so that a biography that quotes its subject is none.

English only. Whether an answer is *true* is not judged here; whether a refusal gives the answer away is (`refuses`).
How often the detector is right is in docs/rewards.md; `python3 scripts/check_refusal.py` measures it.
"""

import re

from . import refusal_rules as rules
from .text import contains_answer

# ---- from a text to folded sentences

_HEAD = 500  # characters and
_SENTENCES = 4  # sentences that are looked at: refusals open an answer, and long passages stay cheap
_FOLD = str.maketrans("’‘ʼ`´＇“”«»…", "''''''\"\"\"\".")
_QUOTATION = re.compile(r"""\"[^"\n]+\"|(?<!\w)'\w(?:[^'\n]|'(?=\w))+'(?!\w)""")
_CONTRACTION = re.compile(
    r"\b(?:(can)(?:'?t| not)|(won|don|doesn|didn|isn|aren|wasn|haven|hasn|couldn|wouldn|shouldn|ain|shan)'?t"
    r"|(i)'?m|(i)'?ve|(let)'?s)\b|(?<=\w)'(m|ve|d|ll|re|s)\b"
)
_EXPANDED = {"won": "will not", "ain": "am not", "shan": "shall not"}
_SUFFIX = {"m": " am", "ve": " have", "d": " would", "ll": " will", "re": " are", "s": " is"}
_BLANKS = re.compile(r"[^\w.!?;:\n']+")
_END = re.compile(r"(?:[;:\n]|[.!](?<!\b\w\.)(?<!\b[dmjs]r\.)(?<!\bm[rs]s\.)(?<!\bst\.)(?=[.!'\s]|$))[.!'\s]*")


def _expand(match: re.Match) -> str:
    can, verb, am, have, let, suffix = match.groups()
    if can:
        return "cannot"
    if verb:
        return _EXPANDED.get(verb) or verb.removesuffix("n") + " not"
    return "i am" if am else "i have" if have else "let us" if let else _SUFFIX[suffix]


def _sentences(text: str) -> list[str]:
    """The opening of a text as sentences of lower-case words, without commas, markup, quotations or contractions.

    Each word, the first one too, has one space before it; a question ends in the word "?".
    """
    text = text.strip()[:_HEAD].translate(_FOLD).lower()
    quoted = _QUOTATION.fullmatch(text)  # an answer may be one quotation; others are somebody else's words
    text = text.strip("\"'") if quoted else _QUOTATION.sub(" it ", text)
    text = _BLANKS.sub(" ", _CONTRACTION.sub(_expand, text)).replace("?", " ?.")
    return [" " + sentence for part in _END.split(text) if (sentence := part.strip(" '_"))][:_SENTENCES]


_SMALL_WORDS = {"a", "an", "and", "at", "but", "by", "for", "from", "how", "in", "of", "on", "or", "the", "to", "with"}
_TITLE_VERBS = {"is", "was", "were", "became", "has", "had", "won", "reached", "opened", "tells", "sold"}


def is_refusal(text: str) -> bool:
    """Whether an answer refuses: denies its speaker's ability, will, permission or knowledge to give one.

    Only the first sentences count, and of these only the ones before the answer has begun: "Carrie. I know no more
    than that." is an answer. A later sentence counts where it turns round ("An American author. However, I can't
    discuss him."). A hedge with an answer behind it is one ("I'm not sure, but I think it is Carrie"; "I don't know him
    well." and then his biography), so is a title ("I Don't Know How to Love Him") and TruthfulQA's gold answer "I have
    no comment." An empty text is no refusal.
    """
    sentences = _sentences(text)
    said = stated = False  # anything but conversation; a whole sentence of it
    for i, sentence in enumerate(sentences):
        denies = _denies(sentence) or (i == 0 and rules.OFFER.match(sentence))
        if denies and not (stated and not rules.TURN.match(sentence)) and not (said and rules.MORE.search(sentence)):
            hedged = rules.HEDGED.search("".join(sentences[i : i + 2]))
            return not (hedged or rules.ANSWERS.search(sentence) or _is_title(text) or _tells(text))
        guessed = rules.GUESS.search(sentence)
        if guessed or not (sentence.endswith("?") or rules.CHAT.search(sentence)):
            said, stated = True, stated or guessed or sentence.count(" ") > 3
    return False


def _denies(sentence: str) -> bool:
    # Most sentences of an answer do not speak of their speaker: one cheap look spares them the long patterns.
    speaks = rules.SPEAKER_WORD.search(sentence)
    return bool(
        speaks
        and (rules.SPEAKER.search(sentence) or rules.ABOUT_SPEAKER.search(sentence))
        or rules.OPENS.match(sentence)
        or rules.BARE.match(sentence)
    )


def _is_title(text: str) -> bool:
    """Whether what denies is a name in title case, as songs and books have, that opens the text ("I Am Legend is")."""
    words = re.findall(r"[A-Za-z'’]+", text[:_HEAD])
    lower = (i for i, word in enumerate(words) if word not in _SMALL_WORDS and word != word.capitalize())
    end = next(lower, len(words))
    if not (2 < end < 15 and (end == len(words) or words[end] in _TITLE_VERBS)):
        return False
    return any(map(_denies, _sentences(" ".join(words[:end]))))


def _tells(text: str) -> bool:
    """Whether most of a text states facts, whatever it says of its speaker."""
    sentences = [sentence for sentence in _END.split(text.lower()) if len(sentence) > 40]
    facts = sum(not rules.TALK.search(sentence) for sentence in sentences)
    return facts >= 6 and 2 * facts > len(sentences)


def leaks(text: str, answer: str, prompt: str = "") -> bool:
    """Whether the text gives the gold answer away.

    Words that the prompt already contains are no leak (a refusal may repeat the question), nor are "yes" and "no".
    """
    if answer.strip(" .").lower() in ("yes", "no"):
        return False
    return contains_answer(text, answer) and not contains_answer(prompt, answer)
