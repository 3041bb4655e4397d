"""Seconds to hand the actor's weights to vLLM and to prove that they arrived: ``python3 benchmarks/weight_sync.py``.

One rank, fp32, a random Llama of 3.5 million parameters. Five syncs; the first, which warms up, is left out.
"""

import logging
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

from _kit import arguments, random_model, write_rows

from verl.settings.cli import show_help
from verl.trainer.preflight import read_config

SYNCS = 5


def main() -> None:
    show_help(sys.argv[1:], __doc__)
    from verl.models.export import exported_tensors
    from verl.workers.fsdp_workers import FSDPWorker

    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_model(folder / "model")
        write_rows(folder, 512)
        config = read_config([*arguments(folder, "sync"), "worker.actor.global_batch_size=512"])
        worker = FSDPWorker(config, 0, 1)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = probe.getsockname()
        worker.connect(address, os.cpu_count() or 1)
        worker.init_model()
        manager, seconds = worker.sharding_manager, {"weights": [], "proof": []}
        for _ in range(SYNCS):
            start = time.perf_counter()
            manager.rollout.load_weights(exported_tensors(manager.module, manager.dtype))
            loaded = time.perf_counter()
            manager.verify(manager.score(manager.tokens))
            seconds["weights"].append(loaded - start)
            seconds["proof"].append(time.perf_counter() - loaded)
    for part, values in seconds.items():
        print(f"{part:8} {1000 * sum(values[1:]) / (SYNCS - 1):7.1f} ms")


if __name__ == "__main__":
    main()
