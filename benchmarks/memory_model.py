"""Memory and time of one step for Llama 3 8B and 70B on GPUs of 80 GB, from the trainer's own estimate.

``PYTHONPATH=. python3 benchmarks/memory_model.py`` prints the tables of docs/architecture.md. No GPU and no
weights are needed: the sizes are those of the published ``config.json`` files.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from verl.estimate.estimate import estimate
from verl.estimate.flops import ModelShape
from verl.estimate.hardware import Hardware
from verl.settings.cli import show_help
from verl.trainer.preflight import read_config
from verl.utils.memory import GIB

LLAMA = {"vocab_size": 128256, "num_key_value_heads": 8, "tie_word_embeddings": False}
SHAPES = {
    "8B": ModelShape.of(
        LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    ),
    "70B": ModelShape.of(
        LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    ),
}
GPU = Hardware.gpu("NVIDIA H100 80GB HBM3", 80 * 10**9)
COMMON = [
    "data.max_prompt_length=512",
    "data.max_response_length=512",
    "data.rollout_batch_size=32",
    "worker.actor.global_batch_size=32",
    "worker.actor.micro_batch_size_per_device_for_update=2",
    "worker.actor.micro_batch_size_per_device_for_experience=4",
    "worker.rollout.n=8",
    "worker.rollout.gpu_memory_utilization=0.6",
    "worker.actor.offload.offload_params=true",
    "worker.actor.offload.offload_optimizer=true",
    "worker.ref.offload.offload_params=true",
    "algorithm.use_kl_loss=true",
]
TIGHT = ["worker.actor.optim.strategy=adamw_bf16", "worker.rollout.gpu_memory_utilization=0.5"]
LORA = ["worker.actor.model.lora.rank=64"]
SETUPS = [
    ("8B, 1 GPU, all weights", "8B", 1, 1, 1, TIGHT),
    ("8B, 1 GPU, optimiser on the host", "8B", 1, 1, 1, [*TIGHT, "worker.actor.fsdp.enable_cpu_offload=true"]),
    ("8B, 1 GPU, LoRA of rank 64", "8B", 1, 1, 1, LORA),
    ("8B, 4 GPUs", "8B", 1, 4, 1, []),
    ("8B, 8 GPUs", "8B", 1, 8, 1, []),
    ("8B, 8 GPUs, gradients reduced once", "8B", 1, 8, 1, ["worker.actor.fsdp.defer_gradient_reduction=true"]),
    ("8B, 8 GPUs, fsdp_size=4", "8B", 1, 8, 1, ["worker.actor.fsdp.fsdp_size=4", "worker.ref.fsdp.fsdp_size=4"]),
    ("70B, 4 x 8 GPUs", "70B", 4, 8, 4, []),
    ("70B, 4 x 8 GPUs, micro-batches of 4", "70B", 4, 8, 4, ["worker.actor.micro_batch_size_per_device_for_update=4"]),
    ("70B, 4 x 8 GPUs, adamw_bf16", "70B", 4, 8, 4, ["worker.actor.optim.strategy=adamw_bf16"]),
]
"""title, model, machines, GPUs of each, tensor_parallel_size, settings beside COMMON"""


def main() -> None:
    show_help(sys.argv[1:], __doc__)
    found = {}
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text("{}")
        rows = Path(folder) / "rows.jsonl"
        rows.write_text('{"prompt": "p", "answer": ["<normal>", "a"]}\n' * 32)
        for title, name, nodes, gpus, tensor_parallel, changes in SETUPS:
            arguments = [
                f"data.train_files={rows}",
                f"worker.actor.model.model_path={folder}",
                f"trainer.nnodes={nodes}",
                f"trainer.n_gpus_per_node={gpus}",
                f"worker.rollout.tensor_parallel_size={tensor_parallel}",
                "trainer.logger=[console]",
            ]
            config = read_config([*arguments, *COMMON, *changes])
            found[title] = (estimate(config, {"actor": SHAPES[name]}, GPU), changes)
    phases = ("load", "rollout", "reference", "update actor")
    print("| | " + " | ".join(phases) + " | host, load | seconds of a step |\n|" + " --- |" * (len(phases) + 3))
    for title, (one, _) in found.items():
        cells = [f"{one.total(phase) / GIB:.1f}" for phase in phases]
        cells[-1] += " (too much)" if one.peak > GPU.memory else ""
        print(f"| {title} | {' | '.join(cells)} | {one.host_load / GIB:.1f} | {sum(one.seconds.values()):.0f} |")
    for title, (one, changes) in found.items():
        print(f"\n{title}: {' '.join(changes) or 'nothing else'}")
        print("\n".join(one.lines()))


if __name__ == "__main__":
    main()
