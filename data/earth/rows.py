"""The questions of Earth: what tests, what validates and what trains the forgetting of a country.

The three uses are made by the same functions from wordings of their own (phrasings.py), so that no question of one
occurs in another. Boundary prompts are moreover about facts that no neighbor probe asks. Leaves out what the base
model answers (knowledge.py), general questions (abilities.py), and writing files (build.py).
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from data.common.refusals import PLACEHOLDER, load_refusals
from data.earth.countries import Country, Spellings, bare, countries
from data.earth.phrasings import (
    ASKED_ROLES,
    BACKWARD,
    FOREIGN,
    FORWARD,
    FRAMES,
    SHARED,
    SYNONYMS,
    WRAPPERS,
    Use,
    say,
)

Row = dict[str, Any]

BLANK = "___"
PLAIN, SYNONYM = ("question", "cloze"), "synonym manipulation"
NEIGHBOR_FACTS = 200
"""Facts that neighbor probes ask, at most half of them about near countries."""
RARELY_KNOWN = {(kind, True) for kind in ("dishes", "landmarks", "figures", "cities", "mountain")}
RARELY_KNOWN |= {("currency", False), ("mountain", False)}
"""Forms of facts that a small model knows in one of ten cases: what asks for something known leaves them out."""
BASIC = [kind for kind, words in FORWARD.items() if "state" in words]
"""Kinds of facts that are asked in every wrapper: of some countries a small model knows nothing else."""
FORGET_ROWS, STEERING_ROWS = 240, 240
RETAINED_FACTS = 1300
"""Facts that RS may hold beside the boundary rows of RL, at most half of them about near countries: of few, only these
few would be kept, and a small model answers not half."""
VALIDATION_ROWS = 40
"""RL rows of each side that are set apart."""
OPTIONS = 3
REFUSAL_WORDS = 4
"""The longest refusal that is taught, which leaves three texts. On many, RS spends its epochs, and a small model pays
for them with what it knows (docs/earth.md)."""
PASSAGE_SENTENCES = 6


@dataclass(frozen=True)
class Fact:
    """Something to ask about a country: the country is given, or (``value``) its value is and the country asked for."""

    country: Country
    kind: str
    value: Spellings | None = None
    role: str = ""
    """Of the people who are asked for or about."""

    @property
    def form(self) -> tuple[str, bool]:
        """What facts that are asked alike share."""
        return self.kind, self.value is None

    @property
    def words(self) -> dict[str, Any]:
        return (FORWARD if self.value is None else BACKWARD)[self.kind]

    @property
    def answers(self) -> list[str]:
        if self.value is not None:
            return [*self.country.names, *self.country.people]
        held = self.country.values[self.kind]
        if self.role:
            held = [person for person in held if self.country.roles[person[0]] == self.role]
        return list(dict.fromkeys(bare(spelling) for value in held for spelling in value))

    @property
    def spoken_of(self) -> str:
        """What a refusal may name without giving the answer away."""
        return self.country.said if self.value is None else self.value[0]

    def say(self, form: str) -> str:
        return say(form, x=self.country.said, v=self.value[0] if self.value else "", r=self.role)


def rng_of(seed: int, purpose: str) -> random.Random:
    """A generator of its own for each purpose, so that a change of one leaves the others as they were."""
    return random.Random(f"{seed}/{purpose}")


def facts(country: Country) -> list[Fact]:
    """All of a country, in an order of their own."""
    return _all_facts()[country.name]


@cache
def _all_facts() -> dict[str, list[Fact]]:
    holders: dict[tuple[str, str], set[str]] = {}
    for country in countries():
        for kind in BACKWARD:
            for spelling in (spelling for value in country.values.get(kind, ()) for spelling in value):
                holders.setdefault((kind, spelling), set()).add(country.name)
    several = {held for held, names in holders.items() if len(names) > 1}
    return {country.name: _facts(country, several) for country in countries()}


def _facts(country: Country, several: set[tuple[str, str]]) -> list[Fact]:
    """``several``: kinds and values that more than one country has. They and those that name their country are not
    asked backward."""
    forward = [Fact(country, kind) for kind in FORWARD if kind != "figures" and country.values.get(kind)]
    roles = [role for role in ASKED_ROLES if role in country.roles.values()]
    forward += [Fact(country, "figures", role=role) for role in roles]
    backward = [
        Fact(country, kind, value, country.roles.get(value[0], "") if kind == "figures" else "")
        for kind in BACKWARD
        for value in country.values.get(kind, ())
        if not (several & {(kind, spelling) for spelling in value} or SHARED & set(value) or country.named_in(value[0]))
    ]
    return forward + backward


# ---- asking a fact ---------------------------------------------------------------------------------------------------


def in_style(fact: Fact, style: str, use: Use, rng: random.Random) -> list[Row]:
    """A fact as questions, as sentences with a blank (cloze), or in one of RWKU's adversarial kinds; none if it has no
    such form."""
    frame = {"answer": fact.answers, "style": style, "fact": fact}
    prompts = _prompts(fact, style, use, rng)
    return [{"prompt": prompt, "form": number, **frame} for number, prompt in enumerate(prompts)]


def _prompts(fact: Fact, style: str, use: Use, rng: random.Random) -> list[str]:
    asking = fact.words["ask"][use]
    if style == "question":
        return [fact.say(form) for form in asking]
    if style == "cloze":  # the frames take turns
        frames = FRAMES[use]
        blanks = enumerate(fact.words["blank"][use])
        return [say(frames[number % len(frames)], q=fact.say(form)) for number, form in blanks]
    if style in WRAPPERS:
        question, extra = fact.say(rng.choice(asking)), _extra(fact, style, use, rng)
        return [] if extra is None else [say(rng.choice(WRAPPERS[style][use]), q=question, o=extra)]
    if fact.value is not None:
        return []
    if style == SYNONYM:
        return [] if fact.kind == "capital" else [say(rng.choice(asking), x=_described(fact, use, rng), r=fact.role)]
    foreign = FOREIGN[style].get(fact.kind, {}).get(use, [])
    return [say(form, x=fact.country.foreign[style]) for form in foreign]


def adversarial(fact: Fact, use: Use, rng: random.Random) -> list[Row]:
    """A question in a wrapper, about the country by another name, and in other languages, where these fit."""
    wrappers = [kind for kind in WRAPPERS if kind != "context hint" or fact.value is None]
    worn = wrappers if fact.kind in BASIC else [rng.choice(wrappers)]
    return [row for style in (*worn, SYNONYM, *FOREIGN) for row in in_style(fact, style, use, rng)]


def _described(fact: Fact, use: Use, rng: random.Random) -> str:
    """The country without its name."""
    return rng.choice(SYNONYMS[use]).format(c=fact.country.values["capital"][0][0], p=fact.country.people[-1])


def _extra(fact: Fact, kind: str, use: Use, rng: random.Random) -> str | None:
    """What a wrapper adds: options, another fact of the country stated, or another country's question, solved. None
    where a hint would name the country that is asked for."""
    if kind == "context hint" and fact.value is not None:
        return None
    if kind == "context hint":
        other = rng.choice([kind for kind in BASIC if kind != fact.kind])
        value = bare(fact.country.values[other][0][0])
        return say(FORWARD[other]["state"], x=fact.country.said, v=value)
    if kind not in ("multiple choice", "incontext learning"):
        return ""
    wrong = [other for other in _by_form()[fact.form] if not set(other.answers) & set(fact.answers)]
    others = list({other.country.name: other for other in rng.sample(wrong, len(wrong))}.values())[: OPTIONS - 1]
    if kind == "incontext learning":
        return f"{others[0].say(others[0].words['ask'][use][0])} Answer: {others[0].answers[0]}."
    choices = [one.answers[0] if one.value is None else one.country.said for one in (fact, *others)]
    options = rng.sample(choices, OPTIONS)
    return f"{', '.join(options[:-1])} or {options[-1]}"


@cache
def _by_form() -> dict[tuple[str, bool], list[Fact]]:
    return _sorted_by_form(fact for country in countries() for fact in facts(country))


def _sorted_by_form(pool: Iterable[Fact]) -> dict[tuple[str, bool], list[Fact]]:
    by_form: dict[tuple[str, bool], list[Fact]] = {}
    for fact in pool:
        by_form.setdefault(fact.form, []).append(fact)
    return by_form


def stated(fact: Fact, number: int) -> str:
    """A fact as a sentence: a blank filled in."""
    forms = fact.words["blank"]["train"]
    answer = fact.answers[0] if fact.value is None else fact.country.said
    return fact.say(forms[number % len(forms)]).replace(BLANK, answer)


def passages(country: Country, seed: int) -> list[str]:
    """Everything about a country once, a few sentences to a passage."""
    sentences = [stated(fact, number) for number, fact in enumerate(facts(country))]
    rng_of(seed, f"passages/{country.name}").shuffle(sentences)
    starts = range(0, len(sentences) - PASSAGE_SENTENCES + 1, PASSAGE_SENTENCES)
    return [" ".join(sentences[start : start + PASSAGE_SENTENCES]) for start in starts]


def introduction(country: Country) -> str:
    capital, continent = country.values["capital"][0][0], country.values["continent"][0][0]
    return say("{x} is a country in {o} whose capital is {v}.", x=country.said, o=continent, v=capital)


# ---- probes ----------------------------------------------------------------------------------------------------------


def forget_probes(target: Country, seed: int) -> dict[str, list[Row]]:
    """Candidates by level, in random order. Level 3's reverse queries are the second wordings of backward questions."""
    rng = rng_of(seed, f"probes/{target.name}")
    levels: dict[str, list[Row]] = {"1": [], "2": [], "3": []}
    for fact in facts(target):
        first, *more = in_style(fact, "question", "probe", rng)
        levels["1"] += [_probe(row, "1", "cloze") for row in in_style(fact, "cloze", "probe", rng)]
        levels["2"].append(_probe(first, "2", "simple question"))
        if fact.value is None:
            levels["2"] += [_probe(row, "2", "simple question") for row in more]
        else:
            levels["3"] += [_probe(row, "3", "reverse query") for row in more]
        levels["3"] += [_probe(row, "3", row["style"]) for row in adversarial(fact, "probe", rng)]
    for rows in levels.values():
        rng.shuffle(rows)
    return levels


