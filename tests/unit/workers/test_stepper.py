"""An update on a device: no operation over two devices, and no waiting for numbers that nobody needs yet."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim.lr_scheduler import LambdaLR
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.fake_cuda import CUDA, fake_cuda
from verl.config.run import PPOConfig
from verl.protocol import DataProto
from verl.workers.actor.dp_actor import DataParallelPPOActor
from verl.workers.batching import MetricSums
from verl.workers.critic.dp_critic import DataParallelPPOCritic
from verl.workers.stepper import Stepper

ROWS, T = 8, 3
CASES = {
    "gspo, KL": ({"loss_type": "gspo", "loss_avg_mode": "seq"}, {"use_kl_loss": True}),
    "sapo, rollout_is": ({"loss_type": "sapo", "loss_avg_mode": "constant"}, {"rollout_is": "token"}),
    "critic": ({}, {}),
}


class Line(torch.nn.Module):
    """Made of ones, its gradient too: random numbers and gradients on a GPU need one."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.ones(1, device=device))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if values.device == CUDA:
            self.slope.grad = torch.ones_like(self.slope)
        return self.slope * values


@pytest.fixture
def two_ranks():
    """A process group whose collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def config_of(micro: int, actor: dict, algorithm: dict) -> PPOConfig:
    config = PPOConfig()
    sizes = {"global_batch_size": 4, "micro_batch_size_per_device_for_update": micro}
    worker = replace(
        config.worker,
        actor=replace(config.worker.actor, **sizes, **actor),
        critic=replace(config.worker.critic, **sizes),
        rollout=replace(config.worker.rollout, n=2),
    )
    return replace(
        config,
        data=replace(config.data, rollout_batch_size=8),
        worker=worker,
        algorithm=replace(config.algorithm, **algorithm),
        trainer=replace(config.trainer, n_gpus_per_node=2),
    )


def batch() -> DataProto:
    keys = ["old_log_probs", "ref_log_probs", "rollout_log_probs", "advantages", "loss_weights"]
    tensors = {key: torch.randn(ROWS, T) for key in [*keys, "values", "returns", "features"]}
    tensors["response_mask"] = torch.ones(ROWS, T, dtype=torch.int64)
    tensors["responses"] = torch.ones(ROWS, T, dtype=torch.int64)
    return DataProto.from_dict(tensors, meta_info={"kl_coef": 0.1})


def update(role: str, config: PPOConfig, device: torch.device) -> dict[str, float]:
    """Two optimiser steps of a line instead of a language model."""
    return make_updater(role, config, device)()


def make_updater(
    role: str, config: PPOConfig, device: torch.device, schedule: Callable[[int], float] = lambda step: 1.0
) -> Callable[[], dict[str, float]]:
    """A training step of a line instead of a language model; returns its metrics."""
    module = Line(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    settings = getattr(config.worker, role)
    stepper = Stepper(settings, module, optimizer, LambdaLR(optimizer, schedule), max_tokens=None)
    common = {"device": device, "max_tokens_for_experience": None, "parallel": None, "stepper": stepper}

    def outputs(micro: DataProto) -> torch.Tensor:
        return module(micro.batch["features"])

    if role == "critic":
        critic = DataParallelPPOCritic(config, module, **common)
        critic._values = outputs
        return lambda: critic.update_critic(batch())
    actor = DataParallelPPOActor(config, module, **common)
    actor._forward = lambda micro: (outputs(micro), outputs(micro).detach().flatten(), SimpleNamespace())
    return lambda: actor.update_policy(batch())[0]


@pytest.mark.parametrize("name", CASES)
def test_an_update_stays_on_its_device_and_waits_for_it_a_few_times_whatever_the_micro_batches(
    name, two_ranks, monkeypatch
):
    tables, waits = [], []
    monkeypatch.setattr(FakeTensor, "tolist", lambda tensor: tables.append(tensor) or [[1.0, 1.0]] * len(tensor))
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    for micro in (4, 1):
        config = config_of(micro, *CASES[name])
        with fake_cuda() as watch:
            metrics = update("critic" if name == "critic" else "actor", config, CUDA)
        waits.append(watch.waits.total())
    assert [table.device.type for table in tables] == ["cuda", "cuda"]  # one transfer an update
    assert len(tables[0]) == len(metrics) - 2  # all but lr and skipped_steps
    assert waits[0] == waits[1] <= 2 * 4 + 1  # of two steps, and the log-probabilities that go home


@pytest.mark.parametrize("role", ["actor", "critic"])
def test_the_schedule_counts_training_steps_whatever_their_optimiser_steps(role, two_ranks, monkeypatch):
    settings = {"ppo_epochs": 2}  # of two mini-batches each
    config = config_of(2, settings, {})
    worker = replace(config.worker, critic=replace(config.worker.critic, **settings))
    used, factors = [], [0.0, 0.5, 1.0, 0.25]
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: used.append(self.param_groups[0]["lr"]))
    step = make_updater(role, replace(config, worker=worker), torch.device("cpu"), lambda count: factors[count])
    assert [step()["lr"] for _ in range(3)] == pytest.approx([0.0, 0.05, 0.1])  # those that were used
    assert used == pytest.approx([0.0] * 4 + [0.05] * 4 + [0.1] * 4)


def test_a_number_of_another_device_joins_metrics_without_a_copy():
    with fake_cuda() as watch:
        sums = MetricSums(CUDA)
        for host in (2, 2.0, torch.tensor(2.0)):
            sums.add({"a": (torch.ones((), device=CUDA), host), "b": (host, torch.ones((), device=CUDA))})
        assert {pair.device for pairs in sums._sums.values() for pair in pairs} == {CUDA}
        assert not watch.waits


def test_means_are_sums_over_sums(two_ranks):
    sums = MetricSums(torch.device("cpu"))
    for total, weight in ((1.0, 2), (torch.tensor(3.0), torch.tensor(6))):
        sums.add({"a": (total, weight), "none": (0.0, 0)})
    assert sums.means() == {"a": 0.5, "none": 0.0}


@pytest.mark.parametrize(("bad", "skipped"), [(None, 0), (0, 1), (5, 1)])
def test_a_loss_that_is_not_finite_in_any_micro_batch_skips_the_step(bad, skipped, two_ranks):
    config = config_of(2, {}, {})
    module = Line(torch.device("cpu"))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    stepper = Stepper(config.worker.actor, module, optimizer, LambdaLR(optimizer, lambda step: 1.0), max_tokens=None)
    rows, before = batch(), [param.detach().clone() for param in module.parameters()]
    if bad is not None:
        rows.batch["features"][bad, 0] = float("inf")

    def loss(micro):
        # Multiplied by 0 the gradient stays finite: only the loss tells.
        features = micro.batch["features"]
        return module(features.nan_to_num(posinf=1.0)).sum() + features.sum().detach(), {}

    stepper.step(rows, loss, torch.tensor(8.0), MetricSums(torch.device("cpu")))
    assert stepper.skipped == skipped
    moved = any(not torch.equal(one, other) for one, other in zip(before, module.parameters(), strict=True))
    assert moved == (not skipped)
