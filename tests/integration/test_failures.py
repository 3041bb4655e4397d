"""What fails says where: rewards that raise, ranks that raise or die. Real Ray, no model."""

import os
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.training_kit import arguments
from verl.protocol import DataProto, object_array
from verl.single_controller import WorkerGroup
from verl.single_controller.worker_group import WorkerError
from verl.trainer.experience import ExperienceMaker, TrainingError
from verl.trainer.metrics import Timer, reward_metrics
from verl.trainer.preflight import read_config
from verl.utils.tokenizer import get_tokenizer

REWARDS = """
REWARD_TYPE = "sequential"

def compute_score(inputs):
    return 1 / (len(inputs["prompt"]) - len("Who wrote book 1?"))
"""


def experience(model, folder, *changes):
    path = folder / "raises.py"
    path.write_text(REWARDS)
    words = [f"worker.reward.reward_function={path}:compute_score", *changes]
    config = read_config(arguments(model, folder, "run", *words))
    return ExperienceMaker(config, get_tokenizer(str(model)), workers=None, loader=None)


def two_samples() -> DataProto:
    tensors = {"responses": torch.full((2, 3), 50), "response_mask": torch.ones(2, 3, dtype=torch.int64)}
    columns = {
        "prompt": ["Who wrote book 1?", "Who wrote the second book?"],
        "ground_truth": ["a", "b"],
        "split": ["forget", "boundary"],
        "extra": [{}, {}],
    }
    return DataProto.from_dict(tensors, {key: np.array(value, dtype=object) for key, value in columns.items()})


def score(maker: ExperienceMaker, step: int) -> list[dict[str, float]]:
    return maker.wait_for(maker.rewards.start(maker.reward_inputs(two_samples())), step)


def test_a_reward_that_raises_ends_the_run_with_step_and_prompt_or_is_counted_and_zero(
    ray_session, tiny_model, tmp_path
):
    maker = experience(tiny_model, tmp_path, "algorithm.filter_key=refusal")
    with pytest.raises(TrainingError, match="step 7: .*ZeroDivision.*book 1"):
        score(maker, step=7)
    trainer = replace(maker.config.trainer, tolerate_reward_errors=True)
    maker.config = replace(maker.config, trainer=trainer)
    scores = score(maker, step=1)
    assert scores == [{"overall": 0.0, "refusal": 0.0}] * 2
    assert score(maker, step=2) == scores
    assert maker.reward_errors == 2
    mixed = reward_metrics([*scores, {"overall": 1.0, "refusal": 1.0, "recall": 0.5}], ["", "", ""])
    assert mixed == {
        "reward/overall": pytest.approx(1 / 3),
        "reward/refusal": pytest.approx(1 / 3),
        "reward/recall": 0.5,
    }


@pytest.fixture
def no_processes(monkeypatch):
    """Nothing is scored."""
    monkeypatch.setattr("verl.trainer.experience.RewardProcesses", lambda config: None)


def test_online_filtering_draws_until_enough_groups_lie_inside_its_bounds(no_processes, tiny_model, tmp_path):
    words = ["online_filtering=true", "filter_key=refusal", "filter_low=0.2", "filter_high=0.8"]
    words = [f"algorithm.{word}" for word in words] + ["data.mini_rollout_batch_size=4", "worker.rollout.n=2"]
    maker = experience(tiny_model, tmp_path, *words, "trainer.max_try_make_batch=3")
    means, drawn = [0.2, 0.5, 0.8, 0.5], []

    def scored(count):
        """``count`` groups of two with the next of these means, over and over."""
        drawn.append(count)
        scores = [{"overall": 0.0, "refusal": mean + off} for mean in means for off in (-0.1, 0.1)]
        batch = two_samples().repeat(count)
        uids = [f"{len(drawn)}-{group}" for group in range(count) for _ in range(2)]
        batch.non_tensor_batch |= {"uid": object_array(uids), "reward": object_array(scores)}
        return batch

    maker.loader = SimpleNamespace(next=lambda count: count)
    maker.workers = SimpleNamespace(all=lambda method: [{}])
    maker._sample_and_score = lambda count, step, timer: scored(count)
    with pytest.raises(TrainingError, match="after 3 draws online filtering has kept 12 of 16 samples; widen"):
        maker.collect(1, Timer(), {})
    assert drawn == [4, 4, 4]
    metrics = {}
    maker.config = replace(maker.config, trainer=replace(maker.config.trainer, max_try_make_batch=-1))
    batch = maker.collect(2, Timer(), metrics)
    assert len(batch) == 16 and {uid.split("-")[1] for uid in batch.non_tensor_batch["uid"]} == {"1", "3"}
    assert (metrics["filter/draws"], metrics["filter/kept"]) == (4, 0.5)


def test_a_filter_on_no_part_of_the_reward_is_named(no_processes, tiny_model, tmp_path):
    maker = experience(tiny_model, tmp_path, "algorithm.online_filtering=true", "algorithm.filter_key=acc")
    samples = two_samples()
    samples.non_tensor_batch |= {"uid": object_array(["a", "a"]), "reward": object_array([{"overall": 1.0}] * 2)}
    with pytest.raises(TrainingError, match="filter_key=acc: the reward has no such part; it has overall"):
        maker._informative(samples)


class FragileWorker:
    """A rank that does as it is told."""

    def __init__(self, config, rank):
        self.rank = rank

    def address(self):
        return "127.0.0.1", 0

    def connect(self, master):
        self.master = master

    def double(self, data):
        return DataProto.from_dict({"x": data.batch["x"] * 2})

    def fail(self, rank):
        if self.rank == rank:
            raise ValueError("no such thing")

    def die_behind_a_complaint(self, rank):
        if self.rank != rank:
            raise RuntimeError("connection reset by peer")
        time.sleep(1)
        os._exit(1)


def test_ranks_share_a_batch_in_order_and_one_that_raises_or_dies_is_named(ray_session):
    group = WorkerGroup(FragileWorker, nnodes=1, ranks_per_node=2, with_gpus=False, config=None)
    try:
        batch = DataProto.from_dict({"x": torch.arange(8)})
        assert torch.equal(DataProto.concat(group.split("double", batch)).batch["x"], torch.arange(8) * 2)
        assert len(group.split("double", batch, ranks_per_share=2)) == 1
        with pytest.raises(WorkerError, match="rank 1 failed in fail: ValueError: no such thing"):
            group.all("fail", 1)
        # Although the other one complains first.
        with pytest.raises(WorkerError, match="rank 1 died in die_behind_a_complaint"):
            group.all("die_behind_a_complaint", 1)
    finally:
        group.shutdown()
