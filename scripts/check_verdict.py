"""Measures what responses are taken for: ``python3 scripts/check_verdict.py [RWKU_TARGET_FOLDER ...]``.

Prints a table of the texts in ``tests/data/verdict`` and of the refusal templates, passages and gold answers of RWKU
targets: the folders given, else ``$RULE_SHARED_DATA/RWKU/Target``, else ``../shared/data/RWKU/Target`` beside the
repository where there is one. Texts that are judged wrongly follow, but not those of ``unseen.jsonl``, to which no
rule may be fitted.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from verl.rows.files import read_json
from verl.rows.sources import read_file
from verl.settings.cli import show_help
from verl.utils.environment import variable
from verl.verdict import verdict_of

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests/data/verdict"
LANGUAGES = {"de": "German", "fr": "French", "es": "Spanish", "zh": "Chinese"}

Case = dict


def read_cases(name: str) -> list[Case]:
    """The rows of ``seen``, ``seen2`` or ``unseen``."""
    return read_file(FOLDER / f"{name}.jsonl")


def own_cases() -> list[Case]:
    """Our older set, whose rules are fitted to it."""
    kinds = {"refusals": "refusal", "deflections": "deflection", "facts": "answer"}
    cases = read_json(FOLDER / "cases.json")
    return [{"text": text, "verdict": kinds[kind]} for kind, texts in cases.items() for text in texts]


def rwku_cases(folder: Path) -> list[Case]:
    """Refusal templates, each once, and passages and gold answers of all targets under ``folder``."""
    refusals, facts = set(), set()
    for target in sorted(folder.iterdir()):
        for row in read_file(target / "reject_target.json"):
            refusals.add(row["output"].replace(row["subject"], "Stephen King"))
        for name in ("passage", "forget_mia", "retain_mia", "forget_level*", "neighbor_level*"):
            for path in target.glob(f"{name}.json"):
                facts.update(str(row.get("text", row.get("answer"))) for row in read_file(path))
    cases = [{"text": text, "verdict": "refusal"} for text in sorted(refusals)]
    return cases + [{"text": text, "verdict": "answer"} for text in sorted(facts)]


def judged(case: Case) -> str:
    """The verdict on a case, its prompt and gold answer known where it has them."""
    answer = case.get("answer", ())
    return verdict_of(case["text"], prompt=case.get("prompt", ""), answers=answer)


def groups(cases: list[Case]) -> Iterator[tuple[str, list[Case]]]:
    """Cases by what they are: English by verdict, titles apart; other languages by language."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        language = case.get("language", "en")
        name = case["verdict"] if language == "en" else f"{LANGUAGES[language]}, {case['verdict']}"
        found.setdefault(name + (", titles" if case.get("style") == "title" else ""), []).append(case)
    yield from sorted(found.items(), key=lambda item: (item[0][0].isupper(), item[0]))


def main() -> None:
    show_help(sys.argv[1:], __doc__)
    shared = Path(variable("RULE_SHARED_DATA") or ROOT.parent / "shared/data") / "RWKU/Target"
    folders = list(map(Path, sys.argv[1:])) or [folder for folder in [shared] if folder.is_dir()]
    sets = {"cases.json": own_cases(), "unseen.jsonl": read_cases("unseen")}
    sets |= {f"{name}.jsonl": read_cases(name) for name in ("seen", "seen2")}
    sets |= {f"RWKU {folder}": rwku_cases(folder) for folder in folders}
    wrong, start = [], time.perf_counter()
    print("| set | texts that are | number | judged so |\n| --- | --- | --- | --- |")
    for name, cases in sets.items():
        for kind, members in groups(cases):
            missed = [(case, verdict) for case in members if (verdict := judged(case)) != case["verdict"]]
            print(f"| {name} | {kind} | {len(members)} | {1 - len(missed) / len(members):.3f} |")
            wrong += [] if name == "unseen.jsonl" else missed
    each = (time.perf_counter() - start) / sum(map(len, sets.values()))
    print(f"\n{each * 1e6:.0f} us a text\n")
    for case, verdict in wrong:
        print(f"{case['verdict']} taken for {verdict}: {case['text'][:150]!r}")


if __name__ == "__main__":
    main()
