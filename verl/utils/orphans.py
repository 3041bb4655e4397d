"""What ends with a run: a process that is killed with SIGKILL cleans up nothing, so others must do it in its place.

Ray's own processes end when their parent does, but for the two agents of its raylet: they want to report the death to
a server that died with it, and wait a minute for an answer. What a reward function or a pool of processes has started
may stay for good. ``watch`` ends all of them. Processes are known by their descent from the driver, seen while it
lives: their environment and command line are not to be read, since Ray writes its titles over both. Linux only.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

POLL_S = 0.5
LOOK_S = 5.0
"""longest time between two looks at who is there"""
GRACE_S = 3.0
"""for what ends by itself, and has files to close"""
PATIENCE_S = 60.0
PR_SET_PDEATHSIG = 1

Process = tuple[int, str]
"""a process' id and when it began: together they are never used again"""

_watchers: list[subprocess.Popen] = []  # Popen complains of a process that it loses sight of


def watch() -> None:
    """From now on, what this process starts, directly or not, is killed once it has gone, however it went."""
    if sys.platform.startswith("linux"):
        # No stream of ours, or whoever reads it would wait for the watcher; a session of its own, so that what ends
        # the driver's terminal or process group leaves it alone.
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        command = [sys.executable, "-I", __file__, str(os.getpid())]
        _watchers.append(subprocess.Popen(command, cwd="/", start_new_session=True, **streams))


def end_with_parent() -> None:
    """Let this process be killed when the thread that started it ends."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before this
        os.kill(os.getpid(), signal.SIGKILL)


def wait_and_end(driver: int) -> None:
    """The watcher: note the driver's descendants until it has gone, then kill those that are left."""
    family: set[Process] = set()
    began = look = time.monotonic()
    while os.getppid() == driver:
        if time.monotonic() >= look:
            family = grown(family, processes(), driver)
            # Most is started early, and a look costs as much as there are processes.
            look = time.monotonic() + min(LOOK_S, (time.monotonic() - began) / 20)
        time.sleep(POLL_S)
    gone = time.monotonic()
    while time.monotonic() < gone + PATIENCE_S and (family := grown(family, processes())):
        if time.monotonic() > gone + GRACE_S:
            for pid, _ in family:
                with suppress(ProcessLookupError):  # gone by itself
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def grown(family: set[Process], now: dict[int, tuple[int, str]], *living: int) -> set[Process]:
    """The members of the family that are still there, with their descendants and those of ``living``.

    Args:
        now: what ``processes`` returns. This process does not count.
    """
    members = {pid: now[pid][1] for pid, began in family if pid in now and now[pid][1] == began}
    parents = {*members, *living}
    while children := {pid for pid, (parent, _) in now.items() if parent in parents} - parents - {os.getpid()}:
        members |= {pid: now[pid][1] for pid in children}
        parents |= children
    return set(members.items())


def processes() -> dict[int, tuple[int, str]]:
    """Every living process: its id, its parent's, and when it began."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:  # gone
            continue
        state, parent, *others = text.rpartition(")")[2].split()  # a name may have spaces and brackets
        if state not in "ZX":
            found[int(folder.name)] = (int(parent), others[17])
    return found


if __name__ == "__main__":
    wait_and_end(int(sys.argv[1]))
