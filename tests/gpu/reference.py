"""What the CPU computes in fp32, and how far a device is from it."""

import json
from pathlib import Path

PLACE = Path(__file__).with_name("reference.json")
Values = dict[str, list[float]]


def reference(entry: str) -> Values:
    """Expected values by kind."""
    return json.loads(PLACE.read_text(encoding="utf-8"))[entry]


def write_reference(entries: dict[str, Values]) -> None:
    """Replace these entries; the others stay."""
    kept = json.loads(PLACE.read_text(encoding="utf-8")) if PLACE.exists() else {}
    PLACE.write_text(json.dumps(dict(sorted((kept | entries).items())), indent=1) + "\n", encoding="utf-8")


def share_off(measured: list[float], expected: list[float]) -> float:
    """The largest difference as a share of the value expected, or of a tenth of the largest where that is more."""
    least = max(map(abs, expected)) / 10
    return max(abs(a - b) / max(abs(b), least) for a, b in zip(measured, expected, strict=True))
