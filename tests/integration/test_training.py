"""Whole runs of the trainer: Ray, FSDP2 and vLLM on a tiny model, in two ranks on one machine or two."""

import json
import shutil

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training_kit import arguments, close, metrics_of, run_cli, train
from verl.utils.logger.logger import read_metrics

VALIDATING = ("trainer.val_freq=3", "trainer.val_before_train=true", "trainer.val_generations_to_log=4")
VALIDATING += ("worker.actor.model.override_config.rms_norm_eps=1e-3",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def two_machines():
    """The address of a Ray cluster of two nodes, which Ray takes for two machines, one of them with a GPU."""
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 200 * 2**20, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_LOG_STATS_INTERVAL", "0.05")  # ranks have the environment of their machine, not the driver's
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **small})
        cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=200 * 2**20)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="module")
def finished(two_machines, folder, tiny_model):
    """The folder of a finished run of the command line, a rank on each of two machines, and its output."""
    changes = ("trainer.nnodes=2", "trainer.n_gpus_per_node=1", "trainer.logger=[console,tensorboard,wandb]")
    changes += ("worker.rollout.disable_log_stats=false", f"trainer.ray_timeline={folder / 'timeline.json'}")
    words = arguments(tiny_model, folder, "two", *VALIDATING, *changes)
    on_cpus = {"RAY_ADDRESS": two_machines, "CUDA_VISIBLE_DEVICES": ""}
    return folder / "two", run_cli(words, **on_cpus)


@pytest.fixture(scope="module")
def two_ranks(finished):
    return finished[0]


def test_engine_and_trainer_agree_on_log_probs_before_and_after_updates(two_ranks):
    rows = [row for row in metrics_of(two_ranks) if "actor/pg_loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(0 < row["rollout/max_abs_diff"] < 1e-4 for row in rows)
    assert all(row["actor/grad_norm"] > 1e-3 for row in rows)  # so steps 2 and 3 sampled from updated weights


def test_weights_are_handed_over_once_a_phase(two_ranks, tiny_model):
    rows = read_metrics(two_ranks)
    assert [row["perf/weight_syncs"] for row in rows] == [1, 1, 1, 2]  # validation, two steps, a step and validation
    weights = AutoModelForCausalLM.from_pretrained(tiny_model).num_parameters()
    gathered = [row["perf/sync_gathered_gib"] * 2**30 for row in rows]
    assert gathered == pytest.approx([4 * weights * syncs for syncs in (1, 1, 1, 2)])  # the engine works in fp32


def test_a_finished_run_leaves_everything_a_user_looks_for(two_ranks, tiny_model):
    assert (two_ranks / "DONE").read_text().strip() == "3"
    assert (two_ranks / "config.yaml").exists()
    assert any((two_ranks / "tensorboard").iterdir())
    assert any((two_ranks / "wandb").iterdir())
    dialogues = [json.loads(line) for path in (two_ranks / "dialogues").glob("*.jsonl") for line in path.open()]
    assert sorted(row["step"] for row in dialogues) == [0] * 4 + [3] * 4
    actor = two_ranks / "checkpoints" / "global_step_3" / "actor" / "huggingface"
    model = AutoModelForCausalLM.from_pretrained(actor)
    assert model.config.rms_norm_eps == 1e-3  # as it was trained
    tokenizer = AutoTokenizer.from_pretrained(actor)
    assert tokenizer.chat_template
    before = load_file(tiny_model / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    after = model.state_dict()["model.layers.0.mlp.up_proj.weight"]
    assert 1e-4 < (after - before).abs().max() < 1e-2  # three Adam steps of 1e-3


def test_a_run_says_how_fast_it_was_where_that_is_asked_for(finished, folder):
    assert "Avg generation throughput" in finished[1]
    timeline = json.loads((folder / "timeline.json").read_text())
    assert any("update_actor" in event["name"] for event in timeline), timeline


def test_an_engine_over_two_ranks_samples_and_learns_the_same(two_ranks, ray_session, folder, tiny_model):
    """On one machine, and taking little at a time, with files read and written elsewhere."""
    (folder / "tokenizer").mkdir()
    for path in tiny_model.glob("*token*"):
        shutil.copy(path, folder / "tokenizer")
    shutil.copy(tiny_model / "chat_template.jinja", folder / "chat.jinja")
    changes = [
        "worker.rollout.tensor_parallel_size=2",
        "worker.rollout.enable_chunked_prefill=false",
        "worker.rollout.max_num_batched_tokens=90",
        f"worker.actor.model.tokenizer_path={folder / 'tokenizer'}",
        f"data.override_chat_template={folder / 'chat.jinja'}",
        f"trainer.save_checkpoint_path={folder / 'elsewhere'}",
    ]
    train(*arguments(tiny_model, folder, "tp", *VALIDATING, *changes))
    close(metrics_of(folder / "tp"), metrics_of(two_ranks), 1e-3)
    texts = [(run / "dialogues/step_3.jsonl").read_text() for run in (folder / "tp", two_ranks)]
    assert texts[0] == texts[1]
    assert (folder / "elsewhere" / "global_step_3" / "actor" / "huggingface" / "tokenizer.json").is_file()
    assert not (folder / "tp" / "checkpoints").exists()
