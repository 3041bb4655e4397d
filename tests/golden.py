"""Ten steps as the demo makes them, whose numbers are kept: ``golden.json`` holds what the real stack gave.

The shipped configuration on a tiny model, one rank, fp32, two epochs a step so that ratios leave the clip's range.
Weights come from a generator of the CPU, tensor by tensor in the order of their names, and not from a library's
initialisation, which may change with its version. A change that means to change the numbers writes them anew:

    python3 -m tests.golden --write

and says so in its commit. Without ``--write`` it prints how far this machine is; more words are settings of the run.
Another machine's rounding moves the numbers by up to 1e-5 of their largest (measured with ATEN_CPU_CAPABILITY=default
and MKL_CBWR=COMPATIBLE), a learning rate or a lower clip that is 1 % larger by 0.26 and 0.46: other tokens are sampled
within ten steps.
"""

import json
import sys
import tempfile
from pathlib import Path

from tests.conftest import save_tiny_model
from tests.training_kit import metrics_of, run_cli, write_files

PLACE = Path(__file__).with_name("golden.json")
STEPS = 10
KEPT = ("reward/overall", "response_length/mean", "actor/pg_loss", "actor/kl_loss", "actor/grad_norm", "actor/entropy")
LARGEST = 1e-3
"""share of a number's largest value in the run that rounding may move it by"""
REWARD_FILE = """
REWARD_TYPE = "batch"


def compute_score(rows, preset):
    return [{"overall": min(1.0, row["response"].count("e") / 4)} for row in rows]
"""
"""A reward that a random model earns now and then, so that groups differ and every update moves the weights."""
Rows = list[dict[str, float]]


def make_model(folder: Path) -> Path:
    """The tests' tiny Llama with weights that no version changes."""
    import torch
    from transformers import AutoModelForCausalLM

    save_tiny_model(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.ndim == 2:
                weight.normal_(0, 0.2, generator=generator)
    model.save_pretrained(folder)
    return folder


def words(folder: Path, run: str) -> list[str]:
    """The command line of the run ``folder/run``, over files that it writes into ``folder``."""
    write_files(folder)
    (folder / "reward.py").write_text(REWARD_FILE)
    return [
        "config=examples/grpo_rj_rl.yaml,examples/atlas.yaml",
        f"data.train_files={folder / 'rows.json'}",
        "data.val_files=null",
        "data.rollout_batch_size=8",
        "data.max_response_length=16",
        f"worker.actor.model.model_path={make_model(folder / 'model')}",
        "worker.actor.global_batch_size=8",
        "worker.actor.ppo_epochs=2",
        "worker.actor.optim.lr=2e-3",
        f"worker.reward.reward_function={folder / 'reward.py'}:compute_score",
        f"trainer.max_steps={STEPS}",
        "trainer.save_freq=-1",
        "trainer.find_last_checkpoint=false",
        f"trainer.run_dir={folder / run}",
    ]


def kept(run: Path) -> Rows:
    """What is compared of a finished run."""
    return [{key: row[key] for key in KEPT} for row in metrics_of(run)]


def expected() -> Rows:
    return json.loads(PLACE.read_text(encoding="utf-8"))


def apart(measured: Rows, wanted: Rows) -> dict[str, float]:
    """The largest difference of each number over all steps, as a share of the number's largest value."""
    return {
        key: max(abs(one[key] - other[key]) for one, other in zip(measured, wanted, strict=True))
        / max(abs(row[key]) for row in wanted)
        for key in KEPT
    }


def main(argv: list[str]) -> None:
    write = argv == ["--write"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run_cli([*words(folder, "run"), *([] if write else argv)])
        measured = kept(folder / "run")
    if write:
        lines = ",\n".join(json.dumps(row) for row in measured)
        PLACE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        return
    for key, share in apart(measured, expected()).items():
        sys.stdout.write(f"{key:25} {share:.1e}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
