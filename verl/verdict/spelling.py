"""Other ways to write the same answer: dates in any order, numbers as words, plurals, and scripts without spaces.

`verl.verdict.answers.contains_answer` comes here with what it did not find word by word. Nothing here makes a part of
a word an answer: "King" is not in "Kingston".
"""

import re
import unicodedata
from functools import lru_cache

_MONTHS = "january february march april may june july august september october november december"
_MONTH = {
    name[:length]: number for number, name in enumerate(_MONTHS.split(), 1) for length in (3, len(name))
} | {"sept": 9}  # fmt: skip
_NAMES = "|".join(sorted(_MONTH, key=len, reverse=True))
_YEAR = r"(?P<year>\d{3,4})"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_DATES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\b(?P<name>{_NAMES})\.? {_DAY}(?:,? (?:in |of )?{_YEAR})?\b",
        rf"\b{_DAY}(?: day)?(?: of)? (?P<name>{_NAMES})\b\.?(?:,? (?:in |of )?{_YEAR}\b)?",
        rf"\b{_YEAR},? (?P<name>{_NAMES})\.?(?: {_DAY})?\b",
        rf"\b(?P<name>{_NAMES})\.?,? (?:in |of )?{_YEAR}\b",
        rf"\b{_YEAR}[-/.](?P<month>\d{{1,2}})[-/.](?P<day>\d{{1,2}})\b",
        rf"\b(?P<day>\d{{1,2}})[-/.](?P<month>\d{{1,2}})[-/.]{_YEAR}\b",
        r"(?P<year>\d{3,4})\s?年\s?(?P<month>\d{1,2})\s?月(?:\s?(?P<day>\d{1,2})\s?日)?",
    )
)

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_TENTHS = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 10 * tens for tens, word in enumerate(_TENTHS.split(), 2)}
_UNITS = {word: i for i, word in enumerate(_ONES.split())}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_ORDINALS = {
    "first": "one", "second": "two", "third": "three", "fifth": "five", "eighth": "eight", "ninth": "nine",
    "twelfth": "twelve",
}  # fmt: skip

# Scripts whose words stand without spaces between them (Chinese, Japanese, Thai, Lao, Khmer, Burmese).
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
# Korean writes particles, Arabic and Hebrew write articles and prepositions, to the word.
_HANGUL = re.compile(r"[\uac00-\ud7af]")
_PARTICLE = (
    "(?:은|는|이|가|을|를|의|에|에서|에게|와|과|도|만|로|으로|라는|이라는|라고|이라고|입니다|이다|이며|이고|였다|이었다|였습니다|이었습니다"
    "|예요|이에요|부터|까지|처럼|보다|이나|나|랑|이랑|께서|한테|인|란|이란|야|이야)?"
)
_SEMITIC = re.compile(r"[\u0590-\u05ff\u0600-\u06ff]")
_PREFIX = "(?:[وفبكل]|لل)?(?:ال)?|[והבלכמש]{0,2}"
_HARAKAT = re.compile(r"[\u0591-\u05c7\u064b-\u065f\u0670\u0640]")
_ARABIC = str.maketrans("أإآٱىةؤئ", "اااايهوي")
_INDIC = re.compile(r"[\u0900-\u0dff]")
_POSTPOSITION = r"(?:ों|ें|े|ी|ा|ियों|ियाँ)?"


def written_otherwise(answer: str) -> bool:
    """Whether an answer is in a script whose words cannot be told by the spaces and letters around them."""
    return not answer.isascii() and any(script.search(answer) for script in (_UNSPACED, _HANGUL, _SEMITIC, _INDIC))


def same_said(text: str, given: str, answer: str, wanted: str) -> bool:
    """Whether a text says an answer in other letters.

    Args:
        text, answer: as they were written.
        given, wanted: the same, normalised.
    """
    dates = _dates(answer)
    if dates:
        return any(_agree(asked, told) for asked in dates for told in _dates(text))
    says_number = any(map(str.isdigit, wanted)) or not _SAYS_NUMBER.isdisjoint(wanted.split())
    if says_number:
        given, wanted = _numbers(given), _numbers(wanted)
        if f" {wanted} " in f" {given} ":
            return True
    # "King" is a name, which has no plural; "Short Stories" has a singular.
    name = answer[:1].isupper() and " " not in wanted
    return not name and _in_other_number(given, wanted)


