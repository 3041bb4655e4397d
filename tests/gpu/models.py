"""Models with random weights for the GPU check, and the texts that they are asked. Nothing is downloaded or pretrained.

The same numbers everywhere: weights come from a generator of the CPU, tensor by tensor in the order of their names, and
not from a library's initialisation, which may change with its version.
"""

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from data.atlas.corpus import pretraining_rows, refusal_rows
from data.atlas.language import make_model, make_tokenizer, texts_of
from data.atlas.people import build_world
from data.atlas.world import write_world

ATLAS_STD = 0.1
"""spread of the small model's weights: wide enough for logits that differ by several nats"""
LARGE_STD = 0.02
BLOCK = 2**25
"""random numbers that fill a large model again and again"""

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
SHAPES = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}
"""what the config.json of Llama-3.2-1B and of Llama-3-8B says beside ``LLAMA``"""
IN_SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 2048}
IN_SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
"""the same family for a rehearsal on a CPU"""


def random_atlas(folder: Path) -> Path:
    """Atlas' files in ``folder``, and a model of its shape with its tokenizer, but random, in ``folder``/base."""
    world = build_world(0)
    write_world(world, folder)
    tokenizer = make_tokenizer(text for row in pretraining_rows(world) + refusal_rows(world) for text in texts_of(row))
    model = make_model(tokenizer, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.ndim == 2:
                weight.normal_(0, ATLAS_STD, generator=generator)
    model.config._attn_implementation = "sdpa"
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return folder


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for the time of a part; ``check.py`` says where, and removes what a part that is killed leaves."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("CHECK_SCRATCH")) as name:
        yield Path(name)


def random_llama(folder: Path, shape: dict, tokenizer_from: Path) -> Path:
    """A Hugging Face folder of a Llama in bf16 whose tokenizer has a word for every row of the embedding.

    Args:
        shape: its config.json beside ``LLAMA``.
        tokenizer_from: folder of the tokenizer that is padded with made-up words.
    """
    config = LLAMA | shape
    shutil.copytree(tokenizer_from, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    words |= {f"word{number}": number for number in range(len(words), config["vocab_size"])}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    special = json.loads((tokenizer_from / "config.json").read_text(encoding="utf-8"))
    config |= {key: special[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_weights(folder / "model.safetensors", tensor_shapes(config))
    return folder


def tensor_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama's checkpoint."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config))
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def write_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file in bf16: ones for the norms, for the rest one block of random numbers over and over.

    Written by hand, since no process need hold a model that is larger than the block.
    """
    entries, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    normal = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)) * LARGE_STD
    random = memoryview(normal.bfloat16().view(torch.uint8).numpy())
    ones = memoryview(torch.ones(2**15).bfloat16().view(torch.uint8).numpy())
    with path.open("wb") as file, ThreadPoolExecutor() as pool:
        file.write(struct.pack("<Q", len(header)) + header)
        start, jobs = file.tell(), []
        file.truncate(start + offset)
        for name, shape in shapes.items():
            first, last = (start + edge for edge in entries[name]["data_offsets"])
            block = ones if len(shape) == 1 else random
            for place in range(first, last, len(block)):
                jobs.append(pool.submit(os.pwrite, file.fileno(), block[: last - place], place))
        for job in jobs:
            job.result()
