"""What comes back under attack: numbers and a table out of the rows of every condition. Pure.

What an attacker teaches is not what was left: a passage that states an answer makes any model give it, also one that
never knew. So each condition is also read over the probes whose answers stand in none of its training texts ("untold"),
and the strongest attack is chosen on these. Left out: how conditions are made and measured (``robustness``).
"""

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from verl.verdict.answers import answer_list, contains_answer

from .attacks import ORIGINAL, PLAIN, Attack
from .layouts import Column
from .probes import attack_kind
from .results import Row
from .tables import Cell, Line, Table

MEASURES = {"recall": "rouge_l_recall", "contained": "containment", "refused": "refusal"}
DIRECT = ("fb", "qa")
Numbers = dict[str, float]
Rows = Mapping[Attack, Sequence[Row]]


def untold(rows: Sequence[Row], texts: Sequence[str]) -> list[int]:
    """Numbers of the probes that no text tells the answer of."""
    return [number for number, row in enumerate(rows) if not any(_tells(text, row) for text in texts)]


def _tells(text: str, row: Row) -> bool:
    """Whether a text holds an accepted answer; in doubt it tells.

    The target's own name ("Who wrote Carrie?") stands in every text about it, so of such a probe the text must also
    name what is asked about: a name in the question, or any of its words where it has none.
    """
    answers, subject = answer_list(row["answer"]), row.get("subject") or ""
    if not contains_answer(text, answers) or not contains_answer(subject, answers):
        return contains_answer(text, answers)
    words = [
        word for word in re.findall(r"\w+", row["query"])[1:] if len(word) > 3 and not contains_answer(subject, word)
    ]
    names = [word for word in words if word[0].isupper()]
    return any(contains_answer(text, word) for word in names or words)


def condition(
    attack: Attack, rows: Sequence[Row], plain: Sequence[Row], neighbor: Sequence[Row], texts: Sequence[str]
) -> dict[str, Any]:
    """An entry of robustness.json; every number in percent, a macro mean of the probes' columns.

    Args:
        rows: forget rows under the attack; ``plain`` those of the same probes without one.
        neighbor: neighbor rows under the attack; none where they were not measured.
        texts: what the attack trained on that is about the target.
    """
    left = untold(rows, texts)
    found, before = _macro([rows[n] for n in left]), _macro([plain[n] for n in left])
    return {
        "kind": attack.kind,
        "name": attack.label,
        "budget": attack.budget and vars(attack.budget),
        "forget": _macro(rows),
        "untold": {**found, "probes": len(left)} if left else None,
        "recovered": found["recall"] - before["recall"] if left else None,
        "neighbor": _macro(neighbor) if neighbor else None,
    }


def document(rows: Rows, neighbor: Rows, texts: Mapping[Attack, Sequence[str]]) -> dict[str, Any]:
    """The numbers of robustness.json: every condition, the strongest of each kind, and the strongest of all.

    The strongest is the one whose untold recall is highest, as arXiv 2606.17168 reports the highest over its trials; to
    do nothing (``plain``) is one of the attacker's choices, the model before unlearning is none.

    Args:
        rows: forget rows of ``plain`` and of every condition, of the same probes in the same order.
        neighbor: the same for neighbor rows, or empty.
        texts: what each attack trained on that is about the target; absent: nothing.
    """
    plain = rows[Attack(PLAIN)]
    entries = {
        one.name: condition(one, found, plain, neighbor.get(one, ()), texts.get(one, ())) for one, found in rows.items()
    }
    rivals = {name: entry for name, entry in entries.items() if entry["untold"] and entry["kind"] != ORIGINAL}
    ranked = sorted(rivals, key=lambda name: rivals[name]["untold"]["recall"], reverse=True)
    best, strongest = ranked[0], {entries[name]["kind"]: name for name in reversed(ranked)}
    chosen = {"condition": best, "kind": entries[best]["kind"], "recall": entries[best]["untold"]["recall"]}
    return {
        "conditions": entries,
        "strongest": {kind: name for kind, name in strongest.items() if kind != PLAIN},
        "most_recovered": {**chosen, "recovered": entries[best]["recovered"]},
    }


