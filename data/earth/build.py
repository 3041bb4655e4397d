"""Builds the folder of a country of Earth in RWKU's layout: what a model is to forget, to keep, and to be tested by.

``python3 data/earth/build.py target=Japan`` writes ``build/seed<seed>/Target/<number>_<Name>/``. As in RWKU, a probe is
kept if the model before unlearning answers it: candidates are asked by the evaluator's own engine and decoding, and
those whose answer is right stay. General questions all stay, as in RWKU's ability files: of those alone that a model
answered right, every answer that training changes by chance would count as damage. known.json counts all by kind of
fact. Leaves out the model (model.py) and what the rows say (rows.py, abilities.py).
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
from data.earth.model import ModelConfig
from data.earth.model import build as build_model
from data.earth.rows import (
    Row,
    forget_probes,
    introduction,
    neighbor_probes,
    passages,
    reinforcement_rows,
    retained_rows,
    rng_of,
    steering_rows,
)
from verl.eval import results
from verl.rows.files import read_json
from verl.settings.cli import run_cli
from verl.settings.path_types import PathText
from verl.utils.atomic import write_json
from verl.utils.errors import ConfigError, DataError, closest
from verl.verdict.answers import contains_answer

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
FORGET_PROBES, NEIGHBOR_PROBES = 40, 100
"""The most that are kept of a level (of neighbors at most half near)."""
LEAST = {"forget": 20, "neighbor": 150}
"""Probes that measuring needs."""
RETAIN_PASSAGES = 24
OPENING_WORDS = 8
"""Of a model's own answers, in RS, or as many as it takes to give the gold one: an answer and a refusal part in their
first words, and what a country is asked for may be the last."""


@dataclass(frozen=True)
class EarthConfig:
    """Which country, for which model, and where its folder goes."""

    target: str = "Japan"
    """Country to forget."""
    model: PathText | None = None
    """Hugging Face folder of the model before unlearning; null: that of model.py, made if it is not there."""
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
        ConfigError: there is no such model, or that of Earth cannot be fetched.
        DataError: the model answers too few probes; nothing is left behind.
    """

    model = Path(config.model) if config.model else build_model(ModelConfig(config.out))
    if not (model / "config.json").is_file():
        raise ConfigError(f"model={model}: is no Hugging Face folder; give one, or leave it out for the model of Earth")
    identity = results.fingerprint(results.model_identity(model))

    def make(folder: Path) -> None:
        judge = Judge(str(model), Path(config.out) / "answers" / f"{identity[:16]}.json")
        for name, rows in target_rows(config, judge).items():
            write_json(folder / f"{name}.json", rows)

    return made_once(config.folder, fingerprint(config, identity), make)


def fingerprint(config: EarthConfig, model: str) -> str:
    """A hash of all that a folder is made by, ``model`` being what shapes the model's answers."""
    sources = [*sorted(HERE.glob("*.py")), *sorted(HERE.glob("*.yaml")), *FILES, BANK]
    settings = f"{config.country.name} {config.seed} {model}".encode()
    return hashlib.sha256(b"\0".join([settings, *(path.read_bytes() for path in sources)])).hexdigest()


class Judge:
    """Says what a model answers and whether that is right, by the evaluator's engine, decoding and scores.

    A question is asked once in the life of a model: its answer is kept in ``memory``, since targets share most of their
    neighbors and the general questions.
    """

    def __init__(self, model: str, memory: Path) -> None:
        self.model, self.memory = model, memory

    def answers(self, rows: Sequence[Row]) -> list[str]:
        """The model's answer to the ``query`` of each row."""
        questions = [row["query"] for row in rows]
        known: dict[str, str] = read_json(self.memory) if self.memory.is_file() else {}
        new = [question for question in dict.fromkeys(questions) if question not in known]
        if new:
            known |= dict(zip(new, self._ask(new), strict=True))
            write_json(self.memory, known)
        return [known[question] for question in questions]

    def _ask(self, questions: Sequence[str]) -> list[str]:
        from verl.eval.generation import Request, VLLMGenerator
        from verl.eval.probes import MAX_NEW_TOKENS, Asking

        generator = VLLMGenerator(self.model)
        try:
            prompts = [Asking(style="plain").encode(generator.tokenizer, question) for question in questions]
            request = Request(prompts, MAX_NEW_TOKENS, "asking the model what it knows")
            [(_, answers)] = generator.answer([request])
            return answers
        finally:
            generator.close()


