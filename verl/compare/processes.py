"""Runs commands beside each other, each on cores of its own, with its output in a file."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """What to run, what to call it, and the file that its output is appended to."""

    words: list[str]
    name: str
    log: Path


def run_all(commands: Sequence[Command], at_a_time: int) -> None:
    """Run all commands, ``at_a_time`` of them beside each other, and wait for them; none outlives this call.

    A command that fails is logged: what it should have written is missing, which is for the caller to see.
    """
    cores, running = SimpleQueue(), []
    for share in shares(sorted(os.sched_getaffinity(0)), at_a_time):
        cores.put(share)

    def pin() -> None:
        os.sched_setaffinity(0, cores.get())  # of this thread alone, and of what it starts

    def run(command: Command) -> None:
        began = time.monotonic()
        command.log.parent.mkdir(parents=True, exist_ok=True)
        program = [sys.executable if command.words[0] == "python3" else command.words[0], *command.words[1:]]
        with command.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command.words)}\n")
            log.flush()
            child = subprocess.Popen(program, stdout=log, stderr=subprocess.STDOUT)
            running.append(child)
            code = child.wait()
        how = "done" if code == 0 else f"failed with exit code {code}, see {command.log}"
        logger.info("%s: %s in %.0f s", command.name, how, time.monotonic() - began)

    pool = ThreadPoolExecutor(at_a_time, initializer=pin)
    try:
        list(pool.map(run, commands))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in running:
            if child.poll() is None:
                child.terminate()
        for child in running:
            child.wait()


def shares(cores: Sequence[int], parts: int) -> list[set[int]]:
    """The cores in ``parts`` neighbouring sets; where there are fewer cores, sets share them."""
    if len(cores) < parts:
        return [{cores[part % len(cores)]} for part in range(parts)]
    edges = [part * len(cores) // parts for part in range(parts + 1)]
    return [set(cores[low:high]) for low, high in zip(edges, edges[1:], strict=False)]


def last_words(log: Path) -> str:
    """The last line of a log that is not blank, for a message."""
    lines = (
        [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
        if log.is_file()
        else []
    )
    return next((line for line in reversed(lines) if line), "it said nothing")
