"""Which checkpoints share an engine, and the proof that it took over another one's weights."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import save_tiny_model
from verl.eval import engines
from verl.eval.config import EvalConfig
from verl.eval.generation import VLLMGenerator, _all_but_weights
from verl.utils import vllm_env


def test_one_engine_serves_checkpoints_that_differ_in_weights_only(monkeypatch):
    def config(**changes):
        return EvalConfig(model="m", suite="atlas", data="d", out="o", **changes)

    opened, closed = [], []

    class Engine:
        def __init__(self, model, settings):
            opened.append((model, settings.get("max_model_len", "likelihood")))

        def load(self, model):
            return model.startswith("llama")

        def close(self):
            closed.append(1)

    monkeypatch.setattr(engines, "_open_generator", Engine)
    monkeypatch.setattr(engines, "_open_model", Engine)
    with engines.Engines() as shared:
        first = shared.get("generation", "llama/a", config())
        assert shared.get("generation", "llama/b", config()) is first
        shared.get("generation", "qwen", config())
        shared.get("likelihood", "qwen", config())
        shared.get("likelihood", "llama/a", config())
        shared.get("generation", "llama/a", config())
        shared.get("generation", "llama/a", config(max_model_len=64))
        assert len(closed) == len(opened) - 1
    assert len(closed) == len(opened) == 6


def test_what_an_engine_keeps_when_it_takes_other_weights(tiny_model, tmp_path):
    def changed(name, **changes):
        folder = shutil.copytree(tiny_model, tmp_path / f"{name}_{'_'.join(changes)}")
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **changes}))
        return _all_but_weights(folder)

    kept = _all_but_weights(tiny_model)
    assert changed("config.json", dtype="bfloat16", transformers_version="5.16.0", use_cache=False) == kept
    assert changed("tokenizer.json", padding={"strategy": "BatchLongest"}) == kept
    assert changed("config.json", rope_theta=5e5) != kept
    assert changed("generation_config.json", eos_token_id=3) != kept
    assert changed("config.json", num_local_experts=2) is None
    torn = shutil.copytree(tiny_model, tmp_path / "torn")
    (torn / "generation_config.json").write_text("{")
    assert _all_but_weights(torn) is None


class Loaded(torch.nn.Module):
    """An engine's model that leaves out, or loads without showing, what it is told to."""

    def __init__(self, folder, faults=frozenset()):
        super().__init__()
        self.faults, self.names = faults, {}
        for name, tensor in load_file(folder / "model.safetensors").items():
            self.names[name] = name.replace(".", "_")
            self.register_parameter(self.names[name], torch.nn.Parameter(tensor.clone()))

    def named_parameters(self, *_, **__):
        return [(name, getattr(self, own)) for name, own in self.names.items()]

    def load_weights(self, weights):
        found = {name: tensor for name, tensor in weights if name not in self.faults}
        for name, tensor in found.items():
            getattr(self, self.names[name]).data.copy_(tensor)
        return found.keys() | (set() if "tells" in self.faults else self.faults)


@pytest.mark.parametrize(
    ("faults", "proved"),
    [(set(), True), ({"model.norm.weight"}, False), ({"model.embed_tokens.weight", "tells"}, False)],
)
def test_an_engine_proves_the_weights_that_it_took_over(faults, proved, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(vllm_env, "has_accelerator", lambda: True)  # on CPUs vLLM's own modules are packed anew
    folders = [save_tiny_model(tmp_path / str(seed), seed=seed) for seed in range(2)]
    for number, folder in enumerate(folders):  # norms are ones at first
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] += number
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    module = Loaded(folders[0], faults)
    vllm_env.note_what_is_loaded(module)
    generator = object.__new__(VLLMGenerator)
    generator._engine = SimpleNamespace(
        apply_model=lambda function: [function(module)],
        collective_rpc=lambda _, kwargs: module.load_weights(
            load_file(Path(kwargs["weights_path"]) / "model.safetensors").items()
        ),
        reset_prefix_cache=lambda: None,
    )
    generator._kept = _all_but_weights(folders[0])
    generator._take_tokenizer(str(folders[0]), False)
    assert generator.load(str(folders[1])) is proved
    assert ("does not prove" in caplog.text) is not proved
