"""Environment that vLLM must find before it is imported: the CPU build's settings, and one process per rank."""

import os
import time
from pathlib import Path

import torch


def has_accelerator() -> bool:
    """True where vLLM and FSDP will run on a CUDA device."""
    return torch.cuda.is_available()


def prepare(kv_cache_gib: int = 1) -> None:
    """Set vLLM's environment in this process; a variable that the user set stays as it is.

    The engine runs inside the worker process (no multiprocessing), so that it can read the trainer's weights. On CPU
    the threads are left unbound: binding would pin every rank of one machine to the same cores.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING" if has_accelerator() else "ERROR")
    if not has_accelerator():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(kv_cache_gib))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def drop_cpu_shared_memory(ranks: range, min_age_s: float = 0.0) -> None:
    """Unlink the files by which the CPU build's tensor-parallel ranks meet, once they have met.

    Under an external launcher vLLM gives them the same names in every run and never removes them, so that the next run
    would fail (errno 17). Memory that is mapped stays valid without its name.

    Args:
        ranks: the group's; one of them calls this.
        min_age_s: leave younger files alone; another run may be about to meet there.
    """
    group = f"[{'-'.join(map(str, ranks))}]-cpushm_"
    for path in Path("/dev/shm").iterdir():
        if group in path.name and time.time() - path.stat().st_mtime >= min_age_s:
            path.unlink(missing_ok=True)
