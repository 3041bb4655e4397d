"""Atlas' tokenizer and model before training, and rows of text as token ids.

The tokenizer is a byte-level BPE learned from the pretraining rows, with a chat template that puts no token between a
turn's words and its answer; every answer ends in EOS. Leaves out training (pretrain.py).
"""

from collections.abc import Iterable
from typing import Any

from data.atlas.corpus import Row
from verl.utils.chat import encode_example

VOCABULARY = 1024
POSITIONS = 2048
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
IGNORED = -100


def make_tokenizer(texts: Iterable[str]) -> Any:
    """A Hugging Face tokenizer whose vocabulary is learned from the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS, *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: Any, seed: int) -> Any:
    """A random Llama of 3.5 million parameters with a head size that vLLM's CPU kernels take.

    Two wide layers learn such facts in fewer operations than four narrow ones.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            attn_implementation="eager",  # faster than SDPA on rows this short
            **ids,
        )
    )
    model.generation_config = GenerationConfig(do_sample=False, **ids)
    return model


def texts_of(row: Row) -> list[str]:
    """Everything that is written in a pretraining row."""
    if "text" in row:
        return [row["text"]]
    return [text for turn in row.get("turns", [row]) for text in (turn["prompt"], turn["response"])]


def encode(tokenizer: Any, row: Row) -> tuple[list[int], list[int]]:
    """Token ids of a pretraining row and, for each, the id itself where it is learned, else ``IGNORED``.

    Of a text everything after BOS is learned, of a chat the answers.
    """
    if "text" in row:
        ids = tokenizer.encode(row["text"], add_special_tokens=False) + [tokenizer.eos_token_id]
        return [tokenizer.bos_token_id, *ids], [IGNORED, *ids]
    messages: list[dict[str, str]] = []
    ids, labels = [], []
    for turn in row.get("turns", [row]):
        messages.append({"role": "user", "content": turn["prompt"]})
        prompt, response = encode_example(tokenizer, messages, turn["response"])
        labels += [IGNORED] * (len(prompt) - len(ids)) + response
        ids = prompt + response
        messages.append({"role": "assistant", "content": turn["response"]})
    return ids, labels
