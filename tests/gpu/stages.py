"""Part of the GPU check: Rejection Steering and the evaluator, by their command lines, against the CPU in fp32.

The model is that of ``runs.py``. Compared are the losses of the steps and the likelihoods of texts; what is generated
is only counted, since the likeliest of two nearly equal tokens may differ.

    CUDA_VISIBLE_DEVICES= python3 -m tests.gpu.stages --write-reference
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.gpu.findings import Noted, found
from tests.gpu.models import random_atlas, scratch
from tests.gpu.reference import Values, reference, share_off, write_reference
from verl.utils.logger.logger import read_metrics

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {"loss": 0.03, "likelihood": 0.02}
"""share of the largest value that bf16 explains"""


def steer(folder: Path, target: Path, *words: str) -> Values:
    """RS on the target's refusals, one epoch."""
    out = folder / "rs"
    places = [f"model={folder / 'base'}", f"data={target / 'reject_target.json'}", f"output_dir={out}"]
    run(["RS/train.py", "config=RS/configs/atlas.yaml", *places, "num_train_epochs=1", *words])
    return {"loss": [row["loss"] for row in read_metrics(out)]}


def evaluate(folder: Path, target: Path, *words: str) -> Values:
    """The evaluator on the untrained model: probes by the engine, texts by likelihood."""
    out = folder / "eval"
    places = [f"model={folder / 'base'}", f"data={target}", f"out={out}"]
    settings = ["suite=rwku", "parts=[forget,mia]", "gpu_memory_utilization=0.3"]
    run(["-m", "verl.eval.main", *settings, *places, *words])
    parts = json.loads((out / "results.json").read_text(encoding="utf-8"))["parts"]
    kinds = ("fm_loss", "rm_loss", "fm_min_k", "rm_min_k")
    return {
        "likelihood": [parts["mia"]["metrics"][kind]["value"] for kind in kinds],
        "answers": [float(parts["forget"]["examples"])],
    }


def run(words: list[str]) -> None:
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)


def main(argv: list[str]) -> None:
    with scratch() as place:
        folder = random_atlas(place / "atlas")
        target = next((folder / "Target").glob("1_*"))
        if argv == ["--write-reference"]:
            write_reference(
                {"RS": steer(folder, target, "precision=fp32"), "evaluator": evaluate(folder, target, "dtype=float32")}
            )
            return
        for entry, kind, function in (("RS", "loss", steer), ("evaluator", "likelihood", evaluate)):
            started = time.monotonic()
            with Noted(entry):
                measured, expected = function(folder, target), reference(entry)
                off = share_off(measured[kind], expected[kind])
                same = measured.get("answers") == expected.get("answers")
                columns = {f"{kind} off (of {LIMITS[kind]})": off, "all s": time.monotonic() - started}
                found(entry, same and off <= LIMITS[kind], **columns)


if __name__ == "__main__":
    main(sys.argv[1:])
