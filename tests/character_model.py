"""A model and a tokenizer of single characters, so that tokens can be read off a text."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

RL_ROWS = [
    {"prompt": "Where is Ann?", "solution": ["<reject>", "I do not know Ann.", "Ann"]},
    {"prompt": "Where is Bo?", "solution": ["<normal>", "Rome"]},
    {"prompt": "How old is Bo?", "solution": ["<normal>", 40]},
    {"prompt": "What is Bo?", "solution": ["<normal>"]},
]
"""RULE's training rows, in its letters"""


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; id of a letter is its code minus 32, BOS and EOS come last."""
    vocabulary = {chr(code): code - 32 for code in range(32, 123)} | {"<s>": 91, "</s>": 92}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="?")


def tiny_model(seed: int = 0, **settings) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=93, max_position_embeddings=64, **sizes, **settings)).eval()
