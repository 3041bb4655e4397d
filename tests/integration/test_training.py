"""Whole runs of the trainer: Ray, FSDP2 and vLLM on tiny models, in one or two ranks."""

import json
import shutil

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training_kit import arguments, metrics_of, run_cli, train
from verl.trainer.experience import TrainingError
from verl.utils.logger.logger import read_metrics

VALIDATING = ("trainer.val_freq=3", "trainer.val_before_train=true", "trainer.val_generations_to_log=4")
VALIDATING += ("worker.actor.model.override_config.rms_norm_eps=1e-3",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def two_ranks(folder, tiny_model):
    """The folder of a finished run of the command line on two ranks."""
    run_cli(arguments(tiny_model, folder, "two", *VALIDATING, "trainer.logger=[console,tensorboard,wandb]"))
    return folder / "two"


@pytest.fixture
def two_machines():
    """The address of a Ray cluster of two nodes, which Ray takes for two machines, one of them with a GPU."""
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 200 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **small})
    cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=200 * 2**20)
    yield cluster.address
    cluster.shutdown()


def close(first, second, tolerance):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"rollout/max_abs_diff", "rollout/mean_abs_diff", "rollout/kl"}:  # rounding errors
            assert one[key] == pytest.approx(other[key], rel=tolerance, abs=1e-6), f"step {one['step']}, {key}"


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


def test_one_rank_samples_and_learns_the_same(two_ranks, ray_session, folder, tiny_model):
    changes = ("trainer.n_gpus_per_node=1", "data.val_batch_size=7", "worker.actor.fsdp.enable_rank0_init=false")
    train(*arguments(tiny_model, folder, "one", *VALIDATING, *changes))
    close(metrics_of(folder / "one"), metrics_of(two_ranks), 1e-4)
    assert [row["perf/weight_syncs"] for row in read_metrics(folder / "one")] == [1, 1, 1, 2]  # val in four batches
    texts = [(run / "dialogues/step_3.jsonl").read_text() for run in (folder / "one", two_ranks)]
    assert texts[0] == texts[1]


def test_an_engine_over_two_ranks_samples_and_learns_the_same(two_ranks, folder, tiny_model):
    """And so does one that takes little at a time and logs its speed, with files read and written elsewhere."""
    (folder / "tokenizer").mkdir()
    for path in tiny_model.glob("*token*"):
        shutil.copy(path, folder / "tokenizer")
    shutil.copy(tiny_model / "chat_template.jinja", folder / "chat.jinja")
    changes = [
        "worker.rollout.tensor_parallel_size=2",
        "worker.rollout.enable_chunked_prefill=false",
        "worker.rollout.max_num_batched_tokens=90",
        "worker.rollout.disable_log_stats=false",
        f"worker.actor.model.tokenizer_path={folder / 'tokenizer'}",
        f"data.override_chat_template={folder / 'chat.jinja'}",
        f"trainer.save_checkpoint_path={folder / 'elsewhere'}",
        f"trainer.ray_timeline={folder / 'timeline.json'}",
    ]
    output = run_cli(arguments(tiny_model, folder, "tp", *VALIDATING, *changes), VLLM_LOG_STATS_INTERVAL="0.05")
    close(metrics_of(folder / "tp"), metrics_of(two_ranks), 1e-3)
    assert "Avg generation throughput" in output
    assert (folder / "elsewhere" / "global_step_3" / "actor" / "huggingface" / "tokenizer.json").is_file()
    assert not (folder / "tp" / "checkpoints").exists()
    timeline = json.loads((folder / "timeline.json").read_text())
    assert any("update_actor" in event["name"] for event in timeline), timeline


def test_a_run_whose_losses_are_not_finite_ends(ray_session, folder, tiny_model):
    changes = ("algorithm.kl_coef=1e39", "trainer.max_steps=9", "trainer.max_nonfinite_steps=1")
    with pytest.raises(TrainingError, match="step 2: 2 optimiser steps had a non-finite loss or gradient; lower"):
        train(*arguments(tiny_model, folder, "diverged", *changes))


def test_a_rank_on_each_of_two_machines_learns_the_same(two_machines, two_ranks, folder, tiny_model):
    spread = ("trainer.nnodes=2", "trainer.n_gpus_per_node=1")
    words = arguments(tiny_model, folder, "machines", *VALIDATING, *spread)
    run_cli(words, RAY_ADDRESS=two_machines, CUDA_VISIBLE_DEVICES="")  # on their CPUs
    close(metrics_of(folder / "machines"), metrics_of(two_ranks), 1e-4)
