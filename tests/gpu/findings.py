"""How a part of the GPU check says what it found: on its output, and in the file that ``check.py`` reads."""

import json
import os
import traceback
from pathlib import Path
from types import TracebackType


def found(what: str, passed: bool | None, **numbers: float | str) -> None:
    """Note a finding.

    Args:
        passed: None for what does not apply to this machine.
        numbers: columns of the report, by their titles.
    """
    verdict = {True: "ok", False: "FAILED", None: "left out"}[passed]
    print(f"{verdict}: {what}: " + ", ".join(f"{name} {value}" for name, value in numbers.items()), flush=True)
    if path := os.environ.get("CHECK_FINDINGS"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, "passed": passed, "numbers": numbers}) + "\n")


class Noted:
    """A block whose failure, whatever it is, is a finding and not the end of the part."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        traceback.print_exception(error)
        found(self.what, False, error=f"{type(error).__name__}: {error}".splitlines()[0][:300])
        return True
