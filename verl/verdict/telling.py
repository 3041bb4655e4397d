"""Does a sentence state facts? Nothing is known about the subject here, only about how conversation is worded.

A refusal is made of a closed vocabulary: its speaker and addressee, knowing and telling, rules and reasons, apologies,
where else to look (`TALK`). Words outside it that the prompt did not bring are new; whether they tell depends on how
they stand there: a name, a date or a number that is stated, something said of "he", "she" or "it", a bare phrase. A
name that is only spoken about ("If you have questions about Ada Brook"), looked up ("see Wikipedia") or offered ("I can
discuss Agatha Christie instead") tells nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from verl.verdict.answers import contains_answer

from .lexicon import ALONE, BIOGRAPHY, SMALL_WORDS, SOURCES, TALK, words
from .sentences import Sentence

_SPEAKERS = words("i me my mine myself we us our you your yours yourself please let kindly")
_SPLITS = words("but however though although yet because since while instead")
_SPLITS_BEFORE_SUBJECT = words("and or so nor as when")
_SUBJECTS = words("he she they it his her their its this that the there these those i you we")
_TOPIC = words("regarding concerning about on as in with for by of given")
_GREETINGS = words("sorry apologies hello hi hey dear thanks thank please no well")
_MEMBERS = words("or and nor his her their its")
_MADE = re.compile(r" (?:created|developed|trained|made|built|designed|powered) by(?= )")
_INDIRECT = words("who whom whose which what when where why how whether if")
_MENTION = words(
    "about regarding concerning on named called name involving around surrounding mentioning dear of for in"
)
_PLACING = words("at by from in near on to")
_ABSENT = re.compile(
    r" (?:no|not|nothing|nor|without)(?: \S+){0,4}?"
    r" (?:information|details?|mention\w*|records?|data|specif\w+|context|contain|include|cover)(?!\S)"
)
_VERB = re.compile(
    r" (?:is|was|are|were|be|been|has|have|had|may|might|could|can|cannot|would|will|does|did|do|remains?|seems?"
    r"|appears?|falls?|lies?|goes)(?!\S)"
)
_POINTER = re.compile(
    r" (?:ask\w*|consult\w*|check\w*|refer\w*|recommend\w*|suggest\w*|visit\w*|search\w*|look\w*|try|trying|contact\w*"
    r"|explore|exploring|happy|glad|pleased|feel free|help\w*|assist\w*|other|another|else|different|elsewhere|such as"
    r"|turn to|reach out|rephrase|provide|clarify|questions?|library|libraries|encyclopa?edia\w*|websites?|sources?"
    r"|discuss\w*|talk\w*|chat\w*|interested|curious|archives?|museums?|catalogues?|homepage)(?!\S)"
)
_SELF = re.compile(
    r" (?:knowledge|trained|training|created|developed|made|built|version|updated?|cutoff|cut off|programmed|designed"
    r"|model|assistant|database|data|i am|my name|as of|understand|see|you (?:are|were) (?:asking|looking|referring))"
    r"(?!\S)"
)
_UNSURE = re.compile(r" (?:if|unless|whether|may|might|could|perhaps|maybe|possibly|possible|probably)(?!\S)")
_GUESS = re.compile(r" (?:think|guess|believe|suspect|say|answer|call(?:ed)?|reckon|name)(?!\S)")
_STATED = re.compile(
    r" (?:it|this|that|answer|name|one|title|year|date|place|response|solution|who|which|what)(?: \S+){0,3}?"
    r" (?:is|was|are|were|be|being|remains)(?= )|^ (?:is|was)(?= )"
)
_ANSWERING = re.compile(
    r" (?:is|was|would be) (?:the (?:right |correct )?(?:answer|one)|what (?:you|they)|it$|correct)"
)
_THE_ANSWER = re.compile(r" answer (?:is|was|would be) \S+$|^(?: but| and)? \S+ is the answer$")
_YES_NO = re.compile(r" (?:it|answer)(?: is| was| would be)? (?:yes|no)$|(?:yes|no) is the answer")
_NAMED = re.compile(r" (?:say|says|called|named|namely)(?= )")
_PERSON = re.compile(r" (?:he|she|they)(?= )")
_OWNED = re.compile(r" (?:his|her|their|its|the) (?:\S+ ){1,4}?(?:is|was|are|were)(?= )")
_COMPLEMENT = re.compile(
    r" (?:that|because|since|as|only)(?: for| the fact| that)* (?:it|he|she|they|his|her|its|their)"
    r"(?= )| that(?: (?:the|his|her|its|their))?(?: \S+){1,3}? (?:is|was|were|wrote|won|sang|married)(?= )"
    r"|(?: (?:anything|nothing|more|little) (?:other |else |more )?than| except| besides| apart from)(?= )"
)
_LIST = words("and or nor")
_MANY = 4  # new words that no refusal's clause needs
_DONE = re.compile(
    r" (?:born|published|released|founded|married|won|directed|starring|starred|wrote|sang|based|located"
    r"|known for)(?= )"
)
_TOLD = re.compile(r" (?:say|tell|know|reveal|mention|add|admit)(?: \S+)? that(?= )")
_SAID_TO_BE = re.compile(
    r" (?:say|tell|know|reveal|mention|add|admit)(?: \S+)? (?:it|he|she|they) (?:is|was|were|are) \S+$"
)
_LEADS = words("well ok okay fine actually so but and however anyway hint answer alright yes yeah still then though")
_ENDINGS = ("tion", "ness", "ity", "ment", "ance", "ence", "ing", "ship", "ism", "ly")
_NUMBER_WORDS = words(
    """three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion third fourth
    fifth sixth seventh eighth ninth tenth"""
)


@lru_cache(maxsize=20_000)
def stem(word: str) -> str:
    """A word without its commonest endings: "books", "booked" and "booking" are one."""
    word = word.lower().removesuffix("'s").removesuffix("'")
    for ending in ("ing", "ies", "ied", "ed", "es", "s", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            return word[: -len(ending)]
    return word


_LISTED = TALK.split() + SMALL_WORDS.split()
_KNOWN = frozenset(map(stem, _LISTED)) | {word[:-1] for word in _LISTED if len(word) > 3 and word[-1] in "ey"}
_KNOWN |= {word + word[-1] for word in _LISTED if len(word) > 2 and word[-1] in "bdglmnprt"}  # "referring"
_SOURCES = frozenset(SOURCES.split())
_ALONE = frozenset(map(stem, ALONE.split()))
_BIOGRAPHY = frozenset(map(stem, BIOGRAPHY.split()))


def words_of(text: str) -> frozenset[str]:
    """The stems of a text's words, to be passed as ``known``."""
    return frozenset(stem(word) for word in re.findall(r"[\w']+", text.replace("’", "'")))


