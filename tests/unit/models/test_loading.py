"""What every rank finds in its shards after loading, against the rows of the weights that transformers loads.

A process group that sends nothing lets one process play rank after rank; what rank 0 broadcasts is looked at there.
"""

import json
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import verl.models.build
from verl.config.worker import FSDPConfig, LoraConfig, ModelConfig
from verl.models import loading
from verl.models.build import build_model
from verl.models.fsdp import build_mesh, local_shard
from verl.utils.errors import DataError

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 37}


@contextmanager
def as_rank(rank: int, ranks: int):
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def loaded(path, rank: int = 0, ranks: int = 1, *, value_head: bool = False, model=None, **fsdp) -> torch.nn.Module:
    with as_rank(rank, ranks):
        return build_model(
            ModelConfig(model_path=str(path), **(model or {})),
            FSDPConfig(**fsdp),
            build_mesh("cpu", fsdp.get("fsdp_size", -1)),
            trainable=True,
            padding_free=False,
            value_head=value_head,
        )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Kind of checkpoint to folder; rows of 37 divide over no number of ranks."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    for tied in (True, False):
        model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied))
        model.save_pretrained(folder / ("tied" if tied else "untied"))
    model.save_pretrained(folder / "sharded", max_shard_size="4KB")
    assert len(list((folder / "sharded").glob("*.safetensors"))) > 2
    model.to(torch.bfloat16).save_pretrained(folder / "bf16")
    torch.save(model.state_dict(), folder / "weights.bin")
    model.config.save_pretrained(folder / "bin")
    (folder / "weights.bin").rename(folder / "bin" / "pytorch_model.bin")
    MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2)).save_pretrained(folder / "experts")
    return folder


@pytest.fixture
def no_whole_model(monkeypatch):
    monkeypatch.setattr(verl.models.build, "whole_model", lambda *_: pytest.fail("the whole model was read"))


def check(module, path, rank: int, ranks: int) -> None:
    """Every parameter holds this rank's rows of what transformers loads."""
    expected = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict()
    for name, tensor in module.named_parameters():
        if ".lora_" in name or loading.HEAD.search(name):
            continue
        whole = expected[loading.plain_name(name)]
        rows = -(-whole.shape[0] // ranks)
        assert torch.equal(local_shard(tensor), whole[rank * rows : (rank + 1) * rows]), name


@pytest.mark.usefixtures("no_whole_model")
@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 2), (1, 2), (7, 8)])
@pytest.mark.parametrize("kind", ["tied", "untied", "sharded", "bf16"])
def test_every_rank_reads_its_own_rows(checkpoints, kind, rank, ranks):
    check(loaded(checkpoints / kind, rank, ranks), checkpoints / kind, rank, ranks)


@pytest.mark.usefixtures("no_whole_model")
def test_replicated_shards_are_read_by_each_group(checkpoints):
    check(loaded(checkpoints / "untied", 3, 4, fsdp_size=2), checkpoints / "untied", 1, 2)


@pytest.mark.usefixtures("no_whole_model")
def test_adapters_and_value_heads_start_beside_what_was_read(checkpoints):
    lora = {"lora": LoraConfig(rank=2)}
    for value_head in (False, True):
        module = loaded(checkpoints / "untied", value_head=value_head, model=lora, mp_param_dtype="fp32")
        check(module, checkpoints / "untied", 0, 1)
        parts = {name: local_shard(tensor) for name, tensor in module.named_parameters()}
        assert all(part.abs().max() > 0 for name, part in parts.items() if ".lora_A" in name)
        heads = [name for name in parts if loading.HEAD.search(name) and ".lora_" not in name]
        zeros = [*heads, *(name for name in parts if ".lora_B" in name)]
        assert (len(heads), len(zeros)) == ((2, 10) if value_head else (0, 7))
        assert all((parts[name] == 0).all() for name in zeros)


def test_adapters_start_alike_however_the_weights_are_read(checkpoints, monkeypatch):
    found, add_lora = [], verl.models.build.add_lora

    def seeded(*args):
        torch.manual_seed(5)  # reading draws numbers too
        return add_lora(*args)

    monkeypatch.setattr(verl.models.build, "add_lora", seeded)
    for direct in (True, False):
        if not direct:
            monkeypatch.setattr(verl.models.build, "same_names", lambda *_: False)
        module = loaded(checkpoints / "tied", model={"lora": LoraConfig(rank=2)})
        found.append({name: local_shard(tensor) for name, tensor in module.named_parameters()})
    assert found[0].keys() == found[1].keys()
    assert [name for name in found[0] if not torch.equal(found[0][name], found[1][name])] == []


@pytest.mark.parametrize("kind", ["bin", "experts"])
def test_what_transformers_converts_is_read_as_a_whole(checkpoints, kind):
    files = loading.WeightFiles.find(str(checkpoints / kind))
    assert (files is None) == (kind == "bin")
    check(loaded(checkpoints / kind), checkpoints / kind, 0, 1)


def test_a_machine_without_all_files_leaves_reading_to_rank_0(checkpoints, tmp_path):
    index = json.loads((checkpoints / "sharded" / "model.safetensors.index.json").read_text())
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert loading.WeightFiles.find(str(tmp_path)) is None


def test_tensors_that_are_missing_or_of_another_shape_are_named(checkpoints):
    with pytest.raises(DataError, match=r"has no model\.layers\.1\.\S+.*config\.json.*describes another model"):
        loaded(checkpoints / "tied", model={"override_config": {"num_hidden_layers": 2}})
    with pytest.raises(DataError, match=r"embed_tokens\.weight \(37, 16\) for \(38, 16\)"):
        loaded(checkpoints / "untied", model={"override_config": {"vocab_size": 38}})
