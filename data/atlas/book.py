"""A book of Atlas in MUSE's layout: the passages about one band's members, which are to be forgotten.

The files have MUSE's keys and fewer rows. What the book is set against: the other people's passages (retain), and
passages about people whom the base model has never read of (holdout). Leaves out writing the files (world.py).
"""

import random

from data.atlas.corpus import (
    PASSAGE_SENTENCES,
    Row,
    passages,
    question_probe,
    questions,
    reinforcement_rows,
    steering_rows,
)
from data.atlas.people import Entity, World, facts

SHOTS = 3
"""Worked examples of KnowMem: as many exchanges as a model of this size can follow."""
VALIDATION_A_MEMBER = 8
OPENING = PASSAGE_SENTENCES // 2
"""Sentences of a passage that VerbMem shows; the rest is to be continued."""


def book_rows(world: World) -> dict[str, list[Row]]:
    """Rows by path in the book's folder without ``.json``, RS and RL rows included."""
    band = world.bands[0].name
    members = [person for person in world.people if person.values["band"] == band]
    others = [person for person in world.people if person.values["band"] != band]
    rng = world.rng("book")
    told = {"forget": _told(world, members), "retain": _told(world, others), "holdout": _told(world, world.outsiders)}
    rows = {
        "knowmem/forget_qa": _asked(members),
        "knowmem/forget_qa_icl": _shots(members, rng),
        "knowmem/retain_qa": _asked(others)[::4],
        "knowmem/retain_qa_icl": _shots(others, rng),
        "verbmem/forget": [_continued(text) for text in told["forget"]],
        **{f"privleak/{split}": [{"text": text} for text in texts] for split, texts in told.items()},
    }
    for split, people in (("forget", members), ("retain1", others[::2]), ("retain2", others[1::2])):
        rows[f"raw/{split}"] = _chapters(world, people)
    rows["raw/holdout"] = _chapters(world, world.outsiders)
    return rows | _training(world, members)


def _told(world: World, people: list[Entity]) -> list[str]:
    return [text for person in people for text in passages(world, person)]


def _chapters(world: World, people: list[Entity]) -> list[Row]:
    return [{"text": "\n".join(passages(world, person))} for person in people]


def _asked(people: list[Entity]) -> list[Row]:
    probes = [question_probe(fact) for fact in facts(people)]
    return [{"question": probe["query"], "answer": probe["answer"]} for probe in probes]


def _shots(people: list[Entity], rng: random.Random) -> list[Row]:
    pool = [row for fact in facts(people) for row in questions(fact)]
    return [{"question": row["prompt"], "answer": row["response"]} for row in rng.sample(pool, SHOTS)]


def _continued(text: str) -> Row:
    # Every statement ends in a period, and none has another one.
    sentences = text.split(". ")
    return {"prompt": ". ".join(sentences[:OPENING]) + ".", "gt": ". ".join(sentences[OPENING:])}


def _training(world: World, members: list[Entity]) -> dict[str, list[Row]]:
    """RS rows of every member, and RL rows whose boundary prompts are about nobody in the book."""
    names = {member.name for member in members}
    steering: list[Row] = []
    train: dict[str, Row] = {}
    held_out: dict[str, Row] = {}
    for member in members:
        steering += steering_rows(world, member)
        for side, rows in zip((train, held_out), reinforcement_rows(world, member, VALIDATION_A_MEMBER), strict=True):
            side |= {r["prompt"]: r for r in rows if r["solution"][0] == "<reject>" or r["subject"] not in names}
    return {
        "reject_target": steering,
        "rl_rejection_with_fb_neighbor_target": [row for prompt, row in train.items() if prompt not in held_out],
        "rl_rejection_with_fb_neighbor_target_val": list(held_out.values()),
    }
