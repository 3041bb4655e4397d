"""Sizes and operations against transformers' own models and hand-computed figures."""

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from verl.estimate.flops import ModelShape, forward_flops, training_flops
from verl.estimate.hardware import device_peak_flops, find_device

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("config_class", "model_class"), [(LlamaConfig, LlamaForCausalLM), (Qwen2Config, Qwen2ForCausalLM)]
)
def test_parameters_are_counted_as_transformers_builds_them(config_class, model_class, tied):
    config = config_class(tie_word_embeddings=tied, **SIZES)
    model = model_class(config)
    assert ModelShape.of(config.to_dict()).parameters == sum(p.numel() for p in model.parameters())


def test_llama_3_8b_has_its_published_size():
    assert ModelShape.of(LLAMA_3_8B).parameters == 8_030_261_248
    assert ModelShape.of(LLAMA_3_8B).kv_bytes_per_token == 128 * 1024


def test_operations_of_a_small_model_by_hand():
    # A layer: q 32x32, k and v 32x16, o 32x32, MLP 3 x 32x48 = 7,680 weights; head 3,200. Two operations each.
    weights = 3 * 7680 + 3200
    assert forward_flops(ModelShape.of(SIZES), 10, 52) == 2 * weights * 10 + 4 * 3 * 32 * 52
    assert training_flops(SIZES, 10, 52) == 3 * forward_flops(ModelShape.of(SIZES), 10, 52)


def test_lora_counts_both_matrices_of_every_linear_layer():
    layer = sum(a + b for a, b in [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)])
    assert ModelShape.of(SIZES).lora_parameters(8) == 3 * 8 * layer


def test_mixtures_of_experts_and_incomplete_files_are_refused():
    with pytest.raises(ValueError, match="mixture"):
        ModelShape.of(SIZES | {"num_local_experts": 8})
    with pytest.raises(ValueError, match="hidden_size"):
        ModelShape.of({"vocab_size": 3})


def test_an_h200_is_no_h20():
    assert find_device("NVIDIA H200").flops == 989.5e12
    assert find_device("NVIDIA H20").flops == 148e12
    assert find_device("NVIDIA A100-SXM4-80GB").flops == 312e12
    assert find_device("NVIDIA H100 PCIe").flops == 756e12
    assert find_device("Imaginary 9000") is None
    assert device_peak_flops("Imaginary 9000") is None
