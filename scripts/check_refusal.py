"""Measures the refusal detector: ``python3 scripts/check_refusal.py [RWKU_TARGET_FOLDER ...]``.

Prints recall on refusals and false alarms on factual text, for the tests' own cases and for the refusal templates,
passages and gold answers of RWKU targets: the folders given, else ``$RULE_SHARED_DATA/RWKU/Target``, else
``../shared/data/RWKU/Target`` beside the repository where there is one.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from verl.utils.refusal import is_refusal

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT / "tests/data/refusal_cases.json"


def rwku_texts(folder: Path) -> tuple[list[str], list[str]]:
    """(refusals, factual texts) of all targets under ``folder``, each once, the target's name left in place."""
    refusals, facts = set(), set()
    for target in folder.iterdir():
        for row in json.loads((target / "reject_target.json").read_text(encoding="utf-8")):
            refusals.add(row["output"].replace(row["subject"], "{}"))
        for name in ("passage", "forget_mia", "retain_mia", "forget_level*", "neighbor_level*"):
            for path in target.glob(f"{name}.json"):
                rows = json.loads(path.read_text(encoding="utf-8"))
                facts.update(str(row.get("text", row.get("answer"))) for row in rows)
    return sorted(refusals), sorted(facts)


def report(name: str, refusals: list[str], facts: list[str]) -> None:
    start = time.perf_counter()
    missed = [text for text in refusals if not is_refusal(text)]
    alarms = [text for text in facts if is_refusal(text)]
    each = (time.perf_counter() - start) / (len(refusals) + len(facts))
    print(f"{name}: recall {1 - len(missed) / len(refusals):.4f} ({len(refusals)} refusals), "
          f"false alarms {len(alarms) / len(facts):.4%} ({len(facts)} texts), {each * 1e6:.0f} us a text")  # fmt: skip
    for kind, texts in (("missed", missed), ("false alarm", alarms)):
        for text in texts:
            print(f"  {kind}: {text[:150]!r}")


def main() -> None:
    cases = json.loads(CASES.read_text(encoding="utf-8"))
    report(str(CASES.relative_to(ROOT)), cases["refusals"], cases["facts"])
    shared = Path(os.environ.get("RULE_SHARED_DATA", ROOT.parent / "shared/data")) / "RWKU/Target"
    for folder in map(Path, sys.argv[1:]) if sys.argv[1:] else filter(Path.is_dir, [shared]):
        report(str(folder), *rwku_texts(folder))


if __name__ == "__main__":
    main()
