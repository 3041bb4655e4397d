"""Fixtures shared by all tests: tiny random models made on the fly."""

import os
from pathlib import Path

import pytest

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real RWKU targets; tests that use it are skipped where it is absent."""
    folder = Path(os.environ.get("RULE_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("the shared RWKU data is not here (set RULE_SHARED_DATA)")
    return folder


def make_tokenizer():
    """A byte-level BPE tokenizer with a chat template, trained on a few sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(["Who wrote the book? I do not know that.", "Where was she born? In the north."], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|eos|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_llama(**changes):
    """A random 2-layer Llama of 16 features, the same each time.

    Args:
        changes: other settings of its LlamaConfig.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**settings | changes))


def save_tiny_model(folder: Path, *, seed: int = 0, **changes) -> Path:
    """A random 2-layer Llama with grouped-query attention, in fp32, as a Hugging Face folder.

    Args:
        changes: other settings of its LlamaConfig.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
    }
    model = LlamaForCausalLM(LlamaConfig(**settings | special | changes))
    model.generation_config = GenerationConfig(**special)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


ATLAS_SHAPE = {
    "vocab_size": 1024,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "initializer_range": 0.02,
}
"""Changes that make the model as large as Atlas's: 3.5 million parameters."""


@pytest.fixture
def serve():
    """Starts scripted endpoints; they end with the test."""
    from tests.scripted_endpoint import Server

    servers = []

    def start(script):
        servers.append(Server(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def one_thread():
    """Threads cost more than they bring at small sizes, most of all on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder of a random 2-layer Llama (tied embeddings) with a chat template."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def long_tiny_model(tmp_path_factory) -> Path:
    """The same with room for the few-shot prompts of the benchmarks."""
    return save_tiny_model(tmp_path_factory.mktemp("long") / "model", max_position_embeddings=4096)
