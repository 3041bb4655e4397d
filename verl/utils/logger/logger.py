"""One ``log`` call a step, sent to every logger the user chose; a resumed run continues what the killed one wrote.

Files live in the run's folder: ``metrics.jsonl``, ``tensorboard/``, ``wandb/``. Means over prompts, ranks or time are
taken before they come here.
"""

import importlib.util
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..atomic import write_text
from ..environment import variable

METRICS_FILE = "metrics.jsonl"
CONSOLE_KEYS = {
    "reward/overall": "reward",
    "reward/forget/overall": "forget",
    "reward/boundary/overall": "boundary",
    "reward/forget/refusal": "refused(forget)",
    "reward/boundary/refusal": "refused(boundary)",
    "val/reward/overall": "val reward",
    "actor/pg_loss": "loss",
    "actor/kl_loss": "kl",
    "actor/grad_norm": "grad",
    "response_length/mean": "length",
    "perf/time_per_step": "seconds",
}
"""The metrics of the console's line and the words it uses for them. A step with none of them is shown whole."""

logger = logging.getLogger(__name__)


class Logger(Protocol):
    """What the classes below have in common. ``resume_step`` None: a new run; N: rows beyond step N happen again."""

    def __init__(self, run_dir: Path, project: str, name: str, config: dict, resume_step: int | None) -> None: ...
    def log(self, metrics: dict[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class ConsoleLogger:
    """One aligned line a step, through ``logging``."""

    def __init__(self, run_dir: Path, project: str, name: str, config: dict, resume_step: int | None) -> None:
        logger.info("run %s/%s in %s", project, name, run_dir)

    def log(self, metrics: dict[str, float], step: int) -> None:
        chosen = {label: metrics[key] for key, label in CONSOLE_KEYS.items() if key in metrics}
        cells = [f"{label} {value:<9.4g}" for label, value in (chosen or metrics).items()]
        logger.info("%s", f"step {step:>5} | {' | '.join(cells)}".rstrip())

    def close(self) -> None: ...


class FileLogger:
    """``metrics.jsonl``: an object a call, on disk when the call returns."""

    def __init__(self, run_dir: Path, project: str, name: str, config: dict, resume_step: int | None) -> None:
        path = run_dir / METRICS_FILE
        if resume_step is None:
            _move_aside(path)
        elif path.exists():
            _drop_beyond(path, resume_step)
        self.file = path.open("a", encoding="utf-8")

    def log(self, metrics: dict[str, float], step: int) -> None:
        row = {key: value if math.isfinite(value) else str(value) for key, value in metrics.items()}
        self.file.write(json.dumps({"step": step, **row}, allow_nan=False) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class TensorBoardLogger:
    def __init__(self, run_dir: Path, project: str, name: str, config: dict, resume_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if resume_step is None else resume_step + 1
        self.writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge_step)
        self.writer.add_text("config", f"```\n{json.dumps(config, indent=2, default=str)}\n```")

    def log(self, metrics: dict[str, float], step: int) -> None:
        for key, value in metrics.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandbLogger:
    """Weights & Biases: online if logged in or WANDB_MODE says so, else offline; it never asks or waits."""

    def __init__(self, run_dir: Path, project: str, name: str, config: dict, resume_step: int | None) -> None:
        import wandb

        mode = variable("WANDB_MODE")
        if mode is None:
            os.environ.pop("WANDB_MODE", None)  # an empty one, which wandb would refuse
            mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
        arguments = {
            "project": project,
            "name": name,
            "config": config,
            "dir": str(run_dir),
            "id": _run_id(run_dir / "wandb_id", resume_step),
            "resume": "allow",
            "settings": wandb.Settings(init_timeout=60, finish_timeout=120),
        }
        try:
            self.run = wandb.init(mode=mode, **arguments)
        except wandb.Error as error:
            logger.warning("wandb cannot start in mode %s, so this run is logged offline: %s", mode, error)
            self.run = wandb.init(mode="offline", **arguments)

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.run.log(metrics, step=step)

    def close(self) -> None:
        self.run.finish()


class MlflowLogger:
    """MLflow, at MLFLOW_TRACKING_URI. Each start is a run of its own."""

    def __init__(self, run_dir: Path, project: str, name: str, config: dict, resume_step: int | None) -> None:
        import mlflow

        self.mlflow = mlflow
        mlflow.set_experiment(project)
        mlflow.start_run(run_name=name)
        mlflow.log_dict(config, "config.json")

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.mlflow.log_metrics({key.replace("@", "_at_"): value for key, value in metrics.items()}, step=step)

    def close(self) -> None:
        self.mlflow.end_run()


class SwanlabLogger:
    """SwanLab: SWANLAB_MODE if it is set, the cloud where a key is set, else local files. Each start is a new run."""

    def __init__(self, run_dir: Path, project: str, name: str, config: dict, resume_step: int | None) -> None:
        import swanlab

        mode = variable("SWANLAB_MODE") or ("cloud" if variable("SWANLAB_API_KEY") else "offline")
        logdir = str(run_dir / "swanlab")
        self.run = swanlab.init(project=project, experiment_name=name, config=config, logdir=logdir, mode=mode)

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.run.log(metrics, step=step)

    def close(self) -> None:
        self.run.finish()


LOGGERS: dict[str, type[Logger]] = {
    "console": ConsoleLogger,
    "file": FileLogger,
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
    "swanlab": SwanlabLogger,
}

MODES = {
    "wandb": ("WANDB_MODE", ("online", "offline", "shared", "disabled", "dryrun", "run")),
    "swanlab": ("SWANLAB_MODE", ("cloud", "local", "offline", "disabled")),
}
"""The environment variable that a logger takes its mode from, and the modes it knows."""


def available(name: str) -> str | None:
    """None if the logger ``name`` can be used here, else the rule it breaks and the fix."""
    if name not in LOGGERS:
        return f"must be one of {', '.join(LOGGERS)}"
    if name not in ("console", "file") and importlib.util.find_spec(name) is None:
        return f"{name} is not installed; pip install {name}, or leave it out"
    key, modes = MODES.get(name, ("", ()))
    if modes and variable(key) not in (None, *modes):
        return f"the environment variable {key}={variable(key)} must be one of {', '.join(modes)}; unset it or set one"
    return None


class Tracker:
    """Sends a step's metrics to several loggers.

    Args:
        loggers: names from ``LOGGERS``; check them with ``available`` first.
        run_dir: the run's folder, made if absent.
        config: the resolved configuration, for loggers that show it.
        resume_step: the step the run resumes from. Rows beyond it are dropped, since they will be written again.
            Without it, a metrics file of an earlier run in the same folder is moved aside.
    """

    def __init__(
        self,
        loggers: list[str],
        run_dir: str | Path,
        project_name: str,
        experiment_name: str,
        config: dict[str, Any],
        resume_step: int | None = None,
    ) -> None:
        run_dir = Path(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        names = dict.fromkeys(loggers)  # a name given twice counts once
        self.loggers = [LOGGERS[name](run_dir, project_name, experiment_name, config, resume_step) for name in names]

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log numbers (also numpy's and single-element tensors) under names such as ``reward/overall``.

        NaN and infinities are kept: as text in ``metrics.jsonl``, where ``float()`` reads them back.
        """
        numbers = {key: float(value) for key, value in metrics.items()}
        for target in self.loggers:
            target.log(numbers, step)

    def close(self) -> None:
        while self.loggers:
            self.loggers.pop().close()


def read_metrics(run_dir: str | Path) -> list[dict[str, float]]:
    """The rows of a run's ``metrics.jsonl``, NaN and infinities as floats again; an unfinished last row is left out."""
    text = (Path(run_dir) / METRICS_FILE).read_text(encoding="utf-8")
    rows = [row for line in text.split("\n") if (row := _parsed(line))]
    return [{key: value if key == "step" else float(value) for key, value in row.items()} for row in rows]


def _drop_beyond(path: Path, step: int) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and (row := _parsed(line)) and row["step"] <= step]
    if len(kept) < len(lines):
        logger.info("%s: %d row(s) beyond step %d or unfinished are dropped", path, len(lines) - len(kept), step)
        write_text(path, "".join(kept))


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _move_aside(path: Path) -> None:
    if path.exists() and path.stat().st_size:
        number = next(n for n in range(1, 10**6) if not path.with_name(f"metrics.{n}.jsonl").exists())
        aside = path.rename(path.with_name(f"metrics.{number}.jsonl"))
        logger.warning("an earlier run's metrics are in %s; they are now %s", path.parent, aside.name)


def _run_id(path: Path, resume_step: int | None) -> str:
    """The id under which a resumed run continues the killed one's curves."""
    if resume_step is None or not path.exists():
        write_text(path, os.urandom(4).hex())
    return path.read_text(encoding="utf-8")