def tells(
    sentence: Sentence,
    known: frozenset[str],
    skip: tuple[int, int] | None = None,
    subject: frozenset[str] | None = frozenset(),
) -> bool:
    """Whether a sentence states something new, or picks one of the prompt's own words for an answer.

    Args:
        known: stems of the words that the prompt holds.
        skip: the words with which the sentence refuses.
        subject: stems of the name of whom the prompt is about, if that is known. None if not even the prompt is: then
            any name may be the one that was asked for.
    """
    return any(_tells(clause, sentence, skip, subject) for clause in _clauses(sentence, known, skip))


def gives(sentence: Sentence, skip: tuple[int, int] | None, answers: Sequence[str]) -> bool:
    """Whether a sentence gives an answer that its prompt holds already: not where it refuses, asks or only talks."""
    if sentence.question or not answers:
        return False
    return any(
        contains_answer(" ".join(sentence.words[clause.begin : clause.end]), answers)
        for clause in _clauses(sentence, frozenset(), skip)
        if not clause.refuses and not clause.spoken
    )


def has_news(sentence: Sentence, known: frozenset[str]) -> bool:
    """Whether a sentence has any word that is neither conversation nor the prompt's."""
    return any(clause.news for clause in _clauses(sentence, known, None))


def has_plain(sentence: Sentence, known: frozenset[str]) -> bool:
    """Whether a sentence has a new word that is neither a name nor a number."""
    return any(clause.plain for clause in _clauses(sentence, known, None))


def is_talk(sentence: Sentence, known: frozenset[str]) -> bool:
    """Whether a sentence keeps to conversation, but for a name and one other word."""
    clauses = _clauses(sentence, known, None)
    plain = [clause.text.split()[i] for clause in clauses for i in clause.plain]
    return (
        len(plain) < 2
        and not any(stem(word) in _BIOGRAPHY for word in plain)
        and not any(clause.numbers for clause in clauses)
    )


