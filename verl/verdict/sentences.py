"""From a response to sentences of words, folded so that spelling does not matter to the rules that read them.

A quotation and a title ("I Can't Make You Love Me") are somebody else's words: to the rules they are one word, "it",
and so is a word of closing within a name ("The answer is Forbidden City."). The numeral I and the country US are told
from the pronouns by their capitals, so all this happens before letters are made small.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from .lexicon import words as word_set

_FOLD = str.maketrans("’‘ʼ`´＇“”«»…\u00a0\x00\x01", "''''''\"\"\"\".   ")  # \x00 and \x01 are marks below
_WIDE = {ord(wide): f"{narrow} " for wide, narrow in zip("。，！？：；、｡", ".,!?:;,.", strict=True)}
_QUOTATION = re.compile(r"""\"[^"\n]+\"|(?<![\w'])'\w(?:[^'\n]|'(?=\w))+'(?!\w)""")
_END = re.compile(  # not after an initial or an abbreviation; a colon or a stop within a number or a word ends nothing
    r"(?:[\n?]|[;:](?=\s|$)|[.!](?<!\b\w\.)(?<!\b[DMJSdmjs]r\.)(?<!\b[Mm][rs]s\.)(?<!\b[Ss]t\.)(?<!\bvs\.)"
    r"(?=[.!?'\"*_)\]\s]|$))[.!?'\"*_)\]\s]*"
)
_CONTRACTION = re.compile(
    r"\b(?:(can)(?:'?t| not)|(won|don|doesn|didn|isn|aren|wasn|weren|haven|hasn|hadn|couldn|wouldn|shouldn|ain|shan)'?t"
    r"|(i)'?m|(i)'?ve|(let)'?s)\b|(?<=\w)'(m|ve|d|ll|re|s)\b",
    re.IGNORECASE,
)
_EXPANDED = {"won": "will not", "ain": "am not", "shan": "shall not"}
_SUFFIX = {"m": " am", "ve": " have", "d": " would", "ll": " will", "re": " are", "s": " is"}
_TOKEN = re.compile(r"[\w'%]+(?:[.:][\w']+)*|[,()\[\]{}—–/]|(?<=\s)-+(?=\s)|\x00")
_BREAKS = frozenset(",()[]{}—–/")

_SMALL = "a|an|and|at|but|by|for|from|in|is|of|on|or|the|to|with"
_RUN = rf"[A-Z0-9(][\w'()]*(?:(?: (?:(?:{_SMALL}) )*|, (?:and|or) )[A-Z0-9(][\w'()]*)+"
_PRONOUN = r"(?:I|We|You)(?:'\w+)? [A-Z]"
_INNER_RUN = re.compile(rf"(?<=[a-z0-9,'(-] )\(?{_RUN}(?:, (?={_PRONOUN}){_RUN})?")
_FIRST_RUN = re.compile(
    rf"(?:(?<=[.!?:] )|(?<=\n)|^){_RUN}(?= (?:is|was|were|became|has|had|won|reached|opened|tells|sold"
    rf"|peaked)\b|[.!?]?\s*$)"
)
_TITLE_MARK = re.compile(  # a sentence writes no capital behind a pronoun, and no verb of refusing with one
    r"\b(?:I|We|You|They|She|He|It|My|Me)(?:'\w+)? (?:[A-Z]|the [A-Z]|a [A-Z])"
    r"|\b(?:Don't|Can't|Won't|Cannot|Couldn't|Wouldn't|Shouldn't|Didn't|Ain't|Not|Never|No|Nothing|Nobody|Unable|Let's"
    r"|Are You|Do You|What's|Who's)\b"
)
_NUMERAL = re.compile(
    r"([\w']+) I(?![\w'])(?! (?:am|have|do|don't|can|can't|cannot|will|won't|know|must|regret|decline)\b)"
)
_ENUMERATED = re.compile(r"\bI\b(?=,? (?:(?:and|or|nor|&) )?I{2,3}\b| only$| only[.,])")
_LIST_MARK = re.compile(r"^\s*(?:\(?\d{1,2}[.)]|[#>*•-]+)\s+", re.MULTILINE)
_COUNTRY = re.compile(r"\bUS\b")
_NUMBERED = word_set(
    "war part type class phase volume book chapter statement level grade stage act section article title group"
)
_NOT_NUMBERED = word_set(
    """and but or so no yes well oh ah sorry because since as if when while though although however what who which
    that all nope ok okay hi hello hey dear alas here there then now again still yet only where why how whatever
    unlike than nothing something anything everything neither nor not perhaps maybe sir madam user human"""
)
_CLOSING = word_set(
    """private confidential restricted classified prohibited forbidden removed withheld redacted outside beyond
    unavailable inaccessible blocked sealed secret denied declined refused rejected banned barred"""
)
_JOINING = word_set("a an and of or the to")
_CALLED = word_set("answer response name title called named titled entitled")
_CLOSABLE = word_set(
    """information info detail details data content material materials knowledge request requests query question
    questions topic matter matters"""
)
_COPULAS = word_set("is are was were be been being remain remains stay stays")


