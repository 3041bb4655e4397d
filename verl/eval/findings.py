"""What a reader wants to know first, in sentences: what was forgotten and kept, how the model answers, what it cost.

Pure: results, probes and metrics in, ``page.Finding`` out. Leaves out tables and how findings are shown.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .page import WORDS, Finding, Probe
from .results import metric

PEAK = "perf/peak_memory_gib"
SECONDS = ("perf/time_per_step", "seconds")
"""What a step took, by the name that ReBO and RS log it under."""


@dataclass(frozen=True)
class Training:
    """What a run cost. Its steps alone: no start-up, validation or saving."""

    steps: int
    seconds: float
    peak_gib: float | None = None
    """Of the rank that took most, where the run logs it."""


def training_of(history: Sequence[Mapping[str, Any]]) -> Training | None:
    """What the rows of a run's metrics.jsonl say of its cost; None where they time no step.

    A step that a resumed run made again counts once, as it was logged last.
    """
    seconds = {row["step"]: row[key] for row in history for key in SECONDS if key in row}
    if not seconds:
        return None
    peaks = [row[PEAK] for row in history if PEAK in row]
    return Training(len(seconds), sum(seconds.values()), max(peaks, default=None))


def demo_findings(
    measured: Mapping[str, Mapping[str, Any]],
    probes: Sequence[Probe],
    trainings: Mapping[str, Training],
    *,
    subject: str,
) -> list[Finding]:
    """The four findings of the demo.

    Args:
        measured: results.json content of the model before unlearning, after RS and after ReBO, in this order.
        probes: with responses by the same names.
        trainings: name of a stage to what it cost.
    """
    names = list(measured)
    findings = [
        _forgotten(measured, names, subject),
        _kept(measured, names, subject),
        _answers(probes, names[-1]),
    ]
    return findings + ([_cost(trainings, measured[names[-1]])] if trainings else [])


def _forgotten(measured: Mapping[str, Any], names: Sequence[str], subject: str) -> Finding:
    first, middle, last = names
    told = {name: _percent(measured[name], "forget", "all_probe/containment") for name in names}
    refused = {name: _percent(measured[name], "forget", "all_probe/refusal_rate") for name in names}
    asked = measured[last]["parts"]["forget"]["examples"]
    return Finding(
        "Forgotten",
        refused[last],
        f"of {asked} questions about {subject} are refused by {last}; {first} refused {refused[first]}.\n"
        f"The right answer is in {told[last]} of its responses; it was in {told[first]} of {first}'s. {middle} alone "
        f"refuses {refused[middle]} and tells in {told[middle]}.",
    )


def _kept(measured: Mapping[str, Any], names: Sequence[str], subject: str) -> Finding:
    first, middle, last = names
    right = {name: _percent(measured[name], "neighbor", "all_probe/containment") for name in names}
    refused = {name: _percent(measured[name], "neighbor", "all_probe/refusal_rate") for name in names}
    general = {name: _percent(measured[name], "utility", "utility/containment") for name in names}
    asked = measured[last]["parts"]["neighbor"]["examples"]
    return Finding(
        "Kept",
        right[last],
        f"of {asked} questions about what is near {subject} are answered right by {last}; it was {right[first]} by "
        f"{first}. It refuses {refused[last]} of them.\n"
        f"{middle} alone answers {right[middle]} and refuses {refused[middle]}. Of general questions, {last} answers "
        f"{general[last]} and {first} {general[first]}.",
    )


def _answers(probes: Sequence[Probe], name: str) -> Finding:
    """Shares of responses on the forget side, and the first shown dialogue of either side, whatever it says."""
    forget = [probe.responses[name].kind for probe in probes if probe.part == "forget"]
    shares = [f"{WORDS[kind]} {percent(100 * forget.count(kind) / len(forget))}" for kind in WORDS if kind in forget]
    shown = [next((p for p in probes if p.featured and p.part == part), None) for part in ("forget", "neighbor")]
    quoted = [f"Asked “{_line(p.query)}”, it says “{_line(p.responses[name].text)}”" for p in shown if p is not None]
    return Finding("How it answers now", "", "\n".join([*quoted, f"Of all it should forget: {', '.join(shares)}."]))


def _cost(trainings: Mapping[str, Training], results: Mapping[str, Any]) -> Finding:
    stages = [f"{name}: {_steps(one)} in {duration(one.seconds)}" for name, one in trainings.items()]
    peaks = [one.peak_gib for one in trainings.values() if one.peak_gib is not None]
    memory = f" At most {max(peaks):.1f} GiB of memory a process." if peaks else ""
    where = f"On {results['device']}, evaluated in {results['engine']['dtype']}."
    total = duration(sum(one.seconds for one in trainings.values()))
    return Finding("Cost", total, f"of training steps, without start-up. {'; '.join(stages)}.{memory}\n{where}")


def _steps(training: Training) -> str:
    return f"{training.steps} step" + "s" * (training.steps != 1)


def percent(value: float) -> str:
    """One decimal, and none where it is 0."""
    return f"{value:.1f}".removesuffix(".0") + " %"


def duration(seconds: float) -> str:
    """Seconds in the unit in which people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def as_markdown(findings: Sequence[Finding]) -> str:
    """The findings as a list, for the head of a table."""
    lines = []
    for one in findings:
        figure = f" {one.figure}" if one.figure else ""
        text = "\n  ".join(map(escape_markdown, one.text.split("\n")))
        lines.append(f"- **{one.title}:**{figure} {text}")
    return "\n".join(lines)


def escape_markdown(text: str) -> str:
    """Text of models and data in which no character is taken for markup."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)


def _percent(results: Mapping[str, Any], part: str, name: str) -> str:
    return percent(metric(results, part, name)["value"])


def _line(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"
