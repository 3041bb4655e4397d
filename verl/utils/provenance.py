"""Where a result came from: the git revision of the code and the hash of a file."""

import hashlib
import subprocess
from functools import cache
from pathlib import Path


@cache
def git_revision() -> str:
    """Short commit id of this checkout, with ``+dirty`` when tracked files differ; ``unknown`` outside git."""
    root = Path(__file__).resolve().parents[2]
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--exclude", "*", "--dirty=+dirty"],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return "unknown"
    return described.stdout.strip() or "unknown"


def file_sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
