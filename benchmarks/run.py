"""The benchmark: ours beside TRL's GRPOTrainer, and what else says how fast RULE is, each part a table.

    bash benchmarks/run.sh [quick] [parts=[rule,fp32]] [steps=5] [out=FOLDER]

``rule``, ``fp32`` and ``long`` (``loads.py``) step in turns with TRL; the other parts are ``parts.py``'s. Nothing else
should run: a step is the median of several, but a busy machine slows one side more than the other. Figures go to
OUT/benchmark.json. A whole run first finds the micro-batch that suits TRL. ``quick`` does not, takes fewer steps and of
``long`` an eighth of its prompts, and leaves the slow parts out.
"""

import importlib.util
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import parts
import torch
from loads import LOADS, find, quick, write_files
from race import HEADER, LEGEND, Failed, precision, row, show, take_turns

from verl.models.build import cpu_has_bf16
from verl.settings.cli import run_cli
from verl.utils.atomic import write_json

QUICK = ("rule", "fp32", "long", *parts.QUICK)
BUSY = 0.3
"""load average beyond which something else runs"""
PRODUCT = 3072


@dataclass(frozen=True)
class Benchmark:
    """What to measure."""

    quick: bool = False
    """fewer steps and parts: about ten minutes on two fast cores"""
    parts: list[str] | None = None
    """of rule, fp32, long, rs, eval, startup, ranks, switches, scaling, memory; null: all, under quick the first six"""
    steps: int | None = None
    """steps that count, of each side; null: 5, and 2 where quick"""
    prompts: int | None = None
    """of a step, instead of the load's own: for slow machines, whose ratio is then another one"""
    out: str = "results/benchmarks"
    """folder for the figures"""

    def problems(self) -> list[str]:
        known = (*LOADS, *parts.PARTS, "tiny")
        wrong = [name for name in self.parts or [] if name not in known]
        found = [f"parts={wrong}: no such part; choose from {', '.join(known)}"] if wrong else []
        for name in ("steps", "prompts"):
            if (value := getattr(self, name)) is not None and value < 1:
                found.append(f"{name}={value}: must be at least 1")
        return found

    @property
    def counted(self) -> int:
        return self.steps or (2 if self.quick else 5)

    @property
    def chosen(self) -> list[str]:
        return self.parts or list(QUICK if self.quick else (*LOADS, *parts.PARTS))


def measure_rates() -> dict[str, float]:
    """Operations a second of this machine in large products of matrices, the best of five; bf16 where it is fast."""
    rates = {}
    for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if kind == torch.bfloat16 and not cpu_has_bf16():
            continue
        matrix, best = torch.ones(PRODUCT, PRODUCT, dtype=kind), float("inf")
        for _ in range(5):
            start = time.perf_counter()
            matrix @ matrix
            best = min(best, time.perf_counter() - start)
        rates[name] = 2 * PRODUCT**3 / best
    return rates


def machine(rates: dict[str, float]) -> str:
    """A line that says what runs here."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    name = names[0].partition(":")[2].strip() if names else "an unknown CPU"
    speeds = ", ".join(f"{rate / 1e12:.2f} TFLOP/s {kind}" for kind, rate in rates.items())
    products = f"products of {PRODUCT} x {PRODUCT} matrices: {speeds}"
    return f"{os.cpu_count()} cores of {name}; {products}; torch {torch.__version__}"


def has_trl() -> bool:
    return importlib.util.find_spec("trl") is not None


def compare(name: str, config: Benchmark, rates: dict[str, float]) -> dict[str, Any]:
    """One load on both sides: its figures, the ratio, and the rows of the table."""
    load = quick(name) if config.quick else find(name)
    load = replace(load, prompts=config.prompts or load.prompts)
    kinds = ["ours", "trl"] if has_trl() else ["ours"]
    what = f"{load.prompts} prompts x {load.samples} samples, {load.prompt_tokens} + {load.response_tokens} tokens"
    steps = f"{config.counted} steps of each side in turns"
    print(f"\n{name}: {what}, KL in the loss, {precision(load)}, {steps}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_files(folder, load, config.counted + 1)
        by_micro = {} if config.quick or len(kinds) < 2 else parts.trl_by_micro(load, folder)
        load = replace(load, trl_micro=min(by_micro, key=by_micro.get, default=load.trl_micro))
        with parts.all_started([(kind, kind, []) for kind in kinds], folder, load) as sides:
            take_turns(sides, config.counted)
            ratio = sides[-1].median("step") / sides[0].median("step") if len(sides) > 1 else None
            rows = [[f"{name} {cells[0]}", *cells[1:]] for cells in (row(side, rates, sides[0]) for side in sides)]
            found = {side.title: side.figures() for side in sides}
            return {"ratio": ratio, "precision": precision(load), "rows": rows, "trl by micro": by_micro, **found}


def interrupted(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def run(config: Benchmark) -> None:
    signal.signal(signal.SIGTERM, interrupted)  # so that all sides are ended
    busy = os.getloadavg()[0]
    if busy > BUSY:
        print(f"WARNING: the load average is {busy:.1f}: something else runs, and the figures will be worth little")
    if not has_trl():
        print("TRL is not installed (python3 -m pip install trl==1.16.0): ours is measured alone")
    rates = measure_rates()
    figures: dict[str, Any] = {"machine": machine(rates), "rates": rates, "quick": config.quick, "load average": busy}
    print(figures["machine"])
    for name in config.chosen:
        begun = time.monotonic()
        try:
            figures[name] = parts.PARTS[name](config, rates) if name in parts.PARTS else compare(name, config, rates)
        except Failed as error:
            print(f"{name}: {error}")
            figures[name] = {"failed": str(error)}
        print(f"({name}: {time.monotonic() - begun:.0f} s)", flush=True)
        write_json(Path(config.out) / "benchmark.json", figures)
    conclude(figures, [name for name in config.chosen if name not in parts.PARTS])


def conclude(figures: dict[str, Any], loads: list[str]) -> None:
    """The table of all loads, and the line that is looked for."""
    if rows := [cells for name in loads for cells in figures[name].get("rows", [])]:
        print(f"\n{LEGEND}")
        show(HEADER, rows)
    ratios = {name: figures.get(name, {}).get("ratio") for name in LOADS}
    cells = [f"{name}={ratio:.2f}" if ratio else f"{name}=none" for name, ratio in ratios.items()]
    print(f"ratio_to_trl: {' '.join(cells)}")


if __name__ == "__main__":
    sys.exit(run_cli(Benchmark, run, sys.argv[1:]))
