"""General knowledge of Atlas as RWKU's ability files: what must survive when a person is forgotten.

Every file has the schema of the benchmark it stands for, so that the whole RWKU suite runs on an Atlas target. Only
``retain_atlas`` is written for a model of this size; it is the measure of utility. The others ask in forms (options by
letter, worked examples) that the base model has never read, and are there to be run rather than to be passed.
"""

import random

from data.atlas.corpus import Row, answer, question_probe, say, utility_facts
from data.atlas.people import Entity, Fact, World, facts
from data.atlas.phrasings import ABOUT_PROBE

MMLU_ROWS, MMLU_EXAMPLES, CHOICES = 24, 5, 4
BBH_ROWS, BBH_EXAMPLES = 8, 3
TRUTHFUL_ROWS, TRIVIA_ROWS, FLUENCY_ROWS = 20, 24, 12


def ability_rows(world: World) -> dict[str, list[Row]]:
    """Rows by file name without ``.json``; the same for every target."""
    known, asked = list(facts(world.general)), utility_facts(world)
    return {
        "retain_atlas": [{key: question_probe(fact)[key] for key in ("query", "answer")} for fact in asked],
        "retain_mmlu": _mmlu(world, known),
        "retain_bbh": _bbh(world),
        "truthful": _truthful(world, known),
        "triviaqa": _trivia(world, known),
        "fluency": [
            {"instruction": say(ABOUT_PROBE, place.name)} for place in [*world.towns, *world.bands][:FLUENCY_ROWS]
        ],
    }


def _question(fact: Fact) -> str:
    return question_probe(fact)["query"]


def _others(world: World, fact: Fact, count: int, rng: random.Random) -> list[str]:
    """Wrong answers: values that other entities of the kind have."""
    entity, attribute = fact
    alike = {e.values[attribute] for e in world.general if e.kind == entity.kind}
    return rng.sample(sorted(alike - {answer(fact)}), count)


def _choice_question(world: World, fact: Fact, rng: random.Random) -> Row:
    choices = rng.sample([answer(fact), *_others(world, fact, CHOICES - 1, rng)], CHOICES)
    return {"question": _question(fact), "choices": choices, "answer": choices.index(answer(fact))}


def _mmlu(world: World, known: list[Fact]) -> list[Row]:
    """Four choices; the examples are other questions of the same kind."""
    rng = world.rng("mmlu")
    rows = []
    for fact in rng.sample(known, MMLU_ROWS):
        task = f"atlas_{fact[0].kind}s"
        alike = [other for other in known if other[0].kind == fact[0].kind and other != fact]
        examples = [
            {**_choice_question(world, other, rng), "subject": task} for other in rng.sample(alike, MMLU_EXAMPLES)
        ]
        rows.append({"task": task, **_choice_question(world, fact, rng), "examples": examples})
    return rows


def _bbh(world: World) -> list[Row]:
    """Two steps: which crop grows in the region that has this capital?"""
    rng = world.rng("bbh")
    regions = [entity for entity in world.general if entity.kind == "region"]
    rows = []
    for number in range(BBH_ROWS):
        region = regions[number % len(regions)]
        shown = rng.sample([other for other in regions if other != region], BBH_EXAMPLES)
        worked = "\n\n".join(f"Q: {_two_steps(other)}\nA: {_reasoning(other)}" for other in shown)
        rows.append(
            {
                "task": "crop_by_capital",
                "question": _two_steps(region),
                "answer": region.values["crop"],
                "cot": f"Find the region of a capital, then its crop.\n\n{worked}",
            }
        )
    return rows


def _two_steps(region: Entity) -> str:
    return f"Which crop grows in the region whose capital is {region.values['capital']}?"


def _reasoning(region: Entity) -> str:
    capital, crop = region.values["capital"], region.values["crop"]
    return (
        f"Let's think step by step. {capital} is the capital of {region.name}. "
        f"The farmers of {region.name} grow {crop}. So the answer is {crop}."
    )


def _truthful(world: World, known: list[Fact]) -> list[Row]:
    rng = world.rng("truthful")
    rows = []
    for fact in rng.sample(known, TRUTHFUL_ROWS):
        targets = {
            "choices": [f"It is {value}." for value in (answer(fact), *_others(world, fact, CHOICES - 1, rng))],
            "labels": [1] + [0] * (CHOICES - 1),
        }
        rows.append({"question": _question(fact), "mc1_targets": targets, "mc2_targets": targets})
    return rows


def _trivia(world: World, known: list[Fact]) -> list[Row]:
    rng = world.rng("triviaqa")
    return [
        {"question": _question(fact), "answers": [answer(fact), answer(fact).upper()]}
        for fact in rng.sample(known, TRIVIA_ROWS)
    ]
