"""Configurations are read wherever a model keeps them, and models that cannot be trained are named before anything."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from transformers import Gemma3Config, GPT2Config, LlamaConfig

from tests.conftest import make_tokenizer, tiny_llama
from tests.training_kit import arguments
from verl.config.worker import LoraConfig, ModelConfig
from verl.estimate.flops import ModelShape
from verl.eval.likelihood import LikelihoodModel, token_log_probs
from verl.models.build import add_lora, check_model, check_token_ids, load_config, parts_beside_text
from verl.models.forward import forward_responses
from verl.models.loading import check_weights
from verl.models.model_config import engine_overrides, max_positions, override, read_decoder_settings
from verl.trainer.preflight import read_config
from verl.utils import vllm_env
from verl.utils.errors import ConfigError, DataError
from verl.utils.tokenizer import get_tokenizer

GEMMA3 = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "num_hidden_layers": 34,
        "intermediate_size": 10240,
    },
    "vision_config": {"model_type": "siglip_vision_model"},
}
"""what Gemma 3 4B's config.json says; the rest are its class's defaults"""

OVERRIDE = "worker.actor.model.override_config"


def written(folder, settings) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return str(folder)


def test_a_nested_part_is_read_with_its_defaults(tmp_path):
    written(tmp_path, GEMMA3)
    settings = read_decoder_settings(tmp_path / "config.json", {"num_attention_heads": 16})
    assert (settings["hidden_size"], settings["num_attention_heads"], settings["num_key_value_heads"]) == (2560, 16, 4)
    assert (settings["vocab_size"], settings["max_position_embeddings"]) == (262208, 131072)
    shape = ModelShape.of(settings)
    assert (shape.layers, shape.vocab, shape.head_dim, shape.tied) == (34, 262208, 256, True)


def test_other_names_are_llamas():
    config = GPT2Config(n_positions=77)
    assert max_positions(config) == 77
    assert max_positions(Gemma3Config(text_config={"max_position_embeddings": 9})) == 9
    assert max_positions(LlamaConfig(max_position_embeddings=5)) == 5


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (
            GEMMA3,
            ["worker.actor.model.override_config.max_position_embeddings=70"],
            "it needs 80 positions, the model has 70",
        ),
        (
            GEMMA3,
            ["worker.actor.model.override_config.sliding=3"],
            "Gemma3Config has no such entry; did you mean sliding_window",
        ),
        (GEMMA3, ["worker.actor.ulysses_size=3"], "cannot share the model's 8 heads .4 of keys and values."),
        ({"model_type": "gpt2", "n_positions": 70}, [], "it needs 80 positions, the model has 70"),
        ({"model_type": "gpt_oss"}, [], "cannot replace all weights of gpt_oss while it runs.*by RS alone"),
        ("{oops", [], "config.json: is no JSON .*; copy it again"),
        ("[]", [], "config.json: is no JSON object"),
        ({"model_type": "llama", "hidden_size": "big"}, [], "config.json cannot be used .*hidden_size"),
    ],
)
def test_a_run_is_refused_by_what_the_configuration_says_anywhere(tmp_path, settings, changes, message):
    path = written(tmp_path / "model", settings)
    argv = arguments(path, tmp_path, "run", "trainer.n_gpus_per_node=3", "data.rollout_batch_size=12", *changes)
    with pytest.raises(ConfigError, match=message):
        read_config(argv)


def test_overrides_reach_parts_in_the_trainer_and_in_the_engine():
    entries = {"sliding_window": 5, "mm_tokens_per_image": 4, "vision_config": {"image_size": 28}}
    config = Gemma3Config()
    override(config, entries)
    assert (config.text_config.sliding_window, config.mm_tokens_per_image) == (5, 4)
    assert config.vision_config.image_size == 28
    other = entries | {"text_config": {"hidden_size": 64}}
    assert engine_overrides(config, other) == {
        "mm_tokens_per_image": 4,
        "vision_config": {"image_size": 28},
        "text_config": {"hidden_size": 64, "sliding_window": 5},
    }
    assert engine_overrides(LlamaConfig(), {"vocab_size": 9}) == {"vocab_size": 9}


LLAMA = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "nonesuch"}, "nonesuch.*that this transformers knows"),
        ({}, "Unrecognized model.*correct its config.json"),
        ("{", "config.json cannot be used"),
        (
            LLAMA | {"quantization_config": {"quant_method": "fp8"}},
            "weights are quantised .*: fp8.*in bf16, fp16 or fp32",
        ),
        ({"model_type": "siglip_vision_model"}, "has no language model of it"),
        ({"auto_map": {"AutoConfig": "code.My"}, "model_type": "my"}, "set trust_remote_code=true"),
    ],
)
def test_a_model_that_cannot_be_trained_is_one_message(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        check_model(ModelConfig(model_path=written(tmp_path, settings)))


def test_a_family_without_a_value_head_has_no_critic(tmp_path):
    path = written(tmp_path, LLAMA | {"model_type": "olmo2"})
    check_model(ModelConfig(model_path=path))
    with pytest.raises(ConfigError, match="no value head for it, which adv_estimator=gae needs .model_type=olmo2."):
        check_model(ModelConfig(model_path=path), value_head=True)


def test_code_that_is_trusted_is_run(tmp_path):
    path = written(tmp_path, LLAMA | {"model_type": "my", "auto_map": {"AutoConfig": "configuration_my.MyConfig"}})
    code = "from transformers import LlamaConfig\n\n\nclass MyConfig(LlamaConfig):\n    model_type = 'my'\n"
    (tmp_path / "configuration_my.py").write_text(code)
    assert type(load_config(ModelConfig(model_path=path, trust_remote_code=True))).__name__ == "MyConfig"


@pytest.mark.parametrize("content", ["version https://git-lfs.github.com/spec/v1", "\x08\x00\x00\x00\x00\x00\x00\x00{"])
def test_torn_weights_are_named(tmp_path, content):
    (tmp_path / "model.safetensors").write_text(content)
    with pytest.raises(DataError, match="model.safetensors: is no whole safetensors file .*; copy it again"):
        check_weights(str(tmp_path), must_be_here=False)


def test_missing_weights_are_named_where_they_must_be(tmp_path):
    check_weights(str(tmp_path), must_be_here=False)
    with pytest.raises(DataError, match="has no weights"):
        check_weights(str(tmp_path), must_be_here=True)
    tiny_llama().save_pretrained(tmp_path, max_shard_size="8KB")
    check_weights(str(tmp_path), must_be_here=True)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(DataError, match="index.json lists model-00002-of-.*, not there"):
        check_weights(str(tmp_path), must_be_here=True)
    check_weights(str(tmp_path), must_be_here=False)


def test_a_tokenizer_that_is_odd_is_one_message(tmp_path):
    written(tmp_path, LLAMA)
    with pytest.raises(ConfigError, match="is neither a folder with a tokenizer nor"):
        get_tokenizer(str(tmp_path))


def test_tokens_without_an_embedding_are_refused(tmp_path):
    tokenizer = make_tokenizer()
    model = ModelConfig(model_path=written(tmp_path, LLAMA | {"vocab_size": len(tokenizer)}))
    tokenizer.add_tokens(["<new>"])
    check_token_ids(model, tokenizer, [tokenizer.encode("Who?"), []])
    with pytest.raises(
        DataError, match=rf"vocabulary has {len(tokenizer) - 1} rows, and the data have token .*'<new>'"
    ):
        check_token_ids(model, tokenizer, [tokenizer.encode("Who <new>?")])


def test_a_pad_token_needs_no_embedding():
    model = tiny_llama().eval()
    seen = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]])
    logits = []
    for pad in (3, 40):
        ids = torch.where(seen.bool(), torch.tensor([[0, 4, 5, 6], [7, 8, 9, 0]]), pad)
        fields = {"input_ids": ids, "attention_mask": seen, "response_mask": seen[:, 2:]}
        batch = TensorDict(fields, batch_size=[2])
        logits.append(forward_responses(model, batch, padding_free=False).logits_nV)
    assert torch.equal(*logits) and logits[0].shape == (3, 40)


def tiny_gemma3() -> torch.nn.Module:
    """With a vision tower beside its language model."""
    from transformers import Gemma3ForConditionalGeneration

    text = LLAMA | {"model_type": "gemma3_text", "head_dim": 8, "num_key_value_heads": 1, "intermediate_size": 8}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 28, "patch_size": 14}
    text |= {"max_position_embeddings": 6, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision)).eval()


@pytest.mark.parametrize("rank", [0, 2])
def test_what_no_text_reaches_is_neither_trained_nor_adapted(rank):
    """It would never have a gradient, nor an optimiser state to go on from."""
    module = tiny_gemma3()
    beside = parts_beside_text(module)
    assert {"model.vision_tower", "model.multi_modal_projector"} <= beside.keys()
    assert parts_beside_text(tiny_llama()) == {}
    for part in beside.values():
        part.requires_grad_(False)
    if rank:
        lora = LoraConfig(rank=rank, exclude_modules=".*(up|down)_proj")
        module = add_lora(module, ModelConfig(model_path="m", lora=lora))
    module(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert all("language_model" in name for name in trained) and len(trained) == (10 if rank else 15)


def test_the_evaluator_scores_models_with_nested_parts():
    model = tiny_gemma3()
    [scores] = token_log_probs(model, [[1, 2, 3]], desc="test")
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[1, 2, 3]])).logits[0, :-1].log_softmax(-1)
    torch.testing.assert_close(torch.tensor(scores).float(), logits[[0, 1], [2, 3]])
    assert LikelihoodModel(model, None).max_model_len == 6
    with pytest.raises(DataError, match="must have 1 to 6 tokens"):
        token_log_probs(model, [[1] * 7], desc="test")


def test_classes_that_vllm_changes_stay_what_they_were_for_others(monkeypatch):
    """What ``support_torch_compile`` does to a class, without vLLM."""

    class Wrapper:
        pass

    class Plain(torch.nn.Module):
        def __init__(self, factor: int) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, number: int) -> int:
            return self.factor * number

    def change(kind: type) -> None:
        old_init = kind.__init__

        def __init__(self, *args):
            old_init(self, *args)
            self.do_not_compile = True

        def __call__(self, *args):
            return ("engine", self.forward(*args)) if self.do_not_compile else None

        kind.__bases__ += (Wrapper,)
        kind.__init__, kind.__call__ = __init__, __call__

    monkeypatch.setitem(sys.modules, "vllm.model_executor.models.transformers", ModuleType("transformers"))
    monkeypatch.setitem(
        sys.modules, "vllm.compilation.wrapper", SimpleNamespace(TorchCompileWithNoGuardsWrapper=Wrapper)
    )
    trainers = Plain(2)
    change(Plain)
    engines = torch.nn.Sequential(Plain(3))
    with pytest.raises(AttributeError):
        trainers(1)
    vllm_env.take_classes_apart(engines)
    assert (trainers(1), Plain(4)(1), engines[0](1)) == (2, 4, ("engine", 3))
    assert Wrapper not in Plain.__bases__ and isinstance(engines[0], Plain)


def test_vllms_reason_is_one_line():
    error = ValueError(
        "1 validation error\n  Value error, X is not supported. [type=value_error, input_value=Args()]\n    See"
    )
    assert vllm_env.refusal(error) == "1 validation error Value error, X is not supported."
