"""The refusal bank: loads ``data/refusals.json`` and deals its texts out evenly, with the target's name filled in.

The file maps a style to texts; ``{target}`` stands for the name and may be left out. The name is filled in letter for
letter, so that no refusal misspells it.
"""

import random
from pathlib import Path

from verl.rows.files import read_json
from verl.utils.errors import DataError, bullet_list
from verl.verdict import verdict_of

PLACEHOLDER = "{target}"
BANK = Path(__file__).resolve().parents[1] / "refusals.json"


def load_refusals(path: str | Path = BANK) -> list[str]:
    """Every text of the bank, in the order of the file.

    Raises:
        DataError: the file is not a mapping of styles to texts; a text occurs twice, holds a brace that is not
            ``{target}``, or is no refusal to the detector which the reward uses, so that it could not be rewarded.
    """
    try:
        styles = read_json(path)
    except DataError as error:
        raise DataError(f"refusals={error}") from error
    if not isinstance(styles, dict) or not all(isinstance(texts, list) for texts in styles.values()):
        raise DataError(f'refusals={path}: must map a style to a list of texts, {{"short": ["I can\'t say."]}}')
    refusals = [str(text) for texts in styles.values() for text in texts]
    problems = [f"{text!r}: occurs twice" for text in dict.fromkeys(refusals) if refusals.count(text) > 1]
    for text in refusals:
        if set("{}") & set(text.replace(PLACEHOLDER, "")):
            problems.append(f"{text!r}: only {PLACEHOLDER} may stand in braces")
        elif verdict_of(text.replace(PLACEHOLDER, "Jane Doe")) != "refusal":
            problems.append(f"{text!r}: is no refusal to verl.verdict; say it more plainly")
    if problems or not refusals:
        raise DataError(bullet_list(f"refusals={path}: {len(refusals)} texts", problems or ["needs at least one"]))
    return refusals


def deal_refusals(refusals: list[str], count: int, target: str, seed: int) -> list[str]:
    """``count`` refusals about ``target``, each text used equally often (give or take one), shuffled by ``seed``."""
    shuffled = random.Random(seed)
    dealt: list[str] = []
    while len(dealt) < count:
        dealt += shuffled.sample(refusals, len(refusals))
    return [text.replace(PLACEHOLDER, target) for text in dealt[:count]]
