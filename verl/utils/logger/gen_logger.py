"""Sampled dialogues in the run's folder: Markdown to read, JSON lines to process. The caller chooses them."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic import write_text


def log_generations(run_dir: str | Path, step: int, samples: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``dialogues/step_<N>.md`` and ``.jsonl``; the path of the former.

    Args:
        samples: mappings with ``prompt``, ``response``, ``ground_truth`` (text, or RULE's list that begins with a tag),
            ``split`` and ``reward`` (a dict of its parts, or one number).
    """
    folder = Path(run_dir) / "dialogues"
    rows = [json.dumps({"step": step, **_finite(sample)}, ensure_ascii=False) + "\n" for sample in samples]
    write_text(folder / f"step_{step}.jsonl", "".join(rows))
    parts = [_dialogue(number, sample) for number, sample in enumerate(samples, start=1)]
    write_text(folder / f"step_{step}.md", "\n".join([f"# Dialogues at step {step}\n", *parts]))
    return folder / f"step_{step}.md"


def _dialogue(number: int, sample: Mapping[str, Any]) -> str:
    reward = sample["reward"] if isinstance(sample["reward"], Mapping) else {"overall": sample["reward"]}
    scores = ", ".join(f"{name} {value:.3g}" for name, value in reward.items())
    truth = sample["ground_truth"]
    truth = truth if isinstance(truth, str) else " · ".join(map(str, truth))
    lines = [
        f"## {number}. {sample['split']}: {scores}",
        f"**Prompt**\n\n{_quote(sample['prompt'])}",
        f"**Response**\n\n{_quote(sample['response'])}",
        f"**Ground truth**\n\n{_quote(truth)}",
    ]
    return "\n\n".join(lines) + "\n"


def _quote(text: str) -> str:
    """The text as a block quote that keeps its line breaks and shows its ``<tags>``."""
    lines = text.replace("<", "\\<").splitlines() or ["(empty)"]
    return "\n".join(f"> {line}  " for line in lines)


def _finite(value: Any) -> Any:
    """``value`` as standard JSON has it: NaN and infinities as text, arrays' numbers as Python's."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
