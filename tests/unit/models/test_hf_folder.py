"""A saved folder holds the trained weights, and beside them what lay beside the original's, odd or not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.conftest import save_tiny_model, tiny_llama
from tests.unit.models.test_loading import as_rank
from verl.config.worker import FSDPConfig, ModelConfig
from verl.models.build import build_model
from verl.models.checkpointing import save_hf_folder
from verl.models.fsdp import build_mesh
from verl.models.hf_folder import copy_side_files, write_model
from verl.utils.tokenizer import get_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

CODE = "from transformers import LlamaConfig\n\n\nclass MyConfig(LlamaConfig):\n    model_type = 'my'\n"


def edit(file: Path, **entries) -> None:
    """Change entries of a JSON file; None takes one out."""
    settings = json.loads(file.read_text()) | entries
    file.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def template_in_config(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template=(folder / "chat_template.jinja").read_text())
    (folder / "chat_template.jinja").unlink()


def code(folder: Path) -> None:
    (folder / "configuration_my.py").write_text(CODE)
    edit(folder / "config.json", auto_map={"AutoConfig": "configuration_my.MyConfig"})


def processors(folder: Path) -> None:
    for name in ("preprocessor_config.json", "processor_config.json", "added_tokens.json", "chat_template.json"):
        (folder / name).write_text("{}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")


def slow_tokenizer(folder: Path) -> None:
    for file in folder.glob("token*"):
        file.unlink()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc"]))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "eos_token": "[SEP]"}')


def refused_by_transformers(folder: Path) -> None:
    """It loads both, and would write neither."""
    edit(folder / "generation_config.json", do_sample=False, temperature=0.6)
    edit(folder / "config.json", do_sample=True, num_beams=2)


def torn(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")
    template_in_config(folder)


def bare(folder: Path) -> None:
    """Nothing that has a default."""
    (folder / "generation_config.json").unlink()
    edit(folder / "tokenizer_config.json", pad_token=None, tokenizer_class=None)
    edit(folder / "config.json", architectures=None, dtype=None, torch_dtype="float32")


ODD = [refused_by_transformers, torn, bare, code, processors, slow_tokenizer]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("original") / "model", hidden_size=16, intermediate_size=16)


@pytest.fixture
def source(original, tmp_path) -> Path:
    return shutil.copytree(original, tmp_path / "source")


def saved(source: Path, template: str | None = None) -> Path:
    """The folder that training leaves of a model, each weight one greater than it was."""
    model, out = ModelConfig(model_path=str(source)), source.parent / "out"
    with as_rank(0, 1):
        mesh = build_mesh("cpu", -1)
        module = build_model(model, FSDPConfig(mp_param_dtype="fp32"), mesh, trainable=True, padding_free=False)
        for parameter in module.parameters():
            parameter.data += 1
        save_hf_folder(module, out, get_tokenizer(str(source), template), model)
    return out


def files(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    own = {"config.json", "model.safetensors", "generation_config.json"}
    return {name: content for name, content in found.items() if name not in own}


def generation_settings(folder: Path) -> dict | str:
    """All but where answers end, which training may have changed; a file that is no JSON as it is. Without one,
    ``generate`` takes the tokens that config.json names."""
    file = folder / "generation_config.json"
    if not file.exists():
        config = json.loads((folder / "config.json").read_text())
        return {key: config[key] for key in ("bos_token_id", "pad_token_id")}
    text = file.read_text()
    if not text.endswith("}") and not text.endswith("}\n"):
        return text
    return {key: value for key, value in json.loads(text).items() if key != "eos_token_id"}


@pytest.mark.parametrize("make_odd", ODD, ids=lambda make_odd: make_odd.__name__)
def test_what_lies_beside_the_weights_comes_out_as_it_went_in(make_odd, source):
    make_odd(source)
    out = saved(source)
    assert files(out) == files(source)
    assert generation_settings(out) == generation_settings(source)
    trained, before = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (out, source))
    assert trained.keys() == before.keys()
    assert all(torch.equal(tensor, before[name] + 1) for name, tensor in trained.items())
    written, old = (json.loads((folder / "config.json").read_text()) for folder in (out, source))
    for key in old.keys() - {
        "torch_dtype",
        "do_sample",
        "num_beams",
    }:  # now called dtype; transformers forgets the others
        assert written[key] == old[key]
    AutoTokenizer.from_pretrained(out)


@pytest.mark.parametrize(("dtype", "binary"), [("float32", False), ("bfloat16", True)])
def test_without_a_dtype_in_config_json_weights_keep_the_type_of_the_files(source, dtype, binary):
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    model.save_pretrained(source)
    if binary:
        torch.save(model.state_dict(), source / "pytorch_model.bin")
        (source / "model.safetensors").unlink()
    edit(source / "config.json", dtype=None)
    out = saved(source)
    assert AutoModelForCausalLM.from_pretrained(out).dtype == getattr(torch, dtype)
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    assert not (out / "pytorch_model.bin").exists()


def test_a_template_of_ones_own_goes_with_the_model(source):
    template = "{{ messages[0]['content'] }}!"
    out = saved(source, template)
    assert AutoTokenizer.from_pretrained(out).chat_template == template
    assert files(out).keys() == files(source).keys()


def test_settings_that_transformers_refuses_to_write_do_not_keep_weights_from_being_written(tmp_path):
    model = tiny_llama()
    model.config.num_beams = 4
    model.generation_config = GenerationConfig(do_sample=False, temperature=0.5)
    with pytest.raises(ValueError):
        model.save_pretrained(tmp_path / "theirs")
    write_model(model, model.state_dict(), tmp_path / "ours", max_shard_size="4KB")
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2


def test_a_part_of_a_larger_storage_is_written_alone(tmp_path):
    model = tiny_llama()
    name, tensor = next(iter(model.state_dict().items()))
    padded = torch.cat([tensor, torch.zeros(1, *tensor.shape[1:])])[:-1]  # as a gather over ranks leaves it
    write_model(model, {**model.state_dict(), name: padded}, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.state_dict()[name], tensor)


def test_side_files_that_cannot_be_had_are_warned_of(source, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tokenizer, folder = get_tokenizer(str(source)), tmp_path / "folder"
    folder.mkdir()

    def refuse(file, _copy):
        raise PermissionError(13, "Permission denied", str(file))

    copy_side_files("nobody/has-this", tokenizer, folder)
    assert "what lies beside the weights of nobody/has-this is not copied" in caplog.text
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()
    monkeypatch.setattr(shutil, "copyfile", refuse)
    copy_side_files(str(source), tokenizer, folder)
    assert "tokenizer.json is not copied" in caplog.text


def test_a_tokenizer_of_its_own_comes_from_its_folder(source, tmp_path):
    other = shutil.copytree(source, tmp_path / "other")
    edit(other / "tokenizer_config.json", model_max_length=77)
    with as_rank(0, 1):
        model = replace(ModelConfig(model_path=str(source)), tokenizer_path=str(other))
        mesh = build_mesh("cpu", -1)
        module = build_model(model, FSDPConfig(mp_param_dtype="fp32"), mesh, trainable=True, padding_free=False)
        save_hf_folder(module, tmp_path / "out", get_tokenizer(model.tokenizer), model)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 77
    copy_side_files(str(source), get_tokenizer(model.tokenizer), tmp_path, generates=False)  # a critic's
    assert not (tmp_path / "generation_config.json").exists()
