"""Sides that step in turns, and the table that their figures make."""

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loads import Load
from sides import MARK, ROOT

PHASES = ("sync", "gen", "reward", "old/ref", "update")
PATIENCE_S = 30


class Failed(RuntimeError):
    """A side ended before it should; the message holds the end of its log."""


@dataclass
class Side:
    """A process that steps when it is told to, and what it said."""

    title: str
    load: Load
    process: subprocess.Popen
    log: Path
    startup: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    ready_s: float = 0.0
    """from its command to the first answer"""

    def read(self) -> dict[str, Any]:
        """The next figures.

        Raises:
            Failed: there are none.
        """
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        tail = "\n".join(self.log.read_text(encoding="utf-8").splitlines()[-12:])
        raise Failed(f"{self.title}: ended with {self.process.wait()}:\n{tail}")

    def step(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # ``read`` says what happened
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        figures = self.read()
        if figures["tokens"] != self.load.trained:
            raise Failed(f"{self.title}: a step had {figures['tokens']} tokens, wanted {self.load.trained}")
        figures["seconds"]["rest"] = figures["seconds"]["step"] - sum(self.of(figures, name) for name in PHASES)
        self.steps.append(figures)

    @staticmethod
    def of(figures: dict[str, Any], phase: str) -> float:
        return figures["seconds"].get(phase, 0.0)

    @property
    def counted(self) -> list[dict[str, Any]]:
        """All steps but the first, which warms up."""
        return self.steps[1:]

    def median(self, phase: str) -> float:
        return statistics.median(self.of(figures, phase) for figures in self.counted)

    @property
    def spread(self) -> tuple[float, float]:
        seconds = [self.of(figures, "step") for figures in self.counted]
        return min(seconds), max(seconds)

    def figures(self) -> dict[str, Any]:
        """What is kept of it."""
        return {"load": asdict(self.load), "startup": self.startup, "ready_s": self.ready_s, "steps": self.steps}


@contextlib.contextmanager
def started(
    kind: str, title: str, folder: Path, load: Load, *, changes: list[str] | None = None, **settings: Any
) -> Iterator[Side]:
    """A side over the files in ``folder``, ready for its first step; ended on leaving.

    Args:
        kind: ours or trl.
        changes: words of our command line.
        settings: fields of TRL's GRPOConfig.
    """
    run = "".join(letter if letter.isalnum() else "_" for letter in title)
    job = {"load": asdict(load), "run": run, "changes": changes or [], "settings": settings}
    (folder / f"{run}.json").write_text(json.dumps(job))
    log, begun = folder / f"{run}.log", time.monotonic()
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "sides.py"), kind, str(folder), run],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
        )
    try:
        side = Side(title, load, process, log)
        side.startup = side.read()
        side.ready_s = time.monotonic() - begun
        yield side
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()


def take_turns(sides: list[Side], steps: int) -> None:
    """A step of each in turns: one that warms up and ``steps`` that count."""
    for number in range(steps + 1):
        for side in sides:
            side.step()
        seconds = [f"{side.title} {side.of(side.steps[-1], 'step'):.2f} s" for side in sides]
        sys.stderr.write(f"  step {number}: {', '.join(seconds)}\n")


def row(side: Side, rates: dict[str, float], first: Side) -> list[str]:
    """The side's line of the table.

    Args:
        rates: operations a second of this machine, by precision.
        first: the side that others are held against.
    """
    load, sharing = side.load, side.startup["shares_prompts"]
    seconds = {phase: side.median(phase) for phase in (*PHASES, "rest", "step")}
    rate = load.update_flops(shared=sharing) / seconds["update"]
    low, high = side.spread
    cells = [f"{seconds[phase]:.2f}" for phase in (*PHASES, "rest", "step")]
    cells += [f"{low:.2f} to {high:.2f}", f"{load.generated / seconds['gen']:,.0f}"]
    cells += [f"{load.trained / seconds['update']:,.0f}"]
    cells += [f"{(load.shared if sharing else load.trained) / seconds['update']:,.0f}"]
    cells += [f"{100 * rate / rates[precision(load)]:.0f} %"]
    cells += [f"{max(figures['peak_gib'] for figures in side.steps):.2f}"]
    return [side.title, *cells, f"{seconds['step'] / first.median('step'):.2f}"]


HEADER = [
    *("side", *PHASES, "rest", "step s", "of all steps", "generated/s", "trained/s", "computed/s"),
    *("of the rate", "peak GiB", "ratio"),
]
LEGEND = """\
Seconds are medians. generated/s: response tokens by second of gen. trained/s: tokens of all samples by second of
update, a prompt counted with each of its samples; computed/s: those that were computed. of the rate: operations of the
update on computed tokens (estimate/flops.py: PaLM's count, the head on every token) by second, over the machine's
measured rate. peak GiB: resident in the process that holds the model, since its start. ratio: its step over ours."""


def precision(load: Load) -> str:
    """bf16 or fp32: what the load is computed in here."""
    from verl.models.build import fast_bf16

    return "bf16" if load.precision == "auto" and fast_bf16() else "fp32"


def show(header: list[str], rows: list[list[str]]) -> None:
    """A table in Markdown, aligned for a terminal."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    for first, *others in lines:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        print(f"| {' | '.join(cells)} |", flush=True)
