"""Finds RWKU's targets wherever they lie: on the hub, in its ``All/`` files, or in per-target folders."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl.rows.sources import is_hub_id, read_file
from verl.rows.values import shown
from verl.utils.errors import ConfigError, DataError

from .files import MANIFEST, dump_rows

TARGET_FOLDER = re.compile(r"^(\d+)_(.+)$")
MARKER = "forget_level1.json"
"""A folder with this file is a target folder, or an ``All`` folder where its intro.json lists several targets."""


@dataclass(frozen=True)
class Target:
    """One target of the source; its files are read when asked for."""

    number: str
    name: str
    folder: str
    """Folder name of the target, ``<number>_<name with underscores>``."""
    path: Path
    """Where it lies, for messages."""
    files: dict[str, Path | bytes]
    left_out: list[str] = field(default_factory=list)
    """Files that are there and not wanted."""

    def read(self, name: str) -> bytes:
        held = self.files[name]
        return held if isinstance(held, bytes) else held.read_bytes()


def find_targets(
    source: str, wanted: Sequence[str] | None, training: str | None, names: Iterable[str]
) -> tuple[list[Target], dict[str, Any]]:
    """The wanted targets of a source, and where they came from.

    Args:
        source: folder or hub dataset id.
        wanted: numbers, names or folder names; None takes all.
        training: folder of target folders that fills in files which the source has not.
        names: files to look for.

    Raises:
        ConfigError: ``wanted`` names a target that is not there.
        DataError: ``source`` holds no targets in any known layout, or cannot be downloaded.
    """
    names = tuple(names)
    path = Path(source)
    provenance: dict[str, Any] = {"from": source, "layout": "target folders"}
    if path.is_dir():
        all_folder = _all_folder(path)
        if all_folder is not None:
            provenance["layout"] = "All"
            targets = _from_all(all_folder, wanted, names)
        else:
            targets = _choose(_from_folders(path, names), wanted)
    elif is_hub_id(source):
        folders = ["*"] if wanted is None else [_folder_pattern(word) for word in wanted]
        path = download(source, [f"Target/{folder}/{name}" for folder in folders for name in names])
        provenance |= {"layout": "hub", "revision": path.name}
        targets = _choose(_from_folders(path, names), wanted)
    else:
        raise DataError(f"source={source}: is neither a folder nor a hub id like jinzhuoran/RWKU; correct the path")
    if training is not None:
        provenance["training"] = training
        targets = [_filled(target, Path(training), names) for target in targets]
    return targets, provenance


def _all_folder(path: Path) -> Path | None:
    """The folder with RWKU's joined files, if ``path`` is or holds one and holds no target folders."""
    for folder in (path, path / "All"):
        if (folder / MARKER).is_file() and len(_introductions(folder)) > 1:
            return folder
    return None


def _introductions(folder: Path) -> list[dict[str, Any]]:
    """The rows of intro.json, where it is there; each names a target."""
    path = folder / "intro.json"
    rows = read_file(path) if path.is_file() else []
    for number, row in enumerate(rows):
        if not isinstance(row.get("target"), str):
            raise DataError(f"{path}: row {number}: target={shown(row.get('target'))} must be a text")
    return rows


def _from_folders(path: Path, names: tuple[str, ...]) -> list[Target]:
    if (path / MARKER).is_file():
        folders = [path]
    else:
        root = path / "Target" if (path / "Target").is_dir() else path
        folders = [folder for folder in root.iterdir() if folder.is_dir() and TARGET_FOLDER.match(folder.name)]
    if not folders:
        raise DataError(
            f"{path}: holds neither target folders (1_Stephen_King, ...) nor All/{MARKER}; give the folder that does"
        )
    folders = sorted(folders, key=lambda folder: (_number(folder), folder.name))
    return [_from_folder(folder, names) for folder in folders]


def _number(folder: Path) -> int:
    match = TARGET_FOLDER.match(folder.name)
    return int(match[1]) if match else 0


def _from_folder(folder: Path, names: tuple[str, ...]) -> Target:
    match = TARGET_FOLDER.match(folder.resolve().name)
    if match is None:
        raise DataError(f"{folder}: a target folder is called NUMBER_NAME, for example 1_Stephen_King; rename it")
    introductions = _introductions(folder)
    name = introductions[0]["target"] if introductions else None
    there = sorted(path.name for path in folder.glob("*.json") if path.name != MANIFEST)
    return Target(
        number=match[1],
        name=name or match[2].replace("_", " "),
        folder=match[0],
        path=folder,
        files={file: folder / file for file in there if file in names},
        left_out=[file for file in there if file not in names],
    )


def _from_all(folder: Path, wanted: Sequence[str] | None, names: tuple[str, ...]) -> list[Target]:
    """Targets out of the joined files, whose rows name their target; numbered as in intro.json, as RWKU does."""
    introductions = _introductions(folder)
    titles = [row["target"] for row in introductions]
    targets = _choose(
        [
            Target(str(number), title, f"{number}_{title.replace(' ', '_')}", Path(f"{folder} ({title})"), {})
            for number, title in enumerate(titles, start=1)
        ],
        wanted,
    )
    by_name = {target.name: target for target in targets}
    for name in names:
        path = folder / name
        if not path.is_file():
            continue
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in read_file(path):
            title = row.get("target" if name == "intro.json" else "subject")
            if title not in titles:
                raise DataError(
                    f"{path}: a row belongs to {shown(title)}, which intro.json does not list; fetch both again"
                )
            rows.setdefault(title, []).append(row)
        for title in rows.keys() & by_name.keys():
            by_name[title].files[name] = dump_rows(rows[title])
    there = {path.name for path in folder.glob("*.json")}
    for target in targets:
        target.left_out.extend(sorted(there - set(names)))
    return targets


def _choose(targets: list[Target], wanted: Sequence[str] | None) -> list[Target]:
    if wanted is None:
        return targets
    chosen, unknown = [], []
    for word in wanted:
        hits = [target for target in targets if word in (target.number, target.name, target.folder)]
        chosen += [target for target in hits if target not in chosen]
        unknown += [] if hits else [word]
    if unknown:
        there = ", ".join(target.folder for target in targets[:10]) + (", ..." if len(targets) > 10 else "")
        raise ConfigError(f"targets={','.join(unknown)}: not in the source; it has {there}")
    return chosen


def _filled(target: Target, training: Path, names: tuple[str, ...]) -> Target:
    """The target with the files that only the training folder has."""
    root = training / "Target" if (training / "Target").is_dir() else training
    folder = root / target.folder
    if not folder.is_dir():
        raise DataError(f"training={training}: holds no {target.folder}; give the folder that holds the target folders")
    more = {path.name: path for path in sorted(folder.glob("*.json")) if path.name in names}
    return Target(
        target.number, target.name, target.folder, target.path, {**more, **target.files}, list(target.left_out)
    )


def download(repo: str, patterns: list[str]) -> Path:
    """The files of a hub dataset that match the patterns, in the hub's cache.

    Raises:
        DataError: the hub cannot be reached or does not have the dataset.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, repo_type="dataset", allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(f"source={repo}: cannot be downloaded ({error}); give a local copy as source") from error


def _folder_pattern(word: str) -> str:
    if word.isdecimal():
        return f"{word}_*"
    return word if TARGET_FOLDER.match(word) else f"*_{word.replace(' ', '_')}"
