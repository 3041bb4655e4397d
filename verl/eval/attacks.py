"""What is done to a model before it is asked again: the attacks of a robustness study, and the copies they need.

Left out: training (``relearn``), rounding (``quantize``), and what the answers say (``recovery``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal, get_args

from .quantize import write_quantized
from .relearn import Attacker, Budget, write_relearned

Kind = Literal["int8", "int4", "few_shot", "system_prompt", "relearn", "refusal_prefix"]
KINDS = get_args(Kind)
PLAIN, ORIGINAL = "plain", "original"
NAMES = {
    PLAIN: "Unlearned",
    ORIGINAL: "Before unlearning",
    "int8": "8-bit weights",
    "int4": "4-bit weights",
    "few_shot": "Answered questions in front",
    "system_prompt": "System prompt that asks",
    "relearn": "Relearned",
    "refusal_prefix": "Taught to go on behind refusals",
}
ROWS = {"relearn": "texts", "refusal_prefix": "rows"}


@dataclass(frozen=True)
class Attack:
    """One condition under which the probes are asked: a kind of attack, and what the attacker spends on it."""

    kind: str
    budget: Budget | None = None

    @property
    def name(self) -> str:
        """Of its folder, and in robustness.json."""
        return self.kind if self.budget is None else f"{self.kind}_{self.budget}"

    @property
    def label(self) -> str:
        """Its name in the table."""
        if self.budget is None:
            return NAMES[self.kind]
        spent = self.budget
        return f"{NAMES[self.kind]} ({spent.examples} {ROWS[self.kind]}, {spent.steps} steps, lr {spent.lr:g})"


def together(attacks: Sequence[Attack]) -> list[list[Attack]]:
    """Attacks whose copies are made by one training, which they cut off after different numbers of steps."""

    def training(attack: Attack) -> tuple:
        return attack.kind, attack.budget and (attack.budget.examples, attack.budget.lr)

    return [list(group) for _, group in groupby(attacks, key=training)]


def copies(model: Path, folder: Path, attacks: Sequence[Attack], attacker: Attacker | None) -> dict[Attack, Path]:
    """The model that each of these is asked; a copy goes into ``folder``, under the attack's name.

    Args:
        attacks: one item of ``together``.
        attacker: who fine-tunes, where the kind of attack is one of ``ROWS``.
    """
    places = {attack: folder / attack.name for attack in attacks}
    if attacker is not None:
        write_relearned(model, {attack.budget: place for attack, place in places.items() if attack.budget}, attacker)
        return places
    [attack] = attacks
    if attack.kind in ("int8", "int4"):
        return {attack: write_quantized(model, places[attack], 8 if attack.kind == "int8" else 4)}
    return {attack: model}
