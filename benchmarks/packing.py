"""Seconds of the reference pass and of the update with and without padding: ``python3 benchmarks/packing.py``.

The model and the batch of benchmarks/step.py, but responses end where they like, so that lengths differ.
"""

import sys
import tempfile
from pathlib import Path

from _kit import mean_seconds, random_model, train, write_rows

from verl.settings.cli import show_help


def main() -> None:
    show_help(sys.argv[1:], __doc__)
    print(f"{'':30}{'ref s':>10}{'update s':>10}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_model(folder / "model")
        write_rows(folder, 128)
        for padding_free in ("true", "false"):
            for dynamic in ("true", "false"):
                changes = [
                    "data.rollout_batch_size=32",
                    "data.max_response_length=256",
                    "worker.actor.global_batch_size=32",
                    "worker.rollout.n=8",
                    "worker.actor.micro_batch_size_per_device_for_update=16",
                    f"worker.actor.padding_free={padding_free}",
                    f"worker.actor.dynamic_batching={dynamic}",
                    "trainer.max_steps=3",
                ]
                rows = train(folder, f"{padding_free}-{dynamic}", changes)
                times = (mean_seconds(rows, f"timing_s/{phase}") for phase in ("ref", "update_actor"))
                title = f"packed {padding_free}, dynamic {dynamic}"
                print(f"{title:30}" + "".join(f"{seconds:10.2f}" for seconds in times))


if __name__ == "__main__":
    main()
