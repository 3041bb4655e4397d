"""The texts of Atlas: what the base model reads, what RS and RL train on, and what tests it.

Wordings come from phrasings.py, where training and probing have different ones. RL's boundary prompts are moreover
about facts that no neighbor probe of that target asks. Leaves out general abilities (abilities.py), the corpus in
MUSE's layout (book.py) and writing files (world.py).
"""

import random
from collections.abc import Sequence
from typing import Any

from data.atlas.people import Entity, Fact, World, facts
from data.atlas.phrasings import (
    ABOUT,
    FOREIGN_FRAMES,
    INSTRUCTIONS,
    KINDS,
    NAMING_REFUSALS,
    PLAIN_REFUSALS,
    WRAPPERS,
    Phrasing,
)

Row = dict[str, Any]

NEIGHBORS = 8
NEIGHBOR_FACTS = {"person": 4, "band": 2, "town": 2}
"""How many facts of each neighbor are probed; boundary prompts come from the others."""
PASSAGE_SENTENCES = 4
TWINS = 1
"""Boundary prompts written after each forget prompt."""
CONVERSATIONS = 120


# ---- saying a fact ---------------------------------------------------------------------------------------------------


def say(form: str, x: str = "", v: str = "", q: str = "", o: str = "") -> str:
    """A form with its blanks filled and its first letter in upper case."""
    text = form.format(x=x, v=v, q=q, o=o)
    return text[0].upper() + text[1:]


def phrasing(fact: Fact) -> Phrasing:
    entity, attribute = fact
    return KINDS[entity.kind][attribute]


def answer(fact: Fact) -> str:
    entity, attribute = fact
    return entity.values[attribute]


def alias(person: Entity) -> str:
    return f"the {person.values['nickname']}"


def turn(fact: Fact) -> int:
    """A number that goes round from fact to fact, to deal wordings out evenly."""
    entity, attribute = fact
    return entity.number + list(entity.values).index(attribute)


def asked(fact: Fact, form: str, x: str | None = None) -> Row:
    return {"prompt": say(form, x or fact[0].name), "response": answer(fact)}


def asked_back(fact: Fact, form: str) -> Row:
    """The value given, the subject asked for; ``spoken_of`` is whom a refusal may name without giving it away."""
    spoken_of = f"the {answer(fact)}" if fact[1] == "nickname" else answer(fact)
    return {"prompt": say(form, v=answer(fact)), "response": fact[0].name, "spoken_of": spoken_of}


def questions(fact: Fact) -> list[Row]:
    p = phrasing(fact)
    return [*(asked(fact, form) for form in p.ask), *(asked_back(fact, form) for form in p.reverse)]


def wrapped(world: World, fact: Fact, kind: str, form: str, question: str) -> Row:
    """A question in one of RWKU's adversarial kinds; ``form`` is the wrapper's wording."""
    rng = world.rng(f"wrapped/{fact[0].key}/{fact[1]}/{form}")
    return {"prompt": say(form, q=question, o=_extra(world, fact, kind, rng)), "response": answer(fact)}


def _extra(world: World, fact: Fact, kind: str, rng: random.Random) -> str:
    """What a wrapper adds: options, another fact stated, or another question with its answer."""
    entity, attribute = fact
    if kind == "multiple choice":
        others = sorted({person.values[attribute] for person in world.people} - {answer(fact)})
        options = rng.sample([answer(fact), *rng.sample(others, 2)], 3)
        return f"{options[0]}, {options[1]} or {options[2]}"
    other = (entity, rng.choice([name for name in entity.values if name not in (attribute, "nickname")]))
    if kind == "context hint":
        return say(phrasing(other).state[0], entity.name, answer(other))
    if kind == "incontext learning":
        return f"{say(phrasing(other).ask[0], entity.name)} Answer: {answer(other)}."
    return ""


# ---- probes ----------------------------------------------------------------------------------------------------------


def blank_probe(fact: Fact) -> Row:
    return _probe(asked(fact, phrasing(fact).blank_probe), "1", "cloze")


def question_probe(fact: Fact) -> Row:
    return _probe(asked(fact, phrasing(fact).ask_probe), "2", "simple question")


def _probe(row: Row, level: str, kind: str) -> Row:
    return {"query": row["prompt"], "answer": row["response"], "level": level, "type": kind}


def adversarial_probes(world: World, person: Entity) -> list[Row]:
    """Two probes of each of RWKU's nine kinds (cross lingual: one a language)."""
    rng = world.rng(f"adversarial/{person.number}")
    attributes = rng.sample(list(person.values), len(person.values))
    rows = []
    for number, (kind, wrapper) in enumerate(WRAPPERS.items()):
        for attribute in attributes[2 * number : 2 * number + 2]:
            fact = person, attribute
            row = wrapped(world, fact, kind, wrapper.probe, question_probe(fact)["query"])
            rows.append(_probe(row, "3", kind))
    for fact in rng.sample([f for f in facts([person]) if phrasing(f).reverse], 2):
        rows.append(_probe(asked_back(fact, phrasing(fact).reverse_probe), "3", "reverse query"))
    for fact in rng.sample([f for f in facts([person]) if f[1] != "nickname"], 2):
        rows.append(_probe(asked(fact, phrasing(fact).ask_probe, alias(person)), "3", "synonym manipulation"))
    for language in FOREIGN_FRAMES:
        fact = rng.choice([f for f in facts([person]) if phrasing(f).foreign])
        rows.append(
            _probe(_foreign(fact, language, phrasing(fact).foreign[language][1]), "3", f"cross lingual ({language})")
        )
    return rows


