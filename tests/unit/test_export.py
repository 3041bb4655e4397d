"""Whole weights of a module under their Hugging Face names, with LoRA adapters merged as peft merges them."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from tests.conftest import tiny_llama
from verl.utils.errors import ConfigError
from verl.utils.model import add_lora
from verl.workers.config import LoraConfig as LoraSettings
from verl.workers.config import ModelConfig
from verl.workers.rollout.vllm_rollout import digest
from verl.workers.sharding_manager.export import adapter_tensors, base_tensors, exported_tensors


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32))


def adapted(model: torch.nn.Module, targets: list[str]) -> torch.nn.Module:
    module = get_peft_model(model, LoraConfig(r=3, lora_alpha=12, target_modules=targets))
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return module


@pytest.mark.parametrize(
    ("make", "targets"),
    [
        (tiny_llama, ["q_proj", "down_proj"]),
        (tiny_llama, ["embed_tokens", "lm_head"]),
        (gpt2, ["c_attn", "c_proj"]),  # Conv1D keeps its weight transposed
    ],
)
def test_merged_weights_are_pefts(make, targets):
    module = adapted(make(), targets)
    ours = dict(exported_tensors(module, torch.float32))
    base = dict(base_tensors(module, torch.float32))
    plain = make().state_dict()
    assert base.keys() == ours.keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in base.items())
    whole = module.merge_and_unload()
    theirs, tied = whole.state_dict(), set(whole.all_tied_weights_keys)
    assert ours.keys() == theirs.keys() - tied
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-6, rtol=1e-6)


def test_a_bf16_base_takes_an_update_rounded_once():
    module = adapted(tiny_llama(), ["q_proj"])
    layer = module.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    layer.base_layer.to(torch.bfloat16)
    merged = dict(exported_tensors(module, torch.bfloat16))["model.layers.0.self_attn.q_proj.weight"]
    exact = layer.base_layer.weight.double() + layer.get_delta_weight("default").double()
    assert torch.equal(merged, exact.to(torch.bfloat16))


def test_tied_weights_come_once_in_the_type_that_is_asked_for():
    model = tiny_llama(tie_word_embeddings=True)
    exported = dict(exported_tensors(model, torch.bfloat16))
    assert "lm_head.weight" not in exported
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in exported.values()) == model.num_parameters()


def test_adapters_have_the_names_of_pefts_files(tmp_path):
    from safetensors.torch import load_file

    module = adapted(tiny_llama(), ["q_proj", "embed_tokens"])
    module.save_pretrained(tmp_path, save_embedding_layers=False)
    files = load_file(tmp_path / "adapter_model.safetensors")
    ours = adapter_tensors(module)
    assert ours.keys() == files.keys()
    assert all(torch.equal(tensor, files[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("shape", [(), (7,), (5, 3), (2, 3, 4), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_digest_is_of_all_bits(shape, dtype):
    torch.manual_seed(0)
    tensor = torch.randn(shape).to(dtype)
    assert digest(tensor) == digest(tensor.clone())
    for place in range(tensor.numel()):
        other = tensor.clone()
        other.view(-1)[place] *= 1.01
        assert digest(other) != digest(tensor)


def test_a_digest_sees_opposite_changes():
    tensor = torch.ones(4, 4)
    other = tensor.clone()
    step = torch.finfo(torch.float32).eps
    other[0, 0] += step
    other[2, 1] -= step / 2  # one representable number up, one down: their bit patterns sum to the same
    assert tensor.view(torch.int32).sum() == other.view(torch.int32).sum()
    assert digest(other) != digest(tensor)


def test_an_adapter_of_a_tied_weight_is_refused():
    model = ModelConfig(model_path="m", lora=LoraSettings(rank=2, target_modules=["q_proj", "embed_tokens"]))
    with pytest.raises(ConfigError, match="embed_tokens, lm_head share a weight, .*; leave out embed_tokens"):
        add_lora(tiny_llama(tie_word_embeddings=True), model)
    assert add_lora(tiny_llama(), model).peft_config["default"].base_model_name_or_path == "m"
