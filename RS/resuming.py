"""Going on with a run: whether its folder holds this run already, and what one that was killed goes on from.

``OUT/state/step_N`` holds the training state in shards (``verl.models.checkpointing``), the steps made and a digest of
the examples; it is written beside and renamed (``verl.utils.checkpoint``). All else follows from the settings in
``OUT/config.yaml``: the order of the rows on both sides, the random numbers of a step, and the original model's
likelihoods, which are computed again.
"""

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import yaml

from RS.config import RSConfig
from RS.utils.data import Example
from verl.settings.path_types import same_place
from verl.settings.reader import to_dict
from verl.utils.checkpoint import find_latest_ckpt, read_state
from verl.utils.errors import ConfigError, DataError, bullet_list

logger = logging.getLogger(__name__)

DONE, FAILED, CONFIG = "DONE", "FAILED", "config.yaml"
STATES, STATE = "state", "step_{}"
"""the folder of training states in that of a run, and their names"""
FREE = (
    "output_dir",
    "micro_batch_size",
    "gradient_checkpointing",
    "padding_free",
    "fsdp_size",
    "max_skipped_steps",
    "trust_remote_code",
    "dry_run",
)
"""settings that may change while a run is interrupted: where and how it is computed, not what"""
PATHS = ("model", "reinforced_model", "data", "retain_data")
"""settings that may be spelt otherwise"""


def is_done(config: RSConfig) -> bool:
    """Whether ``output_dir`` holds this run, and it is finished.

    Raises:
        ConfigError: it holds a run of other settings that is finished, or that has a training state.
    """
    folder = Path(config.output_dir)
    done = (folder / DONE).is_file()
    if not done and find_state(config, quiet=True) is None:
        return False
    if changed := changed_settings(config):
        held = "finished" if done else "unfinished"
        title = (
            f"output_dir={folder}: holds a run of other settings, which is {held}; set these back, give another "
            "output_dir, or remove the folder to train anew:"
        )
        raise ConfigError(bullet_list(title, changed))
    if done:
        logger.info("%s is finished (it has %s); nothing to do. Remove the folder to train again.", folder, DONE)
    return done


def changed_settings(config: RSConfig) -> list[str]:
    """``key: then -> now`` for each setting in which the run in ``output_dir`` is another one.

    Raises:
        ConfigError: its settings cannot be read.
    """
    path = Path(config.output_dir) / CONFIG
    try:
        stored = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"output_dir={config.output_dir}: the settings of the run there cannot be read ({path}: {error}); give "
            "another output_dir, or remove the folder to train anew"
        ) from error
    now = to_dict(config)
    # A setting that is younger than the run had its default there.
    then = to_dict(RSConfig(config.model, config.data, config.output_dir)) | stored
    return [f"{key}: {then[key]} -> {now[key]}" for key in now if key not in FREE and not _same(key, then, now)]


def _same(key: str, then: dict[str, Any], now: dict[str, Any]) -> bool:
    if then[key] == now[key] or key not in PATHS:
        return then[key] == now[key]
    before, behind = ([value] if isinstance(value, str) else value or [] for value in (then[key], now[key]))
    return len(before) == len(behind) and all(map(same_place, before, behind))


def find_state(config: RSConfig, *, quiet: bool = False) -> Path | None:
    """The training state that the run goes on from; None where there is none."""
    folder, _ = find_latest_ckpt(Path(config.output_dir) / STATES, STATE, quiet=quiet)
    return None if folder is None else Path(folder)


def remove_state(config: RSConfig) -> None:
    """Remove what only a run that is not finished needs."""
    shutil.rmtree(Path(config.output_dir) / STATES, ignore_errors=True)


def digest(forget: list[Example], retain: list[Example] | None) -> str:
    """A name for these examples, in this order."""
    return hashlib.sha256(repr((forget, retain)).encode()).hexdigest()[:16]


def check_examples(config: RSConfig, state: Path, forget: list[Example], retain: list[Example] | None) -> None:
    """Raise DataError where the run's examples are not those that the training state was reached with."""
    if read_state(state)["examples"] != digest(forget, retain):
        raise DataError(
            f"data={config.data}: the rows, or what tokenizer and chat template make of them, are not what they were "
            f"in the run that {state} goes on; bring them back, give another output_dir, or remove "
            f"{config.output_dir} to train anew"
        )
