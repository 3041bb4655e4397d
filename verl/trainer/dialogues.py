"""Sampled dialogues in the run's folder: Markdown to read, JSON lines to process. The caller chooses them."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..rows.values import as_prompt, transcript
from ..utils.atomic import write_text
from ..utils.errors import DataError


def log_generations(run_dir: str | Path, step: int, samples: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``dialogues/step_<N>.md`` and ``.jsonl``; the path of the former.

    Args:
        samples: mappings with ``prompt`` and ``ground_truth`` (whatever a row may hold), ``response``, ``split`` and
            ``reward`` (a dict of its parts, or one number).
    """
    folder = Path(run_dir) / "dialogues"
    rows = [json.dumps({"step": step, **_finite(sample)}, ensure_ascii=False, default=str) + "\n" for sample in samples]
    write_text(folder / f"step_{step}.jsonl", "".join(rows))
    parts = [_dialogue(number, sample) for number, sample in enumerate(samples, start=1)]
    write_text(folder / f"step_{step}.md", "\n".join([f"# Dialogues at step {step}\n", *parts]))
    return folder / f"step_{step}.md"


def _dialogue(number: int, sample: Mapping[str, Any]) -> str:
    reward = sample["reward"] if isinstance(sample["reward"], Mapping) else {"overall": sample["reward"]}
    scores = ", ".join(f"{name} {float(value):.3g}" for name, value in reward.items())
    truth = sample["ground_truth"]
    lines = [
        f"## {number}. {sample['split']}: {scores}" if sample["split"] else f"## {number}. {scores}",
        f"**Prompt**\n\n{_quote(_asked(sample['prompt']))}",
        f"**Response**\n\n{_quote(sample['response'])}",
        f"**Ground truth**\n\n{_quote(' · '.join(map(_plain, truth if isinstance(truth, list) else [truth])))}",
    ]
    return "\n\n".join(lines) + "\n"


def _quote(text: str) -> str:
    """The text as a block quote that keeps its line breaks and shows its ``<tags>``."""
    lines = text.replace("<", "\\<").replace("\r\n", "\n").removesuffix("\n").split("\n") if text else ["(empty)"]
    return "\n".join(f"> {line}  " for line in lines)


def _asked(prompt: Any) -> str:
    try:
        return transcript(as_prompt(prompt))
    except DataError:
        return _plain(prompt)


def _plain(value: Any) -> str:
    """A text as it is, anything else as JSON has it."""
    return value if isinstance(value, str) else json.dumps(_finite(value), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    """``value`` as standard JSON has it: NaN and infinities as text, arrays' numbers as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