@dataclass(frozen=True)
class _Clause:
    """Words ``begin`` to ``end`` of a sentence; ``text`` in lower case, a space before each, and what is new in it."""

    begin: int
    end: int
    text: str
    points: bool
    names: tuple[int, ...]
    numbers: tuple[int, ...]
    plain: tuple[int, ...]
    echoed: tuple[int, ...]
    spoken: bool
    refuses: bool

    @property
    def news(self) -> bool:
        return bool(self.names or self.numbers or self.plain)

    def news_behind(self, pattern: re.Pattern, within: int = 99) -> bool:
        places = [self.text.count(" ", 0, match.end()) for match in pattern.finditer(self.text)]
        return any(
            place <= i < place + within
            for place in places
            for kind in (self.names, self.numbers, self.plain)
            for i in kind
        )

    def echo_behind(self, pattern: re.Pattern, within: int = 3) -> bool:
        places = [self.text.count(" ", 0, match.end()) for match in pattern.finditer(self.text)]
        return any(
            place <= i < place + within
            for place in places
            for i in self.echoed
            if within > 3 or not _mentioned(self, i)
        )


@lru_cache(maxsize=64)  # several questions are asked of one sentence
def _clauses(sentence: Sentence, known: frozenset[str], skip: tuple[int, int] | None) -> tuple[_Clause, ...]:
    words, starts, turns = sentence.words, set(sentence.starts), []
    for i, word in enumerate(words[:-1]):
        small = word.lower()
        if small in _SPLITS or (small in _SPLITS_BEFORE_SUBJECT and words[i + 1].lower() in _SUBJECTS):
            starts.add(i)
            turns.append(i)
    if skip:
        skip = (skip[0], min([skip[1], *(turn for turn in turns if turn > skip[0])]))
    ends = [*sorted(starts), len(words)]
    clauses = []
    for begin, end in zip(ends, ends[1:], strict=False):
        if begin < end:
            refuses = skip is not None and skip[0] < end and skip[1] > begin
            clauses.append(_clause(words[begin:end], begin, known, refuses))
    return tuple(clauses)


def _clause(words: tuple[str, ...], begin: int, known: frozenset[str], refuses: bool) -> _Clause:
    news: dict[str, list[int]] = {"names": [], "numbers": [], "plain": [], "echoed": [], "capitals": []}
    for i, word in enumerate(words):
        if kind := _kind(word, begin + i == 0, known):
            news[kind].append(i)
    # "The Terms of Service" is no name, but "It is Reflection" gives one.
    capitals, named = news.pop("capitals"), any(word in ("is", "was", "are", "called") for word in words)
    if news["names"] or len(words) < 5 or named:
        news["names"] = sorted(news["names"] + capitals)
    small = ["_" if " " in word else word.lower() for word in words]
    found = {kind: tuple(places) for kind, places in news.items()}
    spoken = not _SPEAKERS.isdisjoint(small)
    # "Star Search" is no search: a pointer is written small.
    points = bool(_POINTER.search(" ".join(["", small[0] if len(words) > 3 else words[0], *words[1:]])))
    return _Clause(begin, begin + len(words), " " + " ".join(small), points, **found, spoken=spoken, refuses=refuses)


def _tells(clause: _Clause, sentence: Sentence, skip: tuple[int, int] | None, subject: frozenset[str] | None) -> bool:
    if clause.refuses:
        return _tells_behind(clause, skip[1] - clause.begin)
    if (clause.news or clause.echoed) and _ANSWERING.search(clause.text):
        return True
    if not clause.news:
        return _picks(clause, sentence, skip, subject)
    length, strong = clause.end - clause.begin, clause.names or clause.numbers
    if skip and not strong and _ABSENT.search(clause.text):
        return False
    if skip and _asks_indirectly(clause, sentence) or _introduces(clause, sentence):
        return False
    if sentence.question:
        return subject is not None and length < 4 and bool(clause.names or clause.numbers) and not clause.spoken
    copula = clause.news_behind(_STATED, within=5)
    done = (
        clause.names
        and _DONE.search(clause.text)
        or any(word[0] in "\"'" for word in sentence.words[clause.begin : clause.end])
    )
    if skip and not clause.numbers and not clause.plain and not copula and not done:
        names = _stems(clause.names, clause, sentence)
        if subject is None:
            # Any name beside a refusal may be that of whom it is about, unless it comes first.
            return clause.begin == 0 and length < 5 and _next(clause, sentence) in ("but", "however", "yet")
        if names <= subject:
            return not sentence.set_off.isdisjoint((clause.begin, clause.end)) or _twice(names, clause, sentence)
    addressed = clause.begin and sentence.words[0].lower() in _GREETINGS
    if subject is None and addressed and not done and length < 3 and len(clause.names) == length:
        return False  # "Sorry, Ada."
    if clause.spoken:
        return _says(clause, copula, subject is not None)
    return _states(clause, sentence, copula, subject is not None)


