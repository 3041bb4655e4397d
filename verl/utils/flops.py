"""Sizes and arithmetic of a model, and what a device can do: the numbers behind MFU and the memory and time estimate.

Everything is counted from ``config.json``; no weights are read. Dense decoders only: a mixture of experts, whose tokens
pass through a part of the weights, is refused.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


def is_size(value: Any) -> bool:
    """Whether a value of a config.json can count something."""
    return isinstance(value, int) and value > 0


@dataclass(frozen=True)
class ModelShape:
    """A decoder in the Llama family: what decides its size."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    attention_bias: bool

    @classmethod
    def of(cls, config: Mapping[str, Any] | str | Path) -> "ModelShape":
        """From the content of a ``config.json``, or the path of that file or of its folder.

        Raises:
            ValueError: a mixture of experts, or a configuration without the sizes that decoders have.
        """
        if isinstance(config, str | Path):
            path = Path(config) / "config.json" if Path(config).is_dir() else Path(config)
            config = json.loads(path.read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        if config.get("num_experts") or config.get("num_local_experts"):
            raise ValueError(f"{config.get('model_type')}: a mixture of experts has no size estimate")
        needed = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size")
        if missing := [key for key in needed if key not in config]:
            raise ValueError(f"config.json without {', '.join(missing)} has no size estimate")
        optional = [key for key in ("num_key_value_heads", "head_dim") if config.get(key)]
        if wrong := [f"{key}={config[key]!r}" for key in (*needed, *optional) if not is_size(config[key])]:
            raise ValueError(f"config.json with {', '.join(wrong)} has no size estimate")
        heads = config["num_attention_heads"]
        return cls(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            intermediate=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocab=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
            attention_bias=config.get("attention_bias", config.get("model_type") == "qwen2"),
        )

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        """Width of all key heads, which is that of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def linear_shapes(self) -> list[tuple[int, int]]:
        """(in, out) of a layer's matrices: query, key, value, output, gate, up, down."""
        h, f = self.hidden, self.intermediate
        attention = [(h, self.query), (h, self.key_value), (h, self.key_value), (self.query, h)]
        return [*attention, (h, f), (h, f), (f, h)]

    @property
    def layer_parameters(self) -> int:
        bias = self.query + 2 * self.key_value if self.attention_bias else 0
        return sum(a * b for a, b in self.linear_shapes) + bias + 2 * self.hidden

    @property
    def outer_parameters(self) -> int:
        """Embedding, final norm and head: what is outside the layers."""
        return self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + self.outer_parameters

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of a token in bf16."""
        return 2 * self.layers * self.key_value * 2

    def lora_parameters(self, rank: int) -> int:
        """Adapters of ``rank`` on every matrix of every layer."""
        return self.layers * sum(rank * (a + b) for a, b in self.linear_shapes)


def forward_flops(shape: ModelShape, tokens: int, seqlens: Sequence[int]) -> int:
    """Floating point operations of a forward pass.

    2 for each weight a token is multiplied with, head included, and 4 x width for each pair of tokens of a sequence,
    without a discount for causality: the convention of PaLM (arXiv 2204.02311, appendix B), which MFU figures follow.

    Args:
        tokens: tokens that pass through the model.
        seqlens: lengths of their sequences.
    """
    matrices = shape.layers * sum(a * b for a, b in shape.linear_shapes) + shape.vocab * shape.hidden
    pairs = sum(length * length for length in seqlens)
    return 2 * matrices * tokens + 4 * shape.layers * shape.query * pairs


def training_flops(config: Mapping[str, Any] | ModelShape, tokens: int, seqlens: Sequence[int]) -> int:
    """Operations of forward and backward pass (3 x forward; what checkpointing computes again does not count)."""
    shape = config if isinstance(config, ModelShape) else ModelShape.of(config)
    return 3 * forward_flops(shape, tokens, seqlens)


@dataclass(frozen=True)
class Device:
    """A GPU. Figures are the vendor's, dense, without sparsity."""

    flops: float
    """bf16 (V100: fp16) operations a second"""
    bandwidth: float
    """bytes a second of its memory"""
    link: float
    """bytes a second to a neighbour in the same machine, one way: NVLink, else PCIe"""


DEVICES = {
    "B200": Device(2250e12, 8.0e12, 900e9),
    "GB200": Device(2500e12, 8.0e12, 900e9),
    "GH200": Device(989.5e12, 4.0e12, 450e9),
    "H200": Device(989.5e12, 4.8e12, 450e9),
    "H100 PCIe": Device(756e12, 2.0e12, 64e9),
    "H100 NVL": Device(835e12, 3.9e12, 300e9),
    "H100": Device(989.5e12, 3.35e12, 450e9),
    "H800": Device(989.5e12, 3.35e12, 200e9),
    "H20": Device(148e12, 4.0e12, 450e9),
    "A100": Device(312e12, 2.0e12, 300e9),
    "A800": Device(312e12, 2.0e12, 200e9),
    "A40": Device(149.7e12, 0.696e12, 32e9),
    "A10": Device(125e12, 0.6e12, 32e9),
    "L40S": Device(362e12, 0.864e12, 32e9),
    "L40": Device(181e12, 0.864e12, 32e9),
    "L20": Device(119.5e12, 0.864e12, 32e9),
    "L4": Device(121e12, 0.3e12, 32e9),
    "V100": Device(125e12, 0.9e12, 150e9),
    "RTX A6000": Device(154.8e12, 0.768e12, 32e9),
    "RTX 3090": Device(71e12, 0.936e12, 32e9),
    "RTX 4090": Device(165.2e12, 1.008e12, 32e9),
    "RTX 5090": Device(209.5e12, 1.792e12, 64e9),
}


def find_device(name: str) -> Device | None:
    """The device that a driver calls ``name``, such as ``NVIDIA H20`` or ``NVIDIA A100-SXM4-80GB``; None if unknown.

    Whole words count, so that an H200 is no H20; the entry with the most words wins (``H100 PCIe`` before ``H100``).
    """
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    fitting = [entry for entry in DEVICES if set(entry.upper().split()) <= words]
    return DEVICES[max(fitting, key=lambda entry: len(entry.split()))] if fitting else None


def device_peak_flops(name: str | None = None) -> float | None:
    """Peak bf16 operations a second of the device ``name``, or of this process's GPU; None where it is not known."""
    if name is None:
        if not torch.cuda.is_available():
            return None
        name = torch.cuda.get_device_name()
    device = find_device(name)
    return device.flops if device else None
