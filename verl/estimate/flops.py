"""Sizes and arithmetic of a model, and what a device can do: the numbers behind MFU and the memory and time estimate.

Everything is counted from ``config.json``; no weights are read. Dense decoders only: a mixture of experts, whose tokens
pass through a part of the weights, is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


def forward_flops(shape: ModelShape, tokens: int, pairs: int) -> int:
    """Floating point operations of a forward pass.

    2 for each weight a token is multiplied with, head included, and 4 x width for each pair of tokens of a sequence,
    without a discount for causality: the convention of PaLM (arXiv 2204.02311, appendix B), which MFU figures follow.

    Args:
        tokens: tokens that pass through the model.
        pairs: of tokens in one sequence: the sum of the squares of their lengths.
    """
    matrices = shape.layers * sum(a * b for a, b in shape.linear_shapes) + shape.vocab * shape.hidden
    return 2 * matrices * tokens + 4 * shape.layers * shape.query * pairs


def training_flops(config: Mapping[str, Any] | ModelShape, tokens: int, pairs: int) -> int:
    """Operations of forward and backward pass (3 x forward; what checkpointing computes again does not count)."""
    shape = config if isinstance(config, ModelShape) else ModelShape.of(config)
    return 3 * forward_flops(shape, tokens, pairs)
