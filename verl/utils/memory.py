"""Memory of a rank: one definition for what runs report and what ``verl.estimate`` predicts.

On the CPU: peak resident memory of the process in the training steps, minus what was resident once everything was
imported and nothing built, before the first of several runs of a process. The engine never sleeps there, so its weights
and KV cache are in it. On CUDA: the most that torch had allocated in the training phases, without the engine, which
sleeps through them.
"""

import contextlib
import ctypes
import os
import resource
import sys
from functools import cache
from pathlib import Path

import torch

GIB = 2**30
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def resident_bytes() -> int:
    """Resident memory of this process now; where there is no /proc, its peak."""
    return _proc("self/status", "VmRSS") or peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Largest resident memory of this process since it started or since ``reset_peak``."""
    if peak := _proc("self/status", "VmHWM"):
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _proc(file: str, field: str) -> int:
    """Bytes that a field of a file in /proc says; 0 where there is no /proc."""
    path = Path("/proc", file)
    if not path.exists():
        return 0
    line = next(line for line in path.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    """Forget the resident peak so far; where /proc cannot be written, it stays that of the whole process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory_is_short() -> bool:
    """Whether no more than a quarter of the machine's memory is free for others, as far as /proc says."""
    total, available = (_proc("meminfo", field) for field in ("MemTotal", "MemAvailable"))
    return available <= total / 4


def trim() -> None:
    """Give freed heap back to the system: glibc keeps it, so that every phase's leavings would add up."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def keep_freed() -> None:
    """Let glibc keep freed tensors of up to 1 GiB until ``trim``, where the user has not set its thresholds.

    By default those of 32 MiB and the heap's end go back at once, and the next micro-batch's come as pages of zeros,
    one fault each: a tenth to a fifth of an update's time.
    """
    if sys.platform == "linux" and not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        with contextlib.suppress(AttributeError, OSError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(M_MMAP_THRESHOLD, GIB)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@cache
def _libraries_bytes() -> int:
    """What was resident at the first call: a later run of the process finds there what the runs before it left."""
    return resident_bytes()


class MemoryMeter:
    """Measures one rank. Make it when all imports are done and nothing is built.

    Args:
        alone: there is no other rank.
    """

    def __init__(self, *, on_gpu: bool, alone: bool = False) -> None:
        self.on_gpu, self.alone, self.sleeping = on_gpu, alone, 0
        self.libraries = 0 if on_gpu else _libraries_bytes()

    def held(self) -> int:
        """Bytes that torch has allocated on the GPU now, or that the process holds beyond its libraries."""
        return torch.cuda.memory_allocated() if self.on_gpu else resident_bytes() - self.libraries

    def start(self, engine_bytes: int) -> None:
        """Count from now on.

        Args:
            engine_bytes: what ``held`` grew by when the engine was built. A sleeping engine has given its memory back,
                but torch goes on counting it.
        """
        if self.on_gpu:
            self.sleeping = engine_bytes
            torch.cuda.reset_peak_memory_stats()
        else:
            trim()
            reset_peak()

    def phase_ends(self) -> None:
        """Call after every phase of a step. A rank alone keeps what it freed for the next one, unless memory is short.

        Pages that went back come again as zeros, one fault each: a third of an update's time on a virtual machine.
        """
        if not self.on_gpu and (not self.alone or memory_is_short()):
            trim()

    def peak_gib(self) -> float:
        """The peak since ``start``."""
        if self.on_gpu:
            return (torch.cuda.max_memory_allocated() - self.sleeping) / GIB
        return (peak_resident_bytes() - self.libraries) / GIB
