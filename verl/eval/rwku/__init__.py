"""RWKU (arXiv 2406.10890): forget and neighbor probes, membership inference, and general abilities.

The prompts' words are ours or the user's (``verl.eval.prompts``); the benchmark's data, lengths, reading of answers
and metrics are kept. docs/evaluation.md defines every number. Atlas has RWKU's layout, so its suite is here too.
"""

from dataclasses import replace

from ..config import EvalConfig
from ..probes import Asking
from ..results import Part
from . import abilities, fluency, forget, memorization, mia, naturalness, reasoning


def parts(config: EvalConfig) -> list[Part]:
    """The parts of the suite that ``config`` names, in the order they are measured."""
    asking = Asking.of(config)
    probes = [forget.forget_part(asking), forget.neighbor_part(asking)]
    judged = naturalness.naturalness_parts(config)
    if config.suite == "atlas":
        return [
            *probes,
            forget.utility_part(asking),
            *judged,
            replace(fluency.fluency_part(asking), on_request=True),
            memorization.memorization_part(asking, on_request=True),
        ]
    return [
        *probes,
        abilities.triviaqa_part(asking),
        reasoning.bbh_part(asking),
        fluency.fluency_part(asking),
        *judged,
        mia.mia_part(),
        memorization.memorization_part(asking, on_request=False),
        abilities.mmlu_part(asking),
        abilities.truthfulqa_part(asking),
    ]
