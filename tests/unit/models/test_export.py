"""Whole weights of a module under their Hugging Face names, with LoRA adapters merged as peft merges them."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from tests.conftest import tiny_llama
from verl.config.worker import LoraConfig as LoraSettings
from verl.config.worker import ModelConfig
from verl.models.build import add_lora, check_model
from verl.models.export import adapter_tensors, base_tensors, exported_tensors
from verl.utils.errors import ConfigError
from verl.workers.rollout.vllm_rollout import digest


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
    ours = adapter_tensors(module, torch.float32)
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


def with_targets(module: torch.nn.Module, targets: str | list[str], **settings) -> set[str]:
    """Names of the modules that get adapters."""
    lora = LoraSettings(rank=2, target_modules=targets, **settings)
    return set(add_lora(module, ModelConfig(model_path="m", lora=lora)).targeted_module_names)


MLP = ("gate", "up", "down")


def layers(*names: str) -> set[str]:
    return {f"model.layers.{number}.{name}" for number in (0, 1) for name in names}


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        ("q_proj", layers("self_attn.q_proj")),
        ("mlp.up_proj, q_proj", layers("mlp.up_proj", "self_attn.q_proj")),
        (["model.layers.1.self_attn.q_proj"], {"model.layers.1.self_attn.q_proj"}),
        ("embed_tokens", {"model.embed_tokens"}),
        ("lm_head", {"lm_head"}),
        (r".*\.1\..*(q|k)_proj", {"model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj"}),
        (
            ["all-linear"],
            layers(*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down"))),
        ),
    ],
)
def test_modules_are_named_in_any_way(targets, found):
    assert with_targets(tiny_llama(), targets) == found


def test_left_out_modules_are_named_in_the_same_ways():
    assert with_targets(tiny_llama(), ["q_proj", "k_proj"], exclude_modules="k_proj") == layers("self_attn.q_proj")
    assert with_targets(gpt2(), "c_attn") == {"transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            ["q_proj", "v_porj"],
            r"target_modules=\['q_proj', 'v_porj'\]: the model has no module v_porj; did you mean v_proj",
        ),
        ("all_linear", "no module all_linear; did you mean all-linear"),
        ("nothing", "no module nothing; name some of down_proj, embed_tokens, .*lm_head"),
        ("(", r"target_modules=\(: is no regular expression \(missing \)"),
        ("q_proj|v_proj", r"fits the whole name of no module; name some of .*q_proj"),
        (".*norm", "a LlamaRMSNorm takes no adapter; name some of"),
        ("self_attn", "a LlamaAttention takes no adapter"),
    ],
)
def test_names_that_fit_nothing_are_refused(targets, message):
    with pytest.raises(ConfigError, match=message):
        with_targets(tiny_llama(), targets)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    ("module", "targets", "name"),
    [(tiny_llama, name, name) for name in ("embed_tokens", "lm_head")] + [(gpt2, ["c_attn", "wte"], "wte")],
)
def test_an_adapter_of_a_tied_weight_is_refused(module, targets, name):
    changes = {"tie_word_embeddings": True} if module is tiny_llama else {}
    with pytest.raises(ConfigError, match=f"share a weight, .*; leave out {name}"):
        with_targets(module(**changes), targets)


def test_the_engine_takes_adapters_of_the_layers_only(tmp_path):
    tiny_llama().config.save_pretrained(tmp_path)
    model = ModelConfig(model_path=str(tmp_path), lora=LoraSettings(rank=2, target_modules=["q_proj", "embed_tokens"]))
    with pytest.raises(ConfigError, match="lora_weights=adapter: vLLM takes .* of the layers only, .*embed_tokens"):
        check_model(model, engine_adapters=True)
    check_model(model)
