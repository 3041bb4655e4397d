"""Parts of the benchmark beside the comparison with TRL's GRPOTrainer: a function each, which prints its table."""

import contextlib
import json
import math
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from loads import LOADS, TINY, Load, arguments, write_files
from race import HEADER, Failed, Side, row, show, started, take_turns
from sides import ROOT

Figures = dict[str, Any]
BASE = replace(LOADS["fp32"], prompts=8, response_tokens=32, prompt_tokens=32)
"""of the scaling"""
FLAT = (20, 100, 200)


@contextlib.contextmanager
def all_started(wanted: list[tuple[str, str, list[str]]], folder: Path, load: Load) -> Iterator[list[Side]]:
    """Sides over the same files: (kind, title, words of our command line) of each."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(started(kind, title, folder, load, changes=changes)) for kind, title, changes in wanted
        ]


def variants(wanted: dict[str, list[str]], load: Load, steps: int, rates: dict[str, float]) -> Figures:
    """Ours under several settings, in turns; the ratio is to the first."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_files(folder, load, steps + 1)
        with all_started([("ours", title, changes) for title, changes in wanted.items()], folder, load) as sides:
            take_turns(sides, steps)
            show(HEADER, [row(side, rates, sides[0]) for side in sides])
            return {side.title: side.figures() for side in sides}


def trl_by_micro(load: Load, folder: Path) -> dict[int, float]:
    """Seconds of TRL's step by samples of a pass: half of ``load.trl_micro``, as many, and twice as many."""
    small, found = replace(load, prompts=2 * load.trl_micro // load.samples), {}
    for micro in (load.trl_micro // 2, load.trl_micro, 2 * load.trl_micro):
        with started("trl", f"trl, {micro} samples a pass", folder, replace(small, trl_micro=micro)) as side:
            take_turns([side], 1)
            found[micro] = side.median("step")
    return found


def ranks(config: Any, rates: dict[str, float]) -> Figures:
    """One rank with all cores against two with half of them each."""
    print("\nranks: the load fp32")
    wanted = {f"{count} rank{'s' * (count > 1)}": [f"trainer.n_gpus_per_node={count}"] for count in (1, 2)}
    return variants(wanted, LOADS["fp32"], config.counted, rates)


def switches(config: Any, rates: dict[str, float]) -> Figures:
    """What packing and token budgets are worth, on the load rule's lengths and a small model."""
    from verl.config.worker import ActorConfig

    print("\nswitches: the load rule's rows with the model of fp32")
    names = ("share_prompts", "padding_free", "dynamic_batching")
    changes = {f"{name}=false": [f"worker.actor.{name}=false"] for name in names if hasattr(ActorConfig, name)}
    load = replace(LOADS["rule"], shape=LOADS["fp32"].shape, precision="fp32")
    return variants({"as shipped": [], **changes}, load, config.counted, rates)


def rs(config: Any, rates: dict[str, float]) -> Figures:
    """RS against TRL's SFTTrainer: ``rs.py``'s own table."""
    script = ROOT / "benchmarks" / "rs.py"
    if not script.is_file():
        print("\nrs: benchmarks/rs.py is not there")
        return {}
    print("\nrs: RS against TRL's SFTTrainer", flush=True)
    done = subprocess.run([sys.executable, str(script), *(["quick"] if config.quick else [])], cwd=ROOT, check=False)
    return {"exit code": done.returncode}


def evaluation(config: Any, rates: dict[str, float]) -> Figures:
    """All of RWKU's parts of one target of Atlas, for a model of Atlas' shape with random weights."""
    from tests.gpu.models import random_atlas

    with tempfile.TemporaryDirectory() as place:
        atlas = random_atlas(Path(place) / "atlas")
        target, out = next((atlas / "Target").glob("1_*")), Path(place) / "out"
        words = [f"model={atlas / 'base'}", "suite=rwku", f"data={target}", f"out={out}"]
        begun = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "verl.eval.main", *words], cwd=ROOT, check=True, stderr=subprocess.DEVNULL
        )
        whole = time.monotonic() - begun
        found = json.loads((out / "results.json").read_text())["parts"]
    seconds = {name: part["seconds"] for name, part in found.items()}
    print(f"\neval: all RWKU parts of a target, 3.5M, command to end {whole:.1f} s")
    rows = [[name, f"{seconds[name]:.1f}", str(found[name]["examples"])] for name in found]
    show(["part", "seconds", "examples"], [*rows, ["start-up, scores", f"{whole - sum(seconds.values()):.1f}", ""]])
    return {"whole": whole, "parts": seconds}


