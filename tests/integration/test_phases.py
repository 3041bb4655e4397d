"""What the driver asks of its ranks and reward processes, and when. Real Ray and two ranks, without models."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.training_kit import arguments
from verl.protocol import DataProto
from verl.single_controller import WorkerGroup
from verl.trainer.experience import ExperienceMaker, TrainingError
from verl.trainer.main import read_datasets
from verl.trainer.metrics import Timer
from verl.trainer.preflight import read_config
from verl.trainer.ray_trainer import RayPPOTrainer
from verl.utils.tokenizer import get_tokenizer
from verl.workers.reward.function import RewardError
from verl.workers.reward.processes import RewardProcesses

T = 16
REWARDS = """
import time
from pathlib import Path
REWARD_TYPE = "batch"

def compute_score(inputs, wait_for=""):
    end = time.monotonic() + 30
    while wait_for and not Path(wait_for).exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    return [{"overall": item["response_length"] / 16, "place": place} for place, item in enumerate(inputs)]
"""
"""A reward that tells which row it is of. With ``wait_for`` it ends when that file is there."""

SHARED = """
import os, time
from pathlib import Path
REWARD_TYPE = "sequential"

def compute_score(item, folder):
    (Path(folder) / str(os.getpid())).touch()
    end = time.monotonic() + 30
    while len(list(Path(folder).iterdir())) < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    if item["response"] == "none":
        return None
    return {"overall": float(item["response"])} | ({"more": 1.0} if item["response"] == "3" else {})
"""


class Rank:
    """Answers at once, in lengths that follow from the prompt and the sample's number (0, if greedy)."""

    def __init__(self, config, rank):
        self.config, self.rank = config, rank
        self.calls, self.syncs = [], 0

    def address(self):
        return "127.0.0.1", 0

    def connect(self, master):
        self.calls.append("connect")

    def open_engine(self):
        self.calls.append("open")
        self.syncs += 1

    def close_engine(self):
        self.calls.append("close")
        syncs, self.syncs = self.syncs, 0
        return {"weight_syncs": syncs, "sync_gathered_gib": 0.5 * syncs}

    def generate_sequences(self, prompts):
        self.calls.append("generate")
        n, greedy = prompts.meta_info["n"], prompts.meta_info["temperature"] == 0
        ids = prompts.non_tensor_batch["raw_prompt_ids"]
        lengths = torch.tensor([length_of(one, 0 if greedy else number) for one in ids for number in range(n)])
        mask = (torch.arange(T) < lengths[:, None]).long()
        whole = torch.cat([prompts.batch["attention_mask"].repeat_interleave(n, dim=0), mask], dim=1)
        tokens = {"responses": torch.full(mask.shape, 50), "response_mask": mask, "attention_mask": whole}
        tokens["input_ids"] = torch.cat([prompts.batch["input_ids"].repeat_interleave(n, dim=0), 50 * mask], dim=1)
        return DataProto.from_dict(tokens | {"rollout_log_probs": torch.zeros(mask.shape)})

    def compute_ref_log_probs(self, data):
        self.calls.append("reference")
        (self.config.trainer.run_folder / "reference_done").touch()
        return DataProto.from_dict({"ref_log_probs": torch.zeros(data.batch["responses"].shape)})

    def update_actor(self, data):
        metrics = {"actor/kl_loss": 0.0, "actor/skipped_steps": 0.0}
        log_probs = torch.zeros(data.batch["responses"].shape)
        return DataProto.from_dict({"log_probs": log_probs}, meta_info={"metrics": metrics})

    def take_calls(self):
        calls, self.calls = self.calls, []
        return calls


def length_of(ids, number):
    return 1 + (sum(ids) + 5 * number) % T


def trainer_of(model, folder, *changes, workers=None):
    """On two such ranks."""
    (folder / "scores.py").write_text(REWARDS)
    words = [f"worker.reward.reward_function={folder / 'scores.py'}:compute_score", "data.extra_prompt=Hm."]
    words += ["data.max_prompt_length=128", "worker.rollout.noise_rollout=1", "data.val_batch_size=7"]
    config = read_config(arguments(model, folder, "run", *words, *changes))
    tokenizer = get_tokenizer(str(model))
    train, noisy, val = read_datasets(config, tokenizer)
    trainer = RayPPOTrainer(config, tokenizer, train, val, 3, noisy)
    trainer.workers = workers or WorkerGroup(Rank, nnodes=1, ranks_per_node=2, with_gpus=False, config=config)
    trainer.arithmetic = [None, None]
    trainer.experience = ExperienceMaker(config, tokenizer, trainer.workers, trainer.loader, noisy)
    return trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phases")
    (folder / "run").mkdir()
    return folder


@pytest.fixture(scope="module")
def shared_trainer(ray_session, tiny_model, folder):
    trainer = trainer_of(tiny_model, folder)
    yield trainer
    trainer.workers.shutdown()


