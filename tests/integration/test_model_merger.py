"""A training state saved by torch.distributed.checkpoint becomes the Hugging Face folder of exactly that model.

States sharded over two ranks are merged in ``test_algorithms``.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from scripts.model_merger import main
from tests.conftest import tiny_llama

TOKENS = torch.arange(12).view(1, -1)


def llama(tied: bool = False, dtype: str = "float32") -> LlamaForCausalLM:
    return tiny_llama(
        vocab_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        architectures=["LlamaForCausalLM"],
        dtype=dtype,
    )


def save_actor(folder: Path, module: torch.nn.Module, config: LlamaConfig) -> Path:
    """What a worker leaves: the sharded state with an optimiser in it, and a Hugging Face folder without weights."""
    optimizer = torch.optim.AdamW(module.parameters())
    state = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "extra": {"step": 3}}
    dcp.save(state, checkpoint_id=folder / "dcp", no_dist=True)
    config.save_pretrained(folder / "huggingface")
    GenerationConfig(eos_token_id=[7, 9], temperature=0.6, do_sample=True).save_pretrained(folder / "huggingface")
    (folder / "huggingface" / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def with_lora(model: LlamaForCausalLM, folder: Path) -> PeftModel:
    settings = LoraConfig(r=3, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings, autocast_adapter_dtype=False)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    settings.base_model_name_or_path = "the/base"
    settings.save_pretrained(folder / "lora_adapter")
    return adapted


def run(folder: Path, *words: str) -> Path:
    assert main([f"local_dir={folder}", *words]) == 0
    return folder / "merged"


@pytest.mark.parametrize("tied", [False, True])
def test_merged_folder_is_the_model(tmp_path, tied):
    model = llama(tied)
    merged = run(save_actor(tmp_path, model, model.config))
    loaded = AutoModelForCausalLM.from_pretrained(merged)
    assert loaded.dtype == torch.float32
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    generation = GenerationConfig.from_pretrained(merged)
    assert (generation.eos_token_id, generation.temperature) == ([7, 9], 0.6)
    assert (merged / "chat_template.jinja").read_text() == "{{ messages }}"


def test_type_of_the_weights(tmp_path):
    """fp32 master weights are written in the type that config.json names, or in the one asked for."""
    model = llama(dtype="bfloat16")
    save_actor(tmp_path, model, model.config)
    merged = AutoModelForCausalLM.from_pretrained(run(tmp_path))
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged.lm_head.weight, model.lm_head.weight.bfloat16())
    run(tmp_path, "dtype=fp16", f"out={tmp_path / 'half'}")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.float16


def test_merged_lora_equals_pefts_own_merge(tmp_path):
    adapted = with_lora(llama(), tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(run(save_actor(tmp_path, adapted, adapted.config)))
    expected = adapted.merge_and_unload().state_dict()
    assert merged.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.state_dict().items())
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.allclose(expected[name], llama().state_dict()[name])


def test_adapter_folder_opens_on_the_base_model(tmp_path):
    adapted = with_lora(llama(), tmp_path)
    folder = run(save_actor(tmp_path, adapted, adapted.config), "lora=adapter")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "the/base"
    assert not list(folder.glob("model*.safetensors")) and not (folder / "config.json").exists()
    opened = PeftModel.from_pretrained(llama(), folder)
    with torch.no_grad():
        assert torch.equal(opened(TOKENS).logits, adapted(TOKENS).logits)
        assert not torch.allclose(opened(TOKENS).logits, llama()(TOKENS).logits)


def test_user_errors_are_named_and_leave_nothing(tmp_path, capsys):
    assert main([f"local_dir={tmp_path}", "lora=adapter"]) == 2
    message = capsys.readouterr().err
    assert ".metadata is missing" in message and "config.json is missing" in message and "lora=adapter" in message
    assert list(tmp_path.iterdir()) == []


def test_state_of_another_model_is_refused(tmp_path, capsys):
    model = llama()
    save_actor(tmp_path, torch.nn.Linear(2, 2), model.config)
    assert main([f"local_dir={tmp_path}"]) == 2
    assert "without a place: ['weight', 'bias']" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_existing_folder_is_not_overwritten(tmp_path, capsys):
    model = llama()
    run(save_actor(tmp_path, model, model.config))
    assert main([f"local_dir={tmp_path}"]) == 2
    assert "exists already" in capsys.readouterr().err