def startup(config: Any, rates: dict[str, float]) -> Figures:
    """From the command to the first step, split by cause: the driver's view, and a rank's of its own part."""
    from tests.training_kit import command, environment
    from verl.utils.logger.logger import read_metrics

    load, figures = LOADS["fp32"], {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_files(folder, load, 4)
        with started("ours", "ours", folder, load) as side:
            take_turns([side], 2)
            figures["driver"] = {
                **side.startup["startup"],
                "warm-up of the first step": side.of(side.steps[0], "step") - side.median("step"),
            }
        words = arguments(folder, load, "command", ["trainer.max_steps=1", "trainer.val_before_train=false"])
        begun = time.monotonic()
        process = subprocess.Popen(
            command(words), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not (folder / "command" / "metrics.jsonl").exists():
            time.sleep(0.05)
        ended = time.monotonic() - begun
        if process.wait():
            raise Failed(f"startup: {shlex.join(process.args)} ended with {process.returncode}")
        figures["command to its end"] = time.monotonic() - begun
        figures["command to the end of the first step"] = ended
        figures["command to the first step"] = ended - read_metrics(folder / "command")[0]["perf/time_per_step"]
        with started("rank", "rank", folder, load) as side:
            figures["rank"] = side.startup["startup"]
    print("\nstartup: one rank, the load fp32")
    causes = [(f"{who}: {what}", value) for who in ("driver", "rank") for what, value in figures[who].items()]
    causes += [(what, value) for what, value in figures.items() if what not in ("driver", "rank")]
    show(["cause", "seconds"], [[what, f"{value:.2f}"] for what, value in causes])
    return figures


def doubled(load: Load, what: str, times: int) -> Load:
    """``load`` with ``times`` as much of something."""
    if what == "layers":
        return replace(load, shape=load.shape | {"num_hidden_layers": 2 * times})
    if what == "width":
        shape = {name: times * load.shape[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
        return replace(load, shape=load.shape | shape)
    return replace(load, **{what: times * getattr(load, what)})


def scaling(config: Any, rates: dict[str, float]) -> Figures:
    """How a step's seconds grow as its measures double, and double again."""
    sizes = f"{BASE.prompts} prompts x {BASE.samples}, {BASE.prompt_tokens} + {BASE.response_tokens} tokens, 3.5M"
    print(f"\nscaling: {sizes}")
    found: Figures = {}
    cases = [("", 1), *((what, times) for what in DIMENSIONS for times in (2, 4))]
    for what, times in cases:
        load = doubled(BASE, what, times) if what else BASE
        with tempfile.TemporaryDirectory() as place:
            write_files(Path(place), load, config.counted + 1)
            with started("ours", "ours", Path(place), load) as side:
                take_turns([side], config.counted)
        found[f"{what} x{times}"] = {name: side.median(name) for name in ("gen", "old/ref", "update", "step")}
    base = found[" x1"]
    header, rows = ["twice as much", "gen", "old/ref", "update", "step", "x4: step", "power", "why"], []
    for what, why in DIMENSIONS.items():
        two, four = found[f"{what} x2"], found[f"{what} x4"]
        power = math.log(four["step"] / base["step"], 4)
        cells = [f"{two[name] / base[name]:.2f}" for name in ("gen", "old/ref", "update", "step")]
        rows.append([what, *cells, f"{four['step'] / base['step']:.2f}", f"{power:.2f}", why])
    show(header, rows)
    plot(found, Path(config.out) / "scaling.png")
    return found


DIMENSIONS = {
    "prompts": "the work is linear; fuller batches use the cores better",
    "samples": "as prompts; a shared prompt is computed once however many samples it has",
    "prompt_tokens": "prompts are prefilled once a group; sampling does not grow with them",
    "response_tokens": "one engine step a token; attention grows with the square, and weighs little here",
    "layers": "embedding, head, sampling and bookkeeping do not grow",
    "width": "matrices grow with the square, everything else linearly",
}
"""what is doubled, and why the step may not double"""


def plot(found: Figures, path: Path) -> None:
    """Seconds of a step over the factor, a line for each measure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for what in DIMENSIONS:
        seconds = [found[name]["step"] for name in (" x1", f"{what} x2", f"{what} x4")]
        axes.plot([1, 2, 4], seconds, marker="o", label=what.replace("_", " "))
    start = found[" x1"]["step"]
    axes.plot([1, 2, 4], [start, 2 * start, 4 * start], color="grey", linestyle=":", label="linear")
    axes.set(xscale="log", yscale="log", xlabel="times as much", ylabel="seconds of a step")
    axes.set_xticks([1, 2, 4], ["1", "2", "4"])
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def memory(config: Any, rates: dict[str, float]) -> Figures:
    """Resident memory of a rank over 200 small steps: a leak would show as growth."""
    with tempfile.TemporaryDirectory() as place:
        write_files(Path(place), TINY, 50)
        with started("ours", "ours", Path(place), TINY) as side:
            take_turns([side], FLAT[-1] - 1)
    resident = [figures["resident_gib"] for figures in side.steps]
    print(f"\nmemory: {FLAT[-1]} steps of a tiny model, one rank")
    show(["step", "resident GiB"], [[str(step), f"{resident[step - 1]:.3f}"] for step in FLAT])
    return {"resident_gib": resident}


QUICK = ("rs", "eval", "startup")
PARTS: dict[str, Callable[[Any, dict[str, float]], Figures]] = {
    "rs": rs,
    "eval": evaluation,
    "startup": startup,
    "ranks": ranks,
    "switches": switches,
    "scaling": scaling,
    "memory": memory,
}