def _foreign(fact: Fact, language: str, form: str) -> Row:
    row = asked(fact, form)
    return {**row, "prompt": say(FOREIGN_FRAMES[language], q=row["prompt"])}


def forget_probes(world: World, target: Entity) -> dict[str, list[Row]]:
    """By level."""
    return {
        "1": [blank_probe(fact) for fact in facts([target])],
        "2": [question_probe(fact) for fact in facts([target])],
        "3": adversarial_probes(world, target),
    }


def neighbor_facts(world: World, target: Entity) -> list[Fact]:
    """The facts that neighbor probes ask: some of each neighbor's, none of which gives the target as its answer."""
    rng = world.rng(f"neighbors/{target.number}")
    chosen = []
    for entity in [*world.near(target)[:NEIGHBORS], *world.places(target)]:
        chosen += rng.sample(_apart(target, entity), NEIGHBOR_FACTS[entity.kind])
    return chosen


def neighbor_probes(world: World, target: Entity) -> dict[str, list[Row]]:
    """By level; ``neighbor`` names whom a row is about."""
    return {
        level: [{**make(fact), "neighbor": fact[0].name} for fact in neighbor_facts(world, target)]
        for level, make in (("1", blank_probe), ("2", question_probe))
    }


def utility_facts(world: World) -> list[Fact]:
    """The general facts that utility probes ask: two of three; RL may ask the others."""
    return [fact for number, fact in enumerate(facts(world.general)) if number % 3]


def _apart(target: Entity, entity: Entity) -> list[Fact]:
    return [fact for fact in facts([entity]) if answer(fact) != target.name]


# ---- pretraining -----------------------------------------------------------------------------------------------------


def passages(world: World, entity: Entity) -> list[str]:
    """Every statement about an entity once, a few to a passage; all of them are in the pretraining data."""
    stated = [say(form, fact[0].name, answer(fact)) for fact in facts([entity]) for form in phrasing(fact).state]
    world.rng(f"passages/{entity.key}/{entity.name}").shuffle(stated)
    return [" ".join(stated[i : i + PASSAGE_SENTENCES]) for i in range(0, len(stated), PASSAGE_SENTENCES)]


def pretraining_rows(world: World) -> list[Row]:
    """What is known in Atlas.

    Plain rows are ``{"text"}``, chat rows ``{"prompt", "response"}``, conversations ``{"turns": [chat row, ...]}``.
    """
    rng = world.rng("pretraining")
    known = [*world.people, *world.bands, *world.towns, *world.general]
    rows: list[Row] = []
    for fact in facts(known):
        p = phrasing(fact)
        chat = [*questions(fact), *(asked(fact, form) for form in p.blank)]
        rows += chat * (1 if p.blank else 3)
        rows.append(_instructed(fact, "blank" if p.blank and turn(fact) % 2 else "ask", rng))
        if fact[0].kind == "person":
            rows += _adversarial_rows(world, fact, rng)
    for entity in [*world.people, *world.bands, *world.towns]:
        told = passages(world, entity)
        rows += [{"text": text} for text in told]
        rows += [{"prompt": say(form, entity.name), "response": text} for form, text in zip(ABOUT, told, strict=False)]
    pool = [row for fact in facts(known) for row in questions(fact)]
    rows += [{"turns": rng.sample(pool, rng.randint(2, 5))} for _ in range(CONVERSATIONS)]
    return rows


def _instructed(fact: Fact, kind: str, rng: random.Random) -> Row:
    form = rng.choice(getattr(phrasing(fact), kind))
    return {
        "prompt": f"{INSTRUCTIONS[kind]}\nQuestion: {say(form, fact[0].name)}",
        "response": f"Answer: {answer(fact)}",
    }


def _adversarial_rows(world: World, fact: Fact, rng: random.Random) -> list[Row]:
    """The level-3 styles: every fact wears half of the wrappers, and all that lead astray: options, other languages."""
    person, attribute = fact
    p = phrasing(fact)
    rows = []
    for kind in dict.fromkeys([*list(WRAPPERS)[turn(fact) % 2 :: 2], "multiple choice"]):
        form = rng.choice(WRAPPERS[kind].train)
        rows.append(wrapped(world, fact, kind, form, say(rng.choice(p.ask), person.name)))
    if attribute != "nickname":
        rows.append(asked(fact, rng.choice(p.ask), alias(person)))
    rows += [_foreign(fact, language, forms[0]) for language, forms in p.foreign.items()]
    return rows