def same_in_script(text: str, answer: str) -> bool:
    """Whether a text holds an answer that is ``written_otherwise``."""
    text, answer = (unicodedata.normalize("NFKC", each) for each in (text, answer))
    if _UNSPACED.search(answer):
        bare = re.sub(r"[\W_]+", "", answer.casefold())
        # A number at either end must end there: 18 is not in 1918年.
        left, right = (r"(?<!\d)" if bare[:1].isdigit() else "", r"(?!\d)" if bare[-1:].isdigit() else "")
        return bool(bare and re.search(left + re.escape(bare) + right, re.sub(r"[\W_]+", "", text.casefold())))
    if _HANGUL.search(answer):
        return _bounded(text, answer, "", _PARTICLE)
    if _SEMITIC.search(answer):
        text, answer = (_HARAKAT.sub("", each).translate(_ARABIC) for each in (text, answer))
        answer = re.sub(r"^ال", "", answer.strip())
        return _bounded(text, answer, f"(?:{_PREFIX})", "")
    return bool(_INDIC.search(answer)) and _bounded(text, answer, "", _POSTPOSITION)


def _bounded(text: str, answer: str, before: str, after: str) -> bool:
    # Python's \w leaves out the vowel signs of Indic scripts, which are part of their words.
    word = r"[\w\u0900-\u0903\u093a-\u094f\u0980-\u0983\u09bc-\u09cd\u0b80-\u0b82\u0bbe-\u0bcd]"
    phrase = r"\s+".join(map(re.escape, answer.casefold().split()))
    return bool(phrase and re.search(f"(?<!{word}){before}{phrase}{after}(?!{word})", text.casefold()))


_Date = tuple[int, int, int]


def _dates(text: str) -> set[_Date]:
    """All dates of a text as (year, month, day), 0 for what is not said; 4/5/1947 is read both ways."""
    text = unicodedata.normalize("NFKC", text).lower()
    found = set()
    for pattern in _DATES if any(map(str.isdigit, text)) else ():
        for match in pattern.finditer(text):
            parts = match.groupdict()
            month = _MONTH[parts["name"]] if parts.get("name") else int(parts["month"])
            year, day = int(parts["year"] or 0), int(parts.get("day") or 0)
            found |= {(year, month, day)} | ({(year, day, month)} if "month" in parts and day else set())
    return {(year, month, day) for year, month, day in found if 1 <= month <= 12 and day <= 31}


def _agree(asked: _Date, told: _Date) -> bool:
    return all(part in (0, given) for part, given in zip(asked, told, strict=True))


@lru_cache(maxsize=4096)
def _numbers(words: str) -> str:
    """Normalised words with every number, however it is written, in digits: "twenty one" and "21st" to "21"."""
    said: list[str] = []
    value: int | None = None
    whole, parts = 0, []
    for word in [*words.split(), ""]:
        number = _number_of(word)
        if number is not None and value is not None and not _continues(parts[-1], number):
            said.append(str(whole + value))
            value, whole, parts = None, 0, []
        if number is None:
            if value is not None and word == "and" and parts[-1] in (100, 1000):
                continue
            if value is not None:
                said.append(str(whole + value))
                value, whole, parts = None, 0, []
            said.append(_DIGITS_WITH_ENDING.sub(r"\1", word))
            continue
        if number in (100,) and value is not None:
            value *= 100
        elif number >= 1000 and word in _SCALES and value is not None:
            whole, value = whole + value * number, 0
        else:
            value = (value or 0) + number
        parts.append(number)
    return " ".join(word for word in said if word)


_DIGITS_WITH_ENDING = re.compile(r"^(\d+)(?:st|nd|rd|th)$")
_SAYS_NUMBER = frozenset([*_UNITS, *_TENS, *_SCALES, *_ORDINALS]) - {"one", "first", "second", "may"}


def _number_of(word: str) -> int | None:
    word = _ORDINALS.get(word, word)
    for ending in ("ieth", "th"):
        if word.endswith(ending):
            stem = word.removesuffix(ending) + ("y" if ending == "ieth" else "")
            word = stem if stem in _UNITS or stem in _TENS or stem in _SCALES else word
    return _UNITS.get(word, _TENS.get(word, _SCALES.get(word)))


def _continues(before: int, number: int) -> bool:
    """Whether a number word goes on with the number before it: "twenty one", "two hundred", not "one two"."""
    if number >= 100:
        return True
    return before >= 100 or before in _TENS.values() and 0 < number < 10


def _in_other_number(given: str, wanted: str) -> bool:
    """Whether the text has the answer with its last word in the plural or the singular ("disciples", "disciple")."""
    *start, last = wanted.split()
    if not last.isalpha() or len(last) < 4:
        return False
    forms = {last + "s", last + "es"}
    if last.endswith("y"):
        forms.add(last[:-1] + "ies")
    if last.endswith("ies"):
        forms.add(last[:-3] + "y")
    if last.endswith("es") and last[:-2].endswith(("s", "x", "z", "ch", "sh")):
        forms.add(last[:-2])
    if last.endswith("s") and not last.endswith("ss"):
        forms.add(last[:-1])
    return any(f" {' '.join([*start, form])} " in f" {given} " for form in forms if not form.endswith("ss"))