def recovery_table(rows: Rows, numbers: Mapping[str, Any]) -> Table:
    """The table of recovered knowledge, from the rows (``probes.score_generation``) of every condition.

    Conditions on the model are read over all probes (macro mean of FB, QA and AA) and against the unattacked model on
    the same; an adversarial kind over its own probes and against the unattacked model on plain ones (FB, QA).
    "Recovered" is the difference in recall points over untold probes, "Left" the share of the original model's recall
    over all. Neighbor rows tell an attack that brings knowledge back from one that breaks the model.

    Args:
        rows: as ``document``'s; ``original`` is among them where it was measured.
        numbers: what ``document`` says of them.
    """
    plain, original = rows[Attack(PLAIN)], rows.get(Attack(ORIGINAL))
    direct, known = _macro(plain, DIRECT), _macro(original) if original else None
    lines = [_line("Unlearned, plain probes", direct, _macro(original, DIRECT) if original else None)]
    for name, entry in numbers["conditions"].items():
        if entry["kind"] != ORIGINAL:
            label = "Unlearned, all probes" if name == PLAIN else entry["name"]
            lines.append(_line(label, _cells(entry), known))
    for kind in dict.fromkeys(attack_kind(row["type"]) for row in plain if row["column"] == "aa"):
        found = _mean(_of_kind(plain, kind))
        gained = {"recovered": found["recall"] - direct["recall"]}
        lines.append(
            _line(
                f"Attack: {kind.replace('_', ' ')}",
                found | gained,
                _mean(_of_kind(original, kind)) if original else None,
            )
        )
    shown = tuple(column for column in COLUMNS if any(column.key in line.cells for line in lines))
    most = numbers["most_recovered"]
    strongest = numbers["conditions"][most["condition"]]["name"]
    note = f"The strongest condition on the model: {strongest}, {most['recall']:.1f} of untold probes."
    return Table("robustness", shown, tuple(lines), (*NOTES, note), compares=False)


COLUMNS = (
    Column("recall", "Forget", "Recall", better="lower"),
    Column("contained", "Forget", "Contained", better="lower"),
    Column("refused", "Forget", "Refused", better="higher"),
    Column("untold", "Knowledge", "Untold", better="lower"),
    Column("recovered", "Knowledge", "Recovered", better="lower"),
    Column("original", "Knowledge", "Original"),
    Column("left", "Knowledge", "Left %", better="lower"),
    Column("neighbor", "Neighbor", "Recall", better="higher"),
)
NOTES = (
    "Recall: ROUGE-L recall in percent. Conditions on the model: macro mean of FB, QA and AA. Attacks: the mean over "
    "the adversarial probes of that kind, asked of the unattacked model.",
    "Untold: recall of the probes whose answer stands in none of the texts that were relearned. Recovered: how far "
    "that is above the unlearned model's on the same probes; for attacks, recall above its recall on plain probes.",
    "Original, Left: the model before unlearning on the same probes without a condition, and the share of its recall.",
    "Neighbor: macro mean of FB and QA. Where it falls too, the condition breaks the model rather than its unlearning.",
)


def _cells(entry: Mapping[str, Any]) -> Numbers:
    """A condition's numbers by column; the unattacked model recovers nothing."""
    cells = dict(entry["forget"])
    if entry["kind"] != PLAIN and entry["untold"]:
        cells |= {"untold": entry["untold"]["recall"], "recovered": entry["recovered"]}
    return cells | ({"neighbor": entry["neighbor"]["recall"]} if entry["neighbor"] else {})


def _of_kind(rows: Sequence[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["column"] == "aa" and attack_kind(row["type"]) == kind]


def _mean(rows: Sequence[Row]) -> Numbers:
    return {name: 100 * statistics.fmean(row[key] for row in rows) for name, key in MEASURES.items()}


def _macro(rows: Sequence[Row], columns: Sequence[str] | None = None) -> Numbers:
    """The mean of the columns' means; None: of those that the rows have."""
    picked = columns or sorted({row["column"] for row in rows})
    means = [_mean([row for row in rows if row["column"] == column]) for column in picked]
    return {name: statistics.fmean(mean[name] for mean in means) for name in MEASURES} if means else {}


def _line(name: str, found: Mapping[str, float], known: Numbers | None) -> Line:
    numbers = dict(found)
    if known is not None:
        numbers["original"] = known["recall"]
        if known["recall"] > 0:
            numbers["left"] = 100 * found["recall"] / known["recall"]
    return Line(name, "ours", {key: Cell(value) for key, value in numbers.items()})