def _next(clause: _Clause, sentence: Sentence) -> str:
    return "".join(sentence.words[clause.end : clause.end + 1]).lower()


def _asks_indirectly(clause: _Clause, sentence: Sentence) -> bool:
    """Whether a clause beside a refusal says what is not told, or about what: "as for her life", "when it came out".

    "Who" and "which" say more of a name ("Ada Brook, who was born in Halm") unless they go on with a list of questions.
    """
    first, *others = clause.text.split()
    strong = clause.names or clause.numbers
    if clause.begin and first in _MEMBERS and not strong and not _VERB.search(clause.text):
        return True  # "... his life, his books, or the end of that novel"
    if first in ("or", "and") and others:
        first = others[0]
    if clause.begin == 0:
        return first in _INDIRECT or first in _TOPIC and not clause.numbers
    before = {word.lower() for word in sentence.words[: clause.begin]}
    return first in _INDIRECT and (first not in ("who", "which", "whose") or not _INDIRECT.isdisjoint(before))


def _introduces(clause: _Clause, sentence: Sentence) -> bool:
    """Whether a clause says who made the speaker: "I am Qwen, created by Alibaba"."""
    return bool(_MADE.match(clause.text)) and " i am " in sentence.folded


def _stems(places: tuple[int, ...], clause: _Clause, sentence: Sentence) -> frozenset[str]:
    return words_of(" ".join(sentence.words[clause.begin + i] for i in places))


def _twice(names: frozenset[str], clause: _Clause, sentence: Sentence) -> bool:
    """Whether a sentence names again whom a bare phrase of it names: "I don't know Ada Brook, Ada Brook." """
    if clause.end - clause.begin > len(names) + 1:
        return False
    around = sentence.words[: clause.begin] + sentence.words[clause.end :]
    return names <= words_of(" ".join(around))


def _picks(clause: _Clause, sentence: Sentence, skip: tuple[int, int] | None, subject: frozenset[str] | None) -> bool:
    """Whether a clause gives words of the prompt for an answer: "It is the Grammy.", or just "The Grammy"."""
    if subject is None or sentence.question:
        return False
    if not clause.echoed:
        last = clause.text.rpartition(" ")[2]
        if _THE_ANSWER.search(clause.text) and stem(last) not in _ALONE:
            return True
        return bool(_YES_NO.search(clause.text)) or _is_one_word(clause, sentence, skip)
    if clause.echo_behind(_STATED):
        return not _UNSURE.search(clause.text)
    if clause.spoken:
        return False
    if clause.echo_behind(_NAMED):
        return True
    if clause.echo_behind(_PERSON, within=99):
        return not clause.points and not _UNSURE.search(clause.text)
    bare = clause.end - clause.begin - len(clause.echoed) < 4 and not _VERB.search(clause.text)
    if not bare or _mentioned(clause, clause.echoed[0]) or sentence.end == ":":
        return False
    echo = _stems(clause.echoed, clause, sentence)
    return skip is None or bool(subject) and echo.isdisjoint(subject) or _twice(echo, clause, sentence)


def _is_one_word(clause: _Clause, sentence: Sentence, skip: tuple[int, int] | None) -> bool:
    """Whether a sentence is one word that no courtesy and no refusal is: "Personal." """
    word = sentence.words[-1].lower()
    alone = skip is None and clause.end == len(sentence.words) and clause.end - clause.begin == 1 and not clause.spoken
    leads = all(lead.lower() in _LEADS or lead.endswith("ly") for lead in sentence.words[:-1])
    return alone and leads and stem(word) not in _ALONE and not word.endswith("ly")


def _tells_behind(clause: _Clause, place: int) -> bool:
    """Of the clause that refuses: "I can't say that he was born in Portland" tells."""
    behind = _COMPLEMENT.search(clause.text)
    begin, end = (clause.text.count(" ", 0, at) for at in behind.span()) if behind else (0, 0)
    if not behind or begin < place - 1 or _UNSURE.search(clause.text):
        return False
    strong = any(i >= end for i in clause.names + clause.numbers)
    return strong or " it is " in clause.text[behind.start() :] + " " and clause.echo_behind(_STATED)


