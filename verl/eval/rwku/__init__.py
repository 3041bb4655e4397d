"""RWKU (arXiv 2406.10890): forget and neighbor probes, membership inference, and general abilities.

The prompts' words are ours; the benchmark's data, shots, lengths and metrics are kept. docs/evaluation.md defines
every number. Atlas has RWKU's layout, so its suite is here too.
"""

from ..config import EvalConfig
from ..results import Part
from . import abilities, fluency, forget, mia, naturalness, reasoning


def parts(config: EvalConfig) -> list[Part]:
    """The parts of the suite that ``config`` names, in the order they are measured."""
    style, system = config.asks(), config.system_prompt
    probes = [forget.forget_part(style, system), forget.neighbor_part(style, system)]
    judged = naturalness.naturalness_parts(config)
    if config.suite == "atlas":
        return [*probes, forget.utility_part(style, system), *judged]
    return [
        *probes,
        abilities.triviaqa_part(),
        reasoning.bbh_part(),
        fluency.fluency_part(),
        *judged,
        mia.mia_part(),
        abilities.mmlu_part(),
        abilities.truthfulqa_part(),
    ]
