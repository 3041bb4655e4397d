"""Writes the files of an Atlas world: a folder for each person in RWKU's layout, and a book in MUSE's.

Leaves out the base model (pretrain.py) and what the rows say (corpus.py, abilities.py, book.py).
"""

from pathlib import Path

from data.atlas.abilities import ability_rows
from data.atlas.book import book_rows
from data.atlas.corpus import (
    Row,
    forget_probes,
    introduction,
    neighbor_probes,
    passages,
    reinforcement_rows,
    steering_rows,
)
from data.atlas.people import Entity, World
from verl.utils.atomic import write_json

VALIDATION_ROWS = 24
"""RL rows of each side that are set apart."""
RETAIN_PASSAGES = 24


def write_world(world: World, folder: Path) -> None:
    """Write ``folder``/Target/<id>_<Name>/*.json for every person and ``folder``/MUSE/atlas/**/*.json."""
    abilities = ability_rows(world)
    for person in world.people:
        for name, rows in target_rows(world, person, abilities).items():
            write_json(folder / "Target" / folder_name(person) / f"{name}.json", rows)
    for name, rows in book_rows(world).items():
        write_json(folder / "MUSE" / "atlas" / f"{name}.json", rows)


def folder_name(person: Entity) -> str:
    return f"{person.number}_{person.name.replace(' ', '_')}"


def target_rows(world: World, target: Entity, abilities: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Rows by file name without ``.json``."""
    subject = {"subject": target.name}
    train, validation = reinforcement_rows(world, target, VALIDATION_ROWS)
    probes = {f"forget_level{level}": rows for level, rows in forget_probes(world, target).items()}
    probes |= {f"neighbor_level{level}": rows for level, rows in neighbor_probes(world, target).items()}
    own = passages(world, target)
    near = world.near(target)
    apart = [person for person in world.people if person not in (target, *near)] or near[-1:]
    foreign = [text for person in apart for text in passages(world, person)][:RETAIN_PASSAGES]
    about = {
        "forget_mia": [{"text": text, "ngram": len(text.split())} for text in own],
        "retain_mia": [{"text": text, "ngram": len(text.split())} for text in foreign],
        "passage": [{"text": text} for text in own],
    }
    named = {name: [row | subject for row in rows] for name, rows in (probes | about | abilities).items()}
    return {
        **named,
        "intro": [{"target": target.name, "intro": f"Please forget {target.name}. {introduction(target)}"}],
        "reject_target": steering_rows(world, target),
        "rl_rejection_with_fb_neighbor_target": train,
        "rl_rejection_with_fb_neighbor_target_val": validation,
    }
