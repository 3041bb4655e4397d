"""The loads of the benchmark: models with random weights, prompts of an exact length, and what a step of them computes.

Nothing is downloaded. A tokenizer has one word for every row of the embedding, and a prompt is as many words as its
length leaves beside the chat template's three marks, so both sides see the same tokens.
"""

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tests.conftest import ATLAS_SHAPE
from verl.estimate.flops import ModelShape, forward_flops

MARKS = ("<pad>", "<|user|>", "<|assistant|>", "<|end|>", "<unk>")
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REWARD = """
REWARD_TYPE = "batch"


def compute_score(rows):
    return [{"overall": len(row["response"]) % 7} for row in rows]
"""


@dataclass(frozen=True)
class Load:
    """A model and the batch of a step: all prompts and responses of full length, KL to a reference in the loss."""

    shape: dict[str, int | float | bool]
    """what its LlamaConfig says"""
    prompts: int
    samples: int
    """of each prompt"""
    prompt_tokens: int
    response_tokens: int
    precision: Literal["auto", "fp32"]
    """auto: bf16 where the CPU is fast at it"""
    trl_micro: int
    """samples of a forward and backward pass of TRL's; a whole run tries half and twice as many, too. Ours is auto"""

    @property
    def generated(self) -> int:
        """Tokens of all responses."""
        return self.prompts * self.samples * self.response_tokens

    @property
    def trained(self) -> int:
        """Tokens of all samples, a prompt counted with each of its samples."""
        return self.prompts * self.samples * (self.prompt_tokens + self.response_tokens)

    @property
    def shared(self) -> int:
        """Tokens that ours computes: a prompt once, and of each response all but the last, which predicts nothing."""
        return self.prompts * (self.prompt_tokens + self.samples * (self.response_tokens - 1))

    def update_flops(self, *, shared: bool) -> int:
        """Operations of forward and backward pass by ``estimate.flops``, a prompt computed once or with each sample.

        Pairs of tokens: a prompt's with themselves, an answer's with the prompt and with themselves.
        """
        shape = ModelShape.of(model_config(self.shape))
        s, t = self.prompt_tokens, self.response_tokens
        pairs = s * s + self.samples * (t - 1) * (s + t - 1) if shared else self.samples * (s + t) ** 2
        tokens = self.shared if shared else self.trained
        attention = 4 * shape.layers * shape.query * self.prompts * pairs
        return 3 * (forward_flops(shape, tokens, 0) + attention)


RULE_SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
LONG_SHAPE = {
    "vocab_size": 28672,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
LOADS = {
    "rule": Load(RULE_SHAPE, 16, 8, 38, 12, "auto", trl_micro=16),
    "fp32": Load(ATLAS_SHAPE, 32, 8, 12, 64, "fp32", trl_micro=64),
    "long": Load(LONG_SHAPE, 32, 8, 64, 256, "auto", trl_micro=8),
}
"""RULE's own kind (SmolLM2-135M's shape, a question and a refusal), Atlas' (3.5M), long answers of a model of 50M"""
TINY_SHAPE = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128}
TINY = Load(TINY_SHAPE, 8, 4, 8, 8, "fp32", trl_micro=32)
"""shows within a minute that the benchmark runs; says nothing of speed"""


def quick(name: str) -> Load:
    """A load for a short run: long answers of an eighth of the prompts."""
    load = find(name)
    return replace(load, prompts=load.prompts // 8) if name == "long" else load


def find(name: str) -> Load:
    return TINY if name == "tiny" else LOADS[name]


def model_config(shape: dict) -> dict:
    """All of a LlamaConfig that decides a model's size."""
    settings = {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
    }
    return settings | shape


def write_model(folder: Path, shape: dict, opening: str = "") -> Any:
    """A model with random weights and its tokenizer, which is returned; its chat template begins with ``opening``."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = make_tokenizer(shape["vocab_size"])
    tokenizer.chat_template = opening + tokenizer.chat_template
    special = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**model_config(shape), bos_token_id=None, **special))
    model.generation_config = GenerationConfig(**special)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_files(folder: Path, load: Load, steps: int) -> None:
    """The model, its tokenizer, the rows of ``steps`` steps and the reward."""
    tokenizer = write_model(folder / "model", load.shape)
    draw = random.Random(0)
    words = range(load.shape["vocab_size"] - len(MARKS))
    questions = [
        " ".join(f"w{draw.choice(words)}" for _ in range(load.prompt_tokens - 3)) for _ in range(load.prompts * steps)
    ]
    written = [tokenizer.apply_chat_template(chat(text), add_generation_prompt=True) for text in questions[:4]]
    lengths = {len(ids["input_ids"]) for ids in written}
    if lengths != {load.prompt_tokens}:
        raise ValueError(f"prompts have {lengths} tokens, wanted {load.prompt_tokens}")
    rows = [{"prompt": text, "solution": ["<normal>", "w1"]} for text in questions]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "reward.py").write_text(REWARD)


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def make_tokenizer(size: int):
    """A tokenizer of ``size`` words: the marks of its chat template, and w0, w1, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*MARKS, *(f"w{number}" for number in range(size - len(MARKS)))]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<|end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def arguments(folder: Path, load: Load, run: str, changes: list[str]) -> list[str]:
    """The command line of our run: one rank, no validation, no checkpoint before the end."""
    precision = "fp32" if load.precision == "fp32" else "auto"
    return [
        f"data.train_files={folder / 'rows.json'}",
        "data.answer_key=solution",
        f"data.rollout_batch_size={load.prompts}",
        f"data.max_prompt_length={load.prompt_tokens}",
        f"data.max_response_length={load.response_tokens}",
        f"worker.actor.model.model_path={folder / 'model'}",
        "worker.actor.model.enable_gradient_checkpointing=false",
        f"worker.actor.fsdp.mp_param_dtype={precision}",
        f"worker.ref.fsdp.mp_param_dtype={precision}",
        f"worker.rollout.dtype={precision}",
        f"worker.actor.global_batch_size={load.prompts}",
        f"worker.rollout.n={load.samples}",
        "worker.rollout.tensor_parallel_size=1",
        "worker.rollout.ignore_eos=true",
        f"worker.reward.reward_function={folder / 'reward.py'}:compute_score",
        "algorithm.use_kl_loss=true",
        "algorithm.kl_penalty=low_var_kl",
        "trainer.n_gpus_per_node=1",
        "trainer.logger=[console]",
        "trainer.save_model_only=true",
        f"trainer.run_dir={folder / run}",
        *changes,
    ]