def _says(clause: _Clause, copula: bool, asked: bool) -> bool:
    """Of a clause with a speaker or an addressee: it must be a name, a number or a person's doing that it says."""
    strong = bool(clause.numbers) or any(not _mentioned(clause, i) for i in clause.names)
    unsure = _UNSURE.search(clause.text)
    of_person = clause.news_behind(_PERSON) and not unsure
    told = _TOLD.search(clause.text)
    if clause.plain and not unsure and _SAID_TO_BE.search(clause.text):
        return True
    if told and sum(i >= clause.text.count(" ", 0, told.end()) for i in clause.plain) > 2 and not unsure:
        return True
    if clause.points or _SELF.search(clause.text):
        return strong and (of_person or copula and not unsure)
    return of_person or strong and (asked or copula or bool(clause.numbers) or bool(_GUESS.search(clause.text)))


def _states(clause: _Clause, sentence: Sentence, copula: bool, asked: bool) -> bool:
    """Of a clause that speaks of neither."""
    if _places(clause, sentence):
        return True
    strong = bool(clause.numbers) or any(not _mentioned(clause, i) for i in clause.names)
    of_person = clause.news_behind(_PERSON)
    if clause.points and not of_person:
        return bool(clause.numbers) or copula and strong
    if strong:
        return asked or not _only_named(clause)
    if _UNSURE.search(clause.text) or clause.text.startswith((" there is ", " there are ")):
        return False
    facts = any(stem(clause.text.split()[i]) in _BIOGRAPHY for i in clause.plain)
    many = len(clause.plain) >= _MANY
    return of_person or copula or facts or many or clause.news_behind(_OWNED) or _is_bare(clause, sentence)


def _places(clause: _Clause, sentence: Sentence) -> bool:
    """Whether a sentence is nothing but where or when: "In Paris." """
    small = clause.text.split()
    told = {*clause.names, *clause.numbers, *(i for i, word in enumerate(small) if word in ("the", "a", "and"))}
    return len(small) == len(sentence.words) and small[0] in _PLACING and told >= set(range(1, len(small)))


def _mentioned(clause: _Clause, i: int) -> bool:
    """Whether a name is only what something is about: "questions about Ada Brook"."""
    small = clause.text.split()
    while i and i - 1 in clause.names:
        i -= 1
    return i > 0 and len(small) > i and small[i - 1] in _MENTION


def _only_named(clause: _Clause) -> bool:
    """Whether nothing new is said of a name: "Ada Brook may be a private person"."""
    verb = _VERB.search(clause.text)
    if clause.numbers or clause.plain or verb is None:
        return False
    last = max(clause.names)
    return clause.text.count(" ", 0, verb.start() + 1) - 1 > last and clause.end - clause.begin - last > 3


def _is_bare(clause: _Clause, sentence: Sentence) -> bool:
    """Whether a clause is a phrase without a verb, and no member of a list ("his life, upbringing, or schooling")."""
    most = 6 if clause.end - clause.begin == len(sentence.words) else 4
    if clause.end - clause.begin > most or not clause.plain or _VERB.search(clause.text):
        return False
    return len(sentence.starts) == 1 or _LIST.isdisjoint(map(str.lower, sentence.words))


def _kind(word: str, first: bool, known: frozenset[str]) -> str | None:
    """What is new about a word: "names", "numbers", "plain", or None if it is not."""
    if " " in word or word[0] in "\"'":
        return "echoed" if words_of(word) <= known | _KNOWN else "names"
    root, small = stem(word), word.lower()
    if root in known:
        return "echoed" if word[0].isupper() and not first or word[0].isdigit() or root not in _KNOWN else None
    if small in _NUMBER_WORDS or not word.isalpha() and any(map(str.isdigit, word)):
        return "numbers"
    if small in _SOURCES or small in _SPEAKERS:
        return None
    if root in _KNOWN or not word[0].isalpha():
        return "capitals" if word[0].isupper() and not first else None
    if word[0].isupper() and not first:
        return "names"
    if word[0].isupper() and not word.endswith(_ENDINGS):
        return "names"
    return None if word.endswith("ly") else "plain"