@dataclass(frozen=True)
class Sentence:
    """``words`` as they were written, a quotation as one; ``folded`` the same, lower case, a space before each.

    A clause may begin at each of ``starts``: there a comma, a dash or a bracket came before; ``set_off`` are the places
    of dashes and brackets alone. ``end`` is the sign that
    the sentence ends with, if any; a question's ``folded`` ends in the word "?".
    """

    words: tuple[str, ...]
    starts: tuple[int, ...]
    set_off: frozenset[int]
    end: str

    @property
    def question(self) -> bool:
        return self.end == "?"

    @cached_property
    def folded(self) -> str:
        small = ["it" if " " in word or word[0] in "\"'" else word.lower() for word in self.words]
        for i, word in enumerate(self.words):
            if small[i] in _CLOSING and word[0].isupper() and _in_name(self.words, i):
                small[i] = "it"
        return " " + " ".join(small) + (" ?" if self.question else "")


def _in_name(words: tuple[str, ...], i: int) -> bool:
    """Whether a word of closing with a capital is part of a name: beside another capital, or what something is called.

    Not where a sentence begins, not in a text that writes every word with a capital, and not in emphasis ("That
    information is Strictly Confidential.").
    """
    before = [word.lower() for word in words[:i]]
    if i == 0 or not any(word[0].islower() and word not in _JOINING for word in words):
        return False
    first = i
    while first > 1 and (words[first - 1][0].isupper() or words[first - 1] in _JOINING):
        first -= 1
    behind = next((word for word in words[i + 1 :] if word not in _JOINING), "")
    alone = not behind[:1].isupper() and not any(word[0].isupper() for word in words[first:i])
    said_of = before[first - 1] in _COPULAS
    if alone:
        return (said_of or before[first - 1] in _CALLED) and not _CALLED.isdisjoint(before)
    emphatic = any(word.endswith("ly") for word in before[first:])
    return not emphatic and not (said_of and first > 1 and before[first - 2] in _CLOSABLE)


def sentences_of(text: str, most: int) -> list[Sentence]:
    """The first sentences of a text."""
    text = text.strip().translate(_FOLD).translate(_WIDE)
    if _QUOTATION.fullmatch(text):  # an answer may be one quotation
        text = text.strip("\"'")
    if "1." in text and "\n2." in text or text[:1] in "#>*•-":
        text = _LIST_MARK.sub("", text)
    if text.upper() == text:
        text = text.lower()
    masked: list[str] = []
    text = _mask(text, masked)
    masked.reverse()
    found, begin = [], 0
    for end in _END.finditer(text):
        _add(found, text[begin : end.start()], masked, end.group()[0])
        begin = end.end()
        if len(found) == most:
            return found
    _add(found, text[begin:], masked, "")
    return found


def _add(found: list[Sentence], part: str, masked: list[str], end: str) -> None:
    words, starts, set_off = [], [0], set()
    for token in _TOKEN.findall(_CONTRACTION.sub(_expand, part)):
        if token in _BREAKS or token[0] == "-":
            starts.append(len(words))
            set_off |= set() if token == "," else {len(words)}
        elif token == "\x00":
            words.append(masked.pop())
        elif token := token.strip("'_"):
            words.append(token)
    if words:
        starts = tuple(dict.fromkeys(start for start in starts if start < len(words)))
        found.append(Sentence(tuple(words), starts, frozenset(set_off), end))


def _mask(text: str, masked: list[str]) -> str:
    """The text with its quotations and titles as one character each; they go to ``masked`` in their order."""
    found = []

    def title(match: re.Match) -> str:
        name, before = match.group(), match.string[max(0, match.start() - 20) : match.start()].split()
        inside_name = before and before[-1][0].isupper() and not re.search(r"[.!?:]$|^(?:It|That)'s$", before[-1])
        inside_name = inside_name or name.endswith(" I")
        return keep(match) if _TITLE_MARK.search(name) and not inside_name else name

    def keep(match: re.Match) -> str:
        found.append(match.group() if " " in match.group() else f'"{match.group()}"')
        return f"\x00{len(found) - 1}\x01"

    text = _QUOTATION.sub(keep, text)
    if _TITLE_MARK.search(text):
        text = _INNER_RUN.sub(title, _FIRST_RUN.sub(title, text))
    if " I" in text or "US" in text or text.startswith("I"):
        text = _COUNTRY.sub("USA", _ENUMERATED.sub("1", _NUMERAL.sub(_number, text)))
    if found:
        masked += [found[int(number)] for number in re.findall(r"\x00(\d+)\x01", text)]
        text = re.sub(r"\x00\d+\x01", " \x00 ", text)
    return text


def _number(match: re.Match) -> str:
    word = match.group(1)
    named = word[0].isupper() and not word.endswith("ly") and word.lower() not in _NOT_NUMBERED and word != "I"
    return f"{word} 1" if named or word.lower() in _NUMBERED else match.group()


def _expand(match: re.Match) -> str:
    can, verb, am, have, let, suffix = match.groups()
    if can:
        return "cannot"
    if verb:
        return _EXPANDED.get(verb.lower()) or verb.lower().removesuffix("n") + " not"
    return "I am" if am else "I have" if have else "let us" if let else _SUFFIX[suffix.casefold()]