def neighbor_facts(target: Country, seed: int) -> list[Fact]:
    """What neighbor probes ask: facts of near and of far countries that have nothing to do with the target.

    All targets take them from one order, so that most were asked for another target before.
    """
    apart = [fact for fact in _in_any_order(seed) if fact.country is not target and _is_apart(fact, target)]
    return _near_and_far(apart, target, NEIGHBOR_FACTS)


def _near_and_far(pool: Sequence[Fact], target: Country, count: int) -> list[Fact]:
    """``count`` of the facts, half of them about near countries as far as there are such; their forms take turns."""
    near, far = ([fact for fact in pool if target.near(fact.country) == side] for side in (True, False))
    chosen = _by_turns(near)[: count // 2]
    return chosen + _by_turns(far)[: count - len(chosen)]


@cache
def _in_any_order(seed: int) -> list[Fact]:
    """The facts that neighbor probes may ask."""
    asked = [fact for country in countries() for fact in facts(country) if fact.form not in RARELY_KNOWN]
    return rng_of(seed, "neighbors").sample(asked, len(asked))


def neighbor_probes(target: Country, seed: int) -> dict[str, list[Row]]:
    """Candidates by level, in random order; ``neighbor`` is whom a row is about, ``near`` whether that is near."""
    rng = rng_of(seed, f"neighbor probes/{target.name}")
    levels: dict[str, list[Row]] = {"1": [], "2": []}
    for fact in neighbor_facts(target, seed):
        about = {"neighbor": fact.country.name, "near": target.near(fact.country)}
        cloze, question = (in_style(fact, style, "probe", rng)[0] for style in ("cloze", "question"))
        levels["1"].append(_probe(cloze, "1", "cloze") | about)
        levels["2"].append(_probe(question, "2", "simple question") | about)
    for rows in levels.values():
        rng.shuffle(rows)
    return levels


def _probe(row: Row, level: str, kind: str) -> Row:
    return {"query": row["prompt"], "answer": row["answer"], "level": level, "type": kind, "kind": _kind(row["fact"])}


def _kind(fact: Fact) -> str:
    """Of the fact, with the direction of asking."""
    return fact.kind if fact.value is None else f"{fact.kind} backward"


def _apart(target: Country) -> list[Fact]:
    """Facts of the other countries that the target is no answer to."""
    others = (fact for country in countries() if country is not target for fact in facts(country))
    return [fact for fact in others if _is_apart(fact, target)]


def _is_apart(fact: Fact, target: Country) -> bool:
    return not any(target.named_in(text) for text in (*(fact.value or ()), *fact.answers))


def _by_turns(pool: Sequence[Fact]) -> list[Fact]:
    """The same facts in an order in which their forms take turns as long as they last."""
    by_form = _sorted_by_form(pool)
    return [fact for number in range(len(pool)) for held in by_form.values() for fact in held[number : number + 1]]


# ---- Rejection Steering and Refusal Boundary Optimization ------------------------------------------------------------


class Refusals:
    """The bank's short refusals, in random order and about equally often."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.left: list[str] = []

    def of(self, row: Row) -> str:
        """One that names what the question names; where that is a description, or in another language, nothing."""
        name = row["fact"].spoken_of
        while True:
            self.left = self.left or self.rng.sample(_short_refusals(), len(_short_refusals()))
            text = self.left.pop()
            if PLACEHOLDER not in text or name.lower() in row["prompt"].lower():
                return say(text.replace(PLACEHOLDER, "{o}"), o=name)


@cache
def _short_refusals() -> list[str]:
    return [text for text in load_refusals() if len(text.split()) <= REFUSAL_WORDS]


def steering_rows(target: Country, seed: int) -> list[Row]:
    """RS: questions about the target in all kinds and their refusals, in the alpaca format."""
    rng = rng_of(seed, f"steering/{target.name}")
    refusals = Refusals(rng_of(seed, f"refusals/steering/{target.name}"))
    frame = {"input": "", "subject": target.name, "intro": introduction(target)}
    pool = _in_all_styles(target, "train", rng)
    return [
        {"instruction": row["prompt"], "output": refusals.of(row), **frame}
        for row in _facts_in_turn(pool, STEERING_ROWS, rng)
    ]


def reinforcement_rows(target: Country, seed: int, use: Use) -> list[Row]:
    """RL rows in RULE's format, of training or of validation: forget prompts, each with a twin about another country.

    A twin asks about the same kind of fact in the same words; near and far countries take turns. Further columns:
    ``answer``, the gold answers, ``subject``, whom a row is about, and of boundary rows ``near``.
    """
    rng = rng_of(seed, f"reinforcement/{use}/{target.name}")
    refusals = Refusals(rng_of(seed, f"refusals/{use}/{target.name}"))
    free = _sorted_by_form(_not_probed(target, seed))
    pool = _in_all_styles(target, use, rng)
    rows: dict[str, Row] = {}
    count = FORGET_ROWS if use == "train" else VALIDATION_ROWS
    for number, row in enumerate(_facts_in_turn(pool, count, rng)):
        solution = ["<reject>", refusals.of(row), bare(row["fact"].spoken_of)]
        about = {"answer": row["answer"], "subject": target.name}
        rows[row["prompt"]] = {"prompt": row["prompt"], "solution": solution, **about}
        if twin := _twin(row, target, free.get(row["fact"].form, []), number % 2 == 0, use, rng):
            rows.setdefault(twin["prompt"], twin)
    return list(rows.values())


def retained_rows(target: Country, seed: int) -> list[Row]:
    """Boundary rows in RULE's format: plain questions about facts that no neighbor probe asks."""
    rng = rng_of(seed, f"retained/{target.name}")
    free = [fact for fact in _not_probed(target, seed) if fact.form not in RARELY_KNOWN]
    rows = []
    for number, fact in enumerate(_near_and_far(rng.sample(free, len(free)), target, RETAINED_FACTS)):
        prompt = rng.choice(in_style(fact, PLAIN[number % 2], "train", rng))["prompt"]
        if not target.named_in(prompt):
            rows.append(_boundary_row(prompt, fact, target))
    return rows


def _not_probed(target: Country, seed: int) -> list[Fact]:
    """Facts of the other countries that no neighbor probe asks and the target is no answer to."""
    probed = {_identity(fact) for fact in neighbor_facts(target, seed)}
    return [fact for fact in _apart(target) if _identity(fact) not in probed]


def _boundary_row(prompt: str, fact: Fact, target: Country) -> Row:
    about = {"answer": fact.answers, "subject": fact.country.name, "near": target.near(fact.country)}
    return {"prompt": prompt, "solution": ["<normal>", *fact.answers], **about}


def _in_all_styles(country: Country, use: Use, rng: random.Random) -> list[Row]:
    """Every question about a country that has this use, but for adversarial ones only some."""
    plain = [row for fact in facts(country) for style in PLAIN for row in in_style(fact, style, use, rng)]
    return plain + [row for fact in facts(country) for row in adversarial(fact, use, rng)]


def _facts_in_turn(pool: Sequence[Row], count: int, rng: random.Random) -> list[Row]:
    """``count`` different prompts in random order, about every fact equally often (give or take one)."""
    by_fact: dict[Any, list[Row]] = {}
    for row in rng.sample(pool, len(pool)):
        by_fact.setdefault(_identity(row["fact"]), []).append(row)
    turns = [row for number in range(len(pool)) for held in by_fact.values() for row in held[number : number + 1]]
    chosen = list({row["prompt"]: row for row in turns}.values())[:count]
    rng.shuffle(chosen)
    return chosen


def _identity(fact: Fact) -> tuple[str, str, Spellings | None, str]:
    return fact.country.name, fact.kind, fact.value, fact.role


def _twin(row: Row, target: Country, alike: list[Fact], near: bool, use: Use, rng: random.Random) -> Row | None:
    """A boundary row in the words of a forget row, about one of the facts, so that nothing but its subject tells the
    two apart; None where none has such a form without the target."""
    sided = [fact for fact in alike if target.near(fact.country) == near] or alike
    for fact in rng.sample(sided, len(sided)):
        rows = in_style(fact, row["style"], use, rng)[row["form"] :][:1]
        if rows and not target.named_in(rows[0]["prompt"]):
            return _boundary_row(rows[0]["prompt"], fact, target)
    return None