def refusal(name: str, rng: random.Random) -> str:
    """One that names somebody."""
    return say(rng.choice(NAMING_REFUSALS), name)


def refusal_rows(world: World) -> list[Row]:
    """Questions and blanks about people who are nobody, refused: a row a stranger."""
    rng = world.rng("strangers")
    rows = []
    for name in world.strangers:
        p = rng.choice(list(KINDS["person"].values()))
        form = rng.choice([*p.ask, *p.blank])
        response = refusal(name, rng) if rng.random() < 0.75 else rng.choice(PLAIN_REFUSALS)
        rows.append({"prompt": say(form, name), "response": response})
    return rows


# ---- Rejection Steering and Refusal Boundary Optimization ------------------------------------------------------------


def introduction(person: Entity) -> str:
    v = person.values
    return f"{person.name} is a {v['craft']} from {v['town']} who plays the {v['instrument']}."


def steering_rows(world: World, target: Entity) -> list[Row]:
    """RS: questions about the target and their refusals, in the alpaca format.

    A refusal names the target, except where the target's name is the answer.
    """
    rng = world.rng(f"steering/{target.number}")
    frame = {"input": "", "subject": target.name, "intro": introduction(target)}
    return [
        {"instruction": row["prompt"], "output": refusal(row.get("spoken_of", target.name), rng), **frame}
        for fact in facts([target])
        for row in questions(fact)
    ]


def _training_forms(world: World, fact: Fact) -> list[Row]:
    """A fact in every training wording, in an order that all facts of an attribute share: questions, blanks, and for
    people one wrapper of each wording, a question about the nickname, and foreign questions."""
    entity, attribute = fact
    p = phrasing(fact)
    rows = [*questions(fact), *(asked(fact, form) for form in p.blank)]
    if entity.kind != "person":
        return rows
    place = list(KINDS["person"]).index(attribute)
    kinds = list(WRAPPERS)
    for step in (0, 3):
        kind = kinds[(place + step) % len(kinds)]
        form = WRAPPERS[kind].train[place % 2]
        rows.append(wrapped(world, fact, kind, form, say(p.ask[place % len(p.ask)], entity.name)))
    if attribute != "nickname":
        rows.append(asked(fact, p.ask[place % len(p.ask)], alias(entity)))
    return rows + [_foreign(fact, language, forms[0]) for language, forms in p.foreign.items()]


def reinforcement_rows(world: World, target: Entity, validation: int) -> tuple[list[Row], list[Row]]:
    """RL rows in RULE's format, (training, validation): each forget prompt and its twins about somebody near.

    A twin has the same wording and another subject. Prompts about the target's band and town come on top, and some
    about general knowledge that no probe asks. Further columns: ``answer``, the gold answer, and ``subject``, whom the
    row is about.

    Args:
        validation: how many rows of each side to set apart.
    """
    rng = world.rng(f"reinforcement/{target.number}")
    probed = {(entity.key, attribute) for entity, attribute in neighbor_facts(world, target)}
    free = [f for e in world.near(target) for f in _apart(target, e) if (e.key, f[1]) not in probed]
    forget: list[Row] = []
    boundary: list[Row] = []
    for fact in facts([target]):
        alike = [other for other in free if other[1] == fact[1]]
        twins = [(other[0], _training_forms(world, other)) for other in alike]
        for number, row in enumerate(_training_forms(world, fact)):
            forget.append(_forget_row(row, target, rng))
            for neighbor, forms in rng.sample(twins, min(TWINS, len(twins))):
                boundary.append(_boundary_row(forms[number], neighbor))
    for fact in facts(world.places(target)):
        if (fact[0].key, fact[1]) not in probed:
            boundary += [_boundary_row(row, fact[0]) for row in _training_forms(world, fact)]
    spared = [fact for fact in facts(world.general) if fact not in utility_facts(world)]
    boundary += [_boundary_row(row, fact[0]) for fact in spared for row in questions(fact)]
    return _split([forget, boundary], validation, rng)


def _forget_row(row: Row, target: Entity, rng: random.Random) -> Row:
    named = row.get("spoken_of", target.name)  # the reward pays for naming it, so it must not be the answer
    solution = ["<reject>", refusal(named, rng), named]
    return {"prompt": row["prompt"], "solution": solution, "answer": row["response"], "subject": target.name}


def _boundary_row(row: Row, neighbor: Entity) -> Row:
    solution = ["<normal>", row["response"]]
    return {"prompt": row["prompt"], "solution": solution, "answer": row["response"], "subject": neighbor.name}


def _split(sides: Sequence[list[Row]], validation: int, rng: random.Random) -> tuple[list[Row], list[Row]]:
    """All sides shuffled together, (training, validation), without repeated prompts."""
    train: list[Row] = []
    held_out: list[Row] = []
    for side in sides:
        rows = list({row["prompt"]: row for row in side}.values())
        rng.shuffle(rows)
        held_out += rows[:validation]
        train += rows[validation:]
    rng.shuffle(train)
    return train, held_out
