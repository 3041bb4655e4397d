"""One rank with its engine, without Ray: weight sync, the on-policy short cut, steps that are not finite, seeds."""

import json
import multiprocessing
import socket
import traceback
from dataclasses import replace

import pytest
import torch

from tests.training_kit import arguments
from verl.protocol import DataProto
from verl.trainer.config import PPOConfig, migrate
from verl.trainer.data_loader import PromptLoader
from verl.utils.config import load
from verl.utils.dataset import RLHFDataset
from verl.workers.fsdp_workers import FSDPWorker
from verl.workers.sharding_manager.fsdp_vllm import DivergedError, StaleWeightsError

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}


def weights(worker) -> list[torch.Tensor]:
    return [param.to_local().clone() for param in worker.actor.module.parameters()]


def prompts(worker, count: int) -> DataProto:
    data = worker.config.data
    dataset = RLHFDataset(data.train_files, worker.tokenizer, "prompt", "solution", data.max_prompt_length)
    batch = PromptLoader(dataset, shuffle=False, seed=1).next(count)
    tensors, others = ["input_ids", "attention_mask", "position_ids"], ["raw_prompt_ids", "uid"]
    return batch.select(tensors, others)


def samples(worker, count=4, n=4, step=1) -> DataProto:
    request = prompts(worker, count)
    request.meta_info = {"n": n, "step": step, **SAMPLING}
    return worker.generate_sequences(request)


def to_update(batch: DataProto, **tensors) -> DataProto:
    generator = torch.Generator().manual_seed(0)
    shape = batch.batch["responses"].shape
    batch = batch.select(non_tensor_batch_keys=[])
    batch.batch["advantages"] = torch.randn(shape, generator=generator)
    batch.batch["ref_log_probs"] = batch.batch["rollout_log_probs"] - 0.1
    batch.batch.update(tensors)
    batch.meta_info = {"kl_coef": 0.01, "step": 1}
    return batch


def check_stale_weights_end_the_run(worker) -> None:
    manager, parameter = worker.sharding_manager, next(iter(worker.actor.module.parameters()))
    with manager.engine():
        pass
    with torch.no_grad():
        parameter.add_(0.3)
    changed = manager.score(manager.tokens)
    with pytest.raises(StaleWeightsError, match="does not hold the actor's weights"):
        manager.verify(changed)
    with manager.engine():
        manager.verify(changed)
    with torch.no_grad():
        parameter.sub_(0.3)
    before = weights(worker)
    with torch.no_grad():
        parameter.fill_(float("inf"))
    with pytest.raises(DivergedError, match="not finite any more.*lower worker.actor.optim.lr"), manager.engine():
        pass
    restore(worker, before)


def check_samples_do_not_depend_on_batching(worker) -> None:
    whole = samples(worker, 4)
    request = prompts(worker, 4)
    for rows in ([2, 3], [0, 1]):
        part = request[rows]
        part.meta_info = {"n": 4, "step": 1, **SAMPLING}
        alone = worker.generate_sequences(part)
        of_whole = whole[[row * 4 + number for row in rows for number in range(4)]]
        assert torch.equal(alone.batch["responses"], of_whole.batch["responses"])
    assert not torch.equal(samples(worker, 4, step=2).batch["responses"], whole.batch["responses"])


def check_responses_go_on_behind_eos_where_that_is_wanted(worker) -> None:
    rollout = worker.sharding_manager.rollout
    config, eos = rollout.config, rollout.eos_token_ids
    rollout.eos_token_ids = samples(worker).batch["responses"][:, 0].unique().tolist()  # so that many would end
    assert samples(worker).batch["response_mask"].sum() < 16 * 16
    rollout.config = replace(config, ignore_eos=True)
    assert samples(worker).batch["response_mask"].sum() == 16 * 16
    rollout.config, rollout.eos_token_ids = config, eos


def check_engine_log_probs_are_the_actors(worker) -> None:
    batch = samples(worker)
    actor = worker.actor.compute_log_prob(batch)
    assert (actor - batch.batch["rollout_log_probs"]).abs().max() < 1e-4
    assert (actor != 0).sum() == batch.batch["response_mask"].sum()


def check_the_on_policy_short_cut_changes_nothing(worker) -> None:
    batch = to_update(samples(worker))
    before = weights(worker)
    results, after = [], []
    for extra in ({}, {"old_log_probs": worker.actor.compute_log_prob(batch)}):
        restore(worker, before)
        results.append(worker.update_actor(to_update(batch, **extra)).meta_info["metrics"])
        after.append(weights(worker))
    moving = ("perf/peak", "actor/lr")
    first, second = ({k: v for k, v in one.items() if not k.startswith(moving)} for one in results)
    assert first == second
    assert all(torch.equal(one, other) for one, other in zip(*after, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(before, after[0], strict=True))


def check_a_step_that_is_not_finite_is_skipped_and_counted(worker) -> None:
    batch = to_update(samples(worker))
    batch.batch["advantages"][0, 0] = float("nan")
    before, skipped = weights(worker), worker.actor.stepper.skipped
    metrics = worker.update_actor(batch).meta_info["metrics"]
    assert metrics["actor/skipped_steps"] == skipped + 1
    assert all(torch.equal(one, other) for one, other in zip(before, weights(worker), strict=True))


def restore(worker, saved) -> None:
    with torch.no_grad():
        for param, value in zip(worker.actor.module.parameters(), saved, strict=True):
            param.to_local().copy_(value)
    worker.actor.stepper.optimizer.state.clear()


CHECKS = {name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")}


def run_checks(model, folder, port: int) -> None:
    argv = arguments(model, folder, "run", "trainer.n_gpus_per_node=1")
    worker = FSDPWorker(load(PPOConfig, argv, migrate), 0, 10)
    worker.connect(("127.0.0.1", port), 1)
    worker.init_model()
    verdicts = {}
    for name, check in CHECKS.items():
        try:
            check(worker)
            verdicts[name] = ""
        except (AssertionError, RuntimeError, KeyError, TypeError, ValueError, pytest.fail.Exception):
            verdicts[name] = traceback.format_exc()
    (folder / "verdicts.json").write_text(json.dumps(verdicts))


@pytest.fixture(scope="module")
def verdicts(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("worker")
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=run_checks, args=(tiny_model, folder, port))
    process.start()
    process.join()
    assert process.exitcode == 0
    return json.loads((folder / "verdicts.json").read_text())


@pytest.mark.parametrize("name", CHECKS)
def test_one_rank(verdicts, name):
    assert not verdicts[name], verdicts[name]
