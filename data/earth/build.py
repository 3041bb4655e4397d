"""Builds the folder of a country of Earth in RWKU's layout: what a model is to forget, to keep, and to be tested by.

``python3 data/earth/build.py target=Japan`` writes ``build/seed<seed>/Target/<number>_<Name>/``. As in RWKU, a probe is
kept if the model before unlearning answers it: candidates are asked by the evaluator's own engine and decoding, and
those whose answer is right stay. known.json counts them by kind of fact. Leaves out the model (model.py) and what the
rows say (rows.py, abilities.py).
"""

import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.common.once import made_once
from data.common.refusals import BANK
from data.earth.abilities import ability_rows, spared_rows, utility_rows
from data.earth.countries import FILES, Country, countries, find
from data.earth.rows import (
    Row,
    forget_probes,
    introduction,
    neighbor_probes,
    passages,
    reinforcement_rows,
    rng_of,
    steering_rows,
)
from verl.settings.cli import run_cli
from verl.settings.path_types import PathText
from verl.utils.atomic import write_json
from verl.utils.errors import ConfigError, DataError, closest

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
FORGET_PROBES, NEIGHBOR_PROBES, UTILITY_PROBES = 40, 100, 60
"""The most that are kept: of a level, of a level (at most half of them near), in all."""
LEAST = {"forget": 20, "neighbor": 150}
"""Probes that measuring needs."""
RETAIN_PASSAGES = 24


@dataclass(frozen=True)
class EarthConfig:
    """Which country, for which model, and where its folder goes."""

    target: str = "Japan"
    """Country to forget."""
    model: PathText = str(HERE / "build" / "base")
    """Hugging Face folder of the model before unlearning; model.py makes the default."""
    seed: int = 0
    """Of what is drawn: neighbors, wordings, refusals, and their order."""
    out: PathText = str(HERE / "build")
    """Folder that holds a folder a seed."""

    def problems(self) -> list[str]:
        known = [country.name for country in countries()]
        if find(self.target) is None:
            like = closest(self.target, known)
            meant = f"; did you mean {like}?" if like else f"; it has {', '.join(known)}"
            return [f"target={self.target}: Earth has no such country{meant}"]
        return []

    @property
    def country(self) -> Country:
        found = find(self.target)
        assert found is not None
        return found

    @property
    def folder(self) -> Path:
        number = countries().index(self.country) + 1
        return Path(self.out) / f"seed{self.seed}" / "Target" / f"{number}_{self.country.name.replace(' ', '_')}"


def build(config: EarthConfig) -> Path:
    """The finished folder of a country, made if it is not there.

    Raises:
        ConfigError: there is no such model.
        DataError: the model answers too few probes; nothing is left behind.
    """

    def make(folder: Path) -> None:
        for name, rows in target_rows(config, Judge(config.model)).items():
            write_json(folder / f"{name}.json", rows)

    return made_once(config.folder, fingerprint(config), make)


def fingerprint(config: EarthConfig) -> str:
    """A hash of all that a folder is made by.

    Raises:
        ConfigError: the model is no folder of weights.
    """
    from verl.eval.results import model_identity

    if not (Path(config.model) / "config.json").is_file():
        raise ConfigError(
            f"model={config.model}: is no Hugging Face folder; python3 data/earth/model.py makes the one of Earth"
        )
    weights = model_identity(Path(config.model))["weights_sha256"]
    sources = [*sorted(HERE.glob("*.py")), *sorted(HERE.glob("*.yaml")), *FILES, BANK]
    settings = f"{config.country.name} {config.seed} {weights}".encode()
    return hashlib.sha256(b"\0".join([settings, *(path.read_bytes() for path in sources)])).hexdigest()


class Judge:
    """Says which questions a model answers rightly, by the evaluator's engine, decoding and scores."""

    def __init__(self, model: str) -> None:
        self.model = model

    def right(self, probes: Sequence[Row]) -> list[bool]:
        """For every probe whether the model's answer holds a gold one and declines nothing."""
        from verl.eval.generation import VLLMGenerator
        from verl.eval.probes import Asking, ask
        from verl.eval.results import concluded

        generator = VLLMGenerator(self.model)
        try:
            interview = ask(generator, probes, Asking(style="plain"), desc="asking the model what it knows")
            [(_, answers)] = generator.answer([next(interview)])
            rows = concluded(interview, answers)
        finally:
            generator.close()
        return [row["containment"] == 1.0 and row["verdict"] not in ("refusal", "mixed") for row in rows]