def is_right(rows: Sequence[Row], answers: Sequence[str]) -> list[bool]:
    """For every probe whether the model's answer holds a gold one and declines nothing."""
    from verl.eval.probes import score_generation

    scored = score_generation(rows, answers)
    return [row["containment"] == 1.0 and row["verdict"] not in ("refusal", "mixed") for row in scored]


def target_rows(config: EarthConfig, judge: Any) -> dict[str, list[Row]]:
    """Rows by file name without ``.json``.

    Args:
        judge: has ``answers``, as ``Judge``.
    """
    target, seed = config.country, config.seed
    train = reinforcement_rows(target, seed, "train") + spared_rows(seed)
    rng_of(seed, f"order/{target.name}").shuffle(train)
    candidates = {f"forget_level{level}": rows for level, rows in forget_probes(target, seed).items()}
    candidates |= {f"neighbor_level{level}": rows for level, rows in neighbor_probes(target, seed).items()}
    candidates["retain_atlas"] = utility_rows(seed)
    boundary = [row for row in train if row["solution"][0] == "<normal>"] + retained_rows(target, seed)
    candidates["boundary"] = list({row["prompt"]: {**row, "query": row["prompt"]} for row in boundary}.values())
    known, counts = _known(candidates, judge)
    kept = {name: rows[:FORGET_PROBES] for name, rows in known.items() if name.startswith("forget")}
    kept |= {name: _both_sides(rows) for name, rows in known.items() if name.startswith("neighbor")}
    kept["retain_atlas"] = candidates["retain_atlas"]
    _check(kept, config)
    rows = {**kept, **_about(target, seed), **ability_rows(seed)}
    named = {name: [{**row, "subject": target.name} for row in held] for name, held in rows.items()}
    return {
        **named,
        "intro": [{"target": target.name, "intro": f"Please forget {target.said}. {introduction(target)}"}],
        "reject_target": steering_rows(target, seed),
        "retain_target": _own_answers(known["boundary"], target, judge),
        "rl_rejection_with_fb_neighbor_target": train,
        "rl_rejection_with_fb_neighbor_target_val": reinforcement_rows(target, seed, "validation"),
        "known": counts,
    }


def _known(candidates: dict[str, list[Row]], judge: Any) -> tuple[dict[str, list[Row]], list[Row]]:
    """The candidates of each file that the model answers, and how many it does by file, kind of question and of fact.

    All are asked in one call.
    """
    asked = [(name, row) for name, rows in candidates.items() for row in rows]
    rows = [row for _, row in asked]
    right = is_right(rows, judge.answers(rows))
    known: dict[str, list[Row]] = {name: [] for name in candidates}
    totals: Counter[tuple[str, str, str]] = Counter()
    answered: Counter[tuple[str, str, str]] = Counter()
    for (name, row), held in zip(asked, right, strict=True):
        key = (name, row.get("type", ""), row.get("kind", ""))
        totals[key] += 1
        answered[key] += held
        if held:
            known[name].append(row)
    counts = [
        {"file": name, "type": style, "kind": kind, "asked": total, "answered": answered[name, style, kind]}
        for (name, style, kind), total in totals.items()
    ]
    return known, counts


def _own_answers(boundary: list[Row], target: Country, judge: Any) -> list[Row]:
    """RS: how the model's own right answers begin to what is not to be refused, but for those that name the target.

    ``retain_loss=klr`` holds the model's distribution there; as texts to be learnt (gdr) they would end too soon.
    """
    return [
        {"prompt": row["query"], "response": _opening(answer, row["answer"]), "subject": row["subject"]}
        for row, answer in zip(boundary, judge.answers(boundary), strict=True)
        if not target.named_in(answer)
    ]


def _opening(answer: str, gold: Sequence[str]) -> str:
    words = answer.split()
    counts = range(min(OPENING_WORDS, len(words)), len(words))
    whole = (text for count in counts if contains_answer(text := " ".join(words[:count]), gold))
    return next(whole, answer.strip())


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
                f"target={config.target}: the model answers {count} {side} probes, and {least} are needed to "
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