@pytest.fixture
def trainer(shared_trainer):
    """As it began, but for the calls of its ranks."""
    config, experience = shared_trainer.config, vars(shared_trainer.experience).copy()
    yield shared_trainer
    shared_trainer.config = config
    vars(shared_trainer.experience).update(experience)
    shared_trainer.workers.all("take_calls")


def calls_of(trainer):
    first, second = trainer.workers.all("take_calls")
    assert first == second
    return [call for call in first if call != "connect"]


def test_several_processes_share_the_samples_of_a_sequential_function(ray_session, tiny_model, tmp_path):
    (tmp_path / "shared.py").write_text(SHARED)
    (tmp_path / "here").mkdir()
    config = replace(
        read_config(arguments(tiny_model, tmp_path, "run")).worker.reward,
        reward_function=f"{tmp_path / 'shared.py'}:compute_score",
        reward_function_kwargs={"folder": str(tmp_path / "here")},
        num_cpus=2,
    )
    processes = RewardProcesses(config)

    def score(*responses):
        return processes.start([{"response": text, "prompt": f"prompt {text}"} for text in responses]).wait()

    assert [one["overall"] for one in score("0", "1", "2", "4", "5")] == [0, 1, 2, 4, 5]
    assert score() == []
    with pytest.raises(RuntimeError, match=r"parts \['more', 'overall'\] for prompt 'prompt 3'"):
        score("0", "1", "3")
    with pytest.raises(RuntimeError, match="returned None for prompt 'prompt none'"):
        score("0", "1", "none")


def test_a_phase_of_sampling_hands_the_weights_over_once_whatever_it_samples(trainer):
    config = trainer.config
    rollout = replace(config.worker.rollout, noise_rollout=0)
    plain = replace(config, worker=replace(config.worker, rollout=rollout))
    filtering = {"online_filtering": True, "filter_low": 0.45, "filter_high": 0.6}
    for one, algorithm, generated in (
        (plain, {}, 1),
        (config, {}, 2),  # the clean prompts, and the noisy ones
        (config, {"adv_estimator": "remax"}, 3),
        (plain, filtering, 4),
    ):
        trainer.experience.config = replace(one, algorithm=replace(one.algorithm, **algorithm))
        metrics = {}
        batch = trainer.experience.collect(1, Timer(), metrics)
        trainer.experience.add_rewards(batch, 1, metrics)
        assert trainer.experience.handed_over == {"perf/weight_syncs": 1, "perf/sync_gathered_gib": 0.5}
        calls = calls_of(trainer)
        assert calls == ["open", *["generate"] * (len(calls) - 2), "close"]
        assert len(calls) - 2 == (metrics["filter/draws"] if algorithm == filtering else generated)
        assert metrics["rollout/zero_variance_groups"] == 0
    assert metrics["filter/draws"] > 1
    assert trainer.validate()["perf/weight_syncs"] == 2  # with that of the step
    assert calls_of(trainer) == ["open", *["generate"] * 4, "close"]  # 24 rows, 7 at a time


def test_an_error_in_a_phase_closes_the_engines(trainer):
    trainer.experience.rewards = SimpleNamespace(start=lambda inputs: SimpleNamespace(wait=fail, inputs=inputs))
    algorithm = replace(trainer.config.algorithm, online_filtering=True)
    trainer.experience.config = replace(trainer.config, algorithm=algorithm)
    with pytest.raises(TrainingError, match="step 1: no such judge"):
        trainer.experience.collect(1, Timer(), {})
    assert calls_of(trainer)[-1] == "close"
    with pytest.raises(TrainingError, match="step 0: no such judge"):
        trainer.validate()
    assert calls_of(trainer)[-1] == "close"


def fail():
    raise RewardError("no such judge")


def test_rewards_are_scored_during_the_reference_pass_and_find_their_rows(shared_trainer, tiny_model, folder):
    words = ["algorithm.adv_estimator=remax", "worker.rollout.noise_rollout=0"]
    words += [f"worker.reward.reward_function_kwargs.wait_for={folder / 'run' / 'reference_done'}"]
    trainer = trainer_of(tiny_model, folder, *words, workers=shared_trainer.workers)
    (folder / "run" / "reference_done").unlink(missing_ok=True)
    updated = []
    trainer._update_actor = lambda batch, metrics: updated.append(batch)
    trainer.step = 1
    metrics = trainer.train_step()
    [batch] = updated
    lengths = batch.batch["response_mask"].sum(1)
    assert torch.equal(batch.batch["token_level_scores"].sum(1), lengths / T)
    assert [reward["overall"] * T for reward in batch.non_tensor_batch["reward"]] == lengths.tolist()
    places = [reward["place"] for reward in batch.non_tensor_batch["reward"]]
    assert sorted(places) == list(range(32)) and places != sorted(places)  # rows were shared out by their lengths
    greedy = [length_of(ids, 0) / T for ids in batch.non_tensor_batch["raw_prompt_ids"]]
    assert batch.batch["reward_baselines"].tolist() == greedy
    assert metrics["reward/overall"] == pytest.approx(lengths.float().mean().item() / T)