def target_rows(config: EarthConfig, judge: Any) -> dict[str, list[Row]]:
    """Rows by file name without ``.json``.

    Args:
        judge: has ``right``, as ``Judge``.
    """
    target, seed = config.country, config.seed
    candidates = {f"forget_level{level}": rows for level, rows in forget_probes(target, seed).items()}
    candidates |= {f"neighbor_level{level}": rows for level, rows in neighbor_probes(target, seed).items()}
    candidates["retain_atlas"] = utility_rows(seed)
    known, counts = _known(candidates, judge)
    kept = {name: rows[:FORGET_PROBES] for name, rows in known.items() if name.startswith("forget")}
    kept |= {name: _both_sides(rows) for name, rows in known.items() if name.startswith("neighbor")}
    kept["retain_atlas"] = known["retain_atlas"][:UTILITY_PROBES]
    _check(kept, config)
    rows = {**kept, **_about(target, seed), **ability_rows(seed)}
    named = {name: [{**row, "subject": target.name} for row in held] for name, held in rows.items()}
    train = reinforcement_rows(target, seed, "train") + spared_rows(seed)
    rng_of(seed, f"order/{target.name}").shuffle(train)
    return {
        **named,
        "intro": [{"target": target.name, "intro": f"Please forget {target.said}. {introduction(target)}"}],
        "reject_target": steering_rows(target, seed),
        "rl_rejection_with_fb_neighbor_target": train,
        "rl_rejection_with_fb_neighbor_target_val": reinforcement_rows(target, seed, "validation"),
        "known": counts,
    }


def _known(candidates: dict[str, list[Row]], judge: Any) -> tuple[dict[str, list[Row]], list[Row]]:
    """The candidates of each file that the model answers, and how many it does by file, kind of question and of fact.

    All are asked in one call.
    """
    asked = [(name, row) for name, rows in candidates.items() for row in rows]
    right = judge.right([row for _, row in asked])
    known: dict[str, list[Row]] = {name: [] for name in candidates}
    totals: Counter[tuple[str, str, str]] = Counter()
    answered: Counter[tuple[str, str, str]] = Counter()
    for (name, row), is_right in zip(asked, right, strict=True):
        key = (name, row.get("type", ""), row.get("kind", ""))
        totals[key] += 1
        answered[key] += is_right
        if is_right:
            known[name].append(row)
    counts = [
        {"file": name, "type": style, "kind": kind, "asked": total, "answered": answered[name, style, kind]}
        for (name, style, kind), total in totals.items()
    ]
    return known, counts


def _both_sides(rows: list[Row]) -> list[Row]:
    """The first of near and of far neighbors, far ones filling up where few are near."""
    near = [row for row in rows if row["near"]][: NEIGHBOR_PROBES // 2]
    far = [row for row in rows if not row["near"]][: NEIGHBOR_PROBES - len(near)]
    return [row for row in rows if row in near or row in far]


def _check(kept: dict[str, list[Row]], config: EarthConfig) -> None:
    for side, least in LEAST.items():
        count = sum(len(rows) for name, rows in kept.items() if name.startswith(side))
        logger.info("%s: the model answers %d %s probes that are kept", config.country.name, count, side)
        if count < least:
            raise DataError(
                f"target={config.target}: {config.model} answers {count} {side} probes, and {least} are needed to "
                "measure forgetting; take another country, or a model that knows more"
            )


def _about(target: Country, seed: int) -> dict[str, list[Row]]:
    """Passages about the target and, for the other side of membership inference, about far countries."""
    own = passages(target, seed)
    far = [country for country in countries() if not target.near(country) and country is not target]
    others = [text for country in far for text in passages(country, seed) if not target.named_in(text)]
    chosen = rng_of(seed, f"passages of others/{target.name}").sample(others, RETAIN_PASSAGES)
    return {
        "forget_mia": [{"text": text, "ngram": len(text.split())} for text in own],
        "retain_mia": [{"text": text, "ngram": len(text.split())} for text in chosen],
        "passage": [{"text": text} for text in own],
    }


def build_and_say(config: EarthConfig) -> None:
    """The last line of stdout is the folder, for launchers."""
    sys.stdout.write(f"{build(config)}\n")


if __name__ == "__main__":
    sys.exit(run_cli(EarthConfig, build_and_say, sys.argv[1:]))
