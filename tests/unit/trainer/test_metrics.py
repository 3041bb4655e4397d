"""Numbers of a step against hand-counted ones."""

from types import SimpleNamespace

import pytest
import torch

from verl.estimate.flops import ModelShape
from verl.protocol import DataProto
from verl.trainer.experience import ExperienceMaker
from verl.trainer.metrics import Timer, batch_metrics, group_metrics, update_mfu
from verl.workers.seqlen_balancing import Tokens

EOS, STOP = 2, 7


def test_a_response_is_cut_off_where_it_does_not_end_with_an_end():
    rows = [[5, EOS, 0], [5, 5, EOS], [5, 5, STOP], [5, 5, 5]]  # early; at the limit, by either end; cut
    lengths = [2, 3, 3, 3]
    mask = (torch.arange(3) < torch.tensor(lengths)[:, None]).long()
    batch = DataProto.from_dict(
        {
            "responses": torch.tensor(rows),
            "response_mask": mask,
            "attention_mask": torch.cat([torch.ones(4, 2, dtype=torch.int64), mask], dim=1),
            "advantages": torch.ones(4, 3),
        }
    )
    found = batch_metrics(batch, [EOS, STOP])
    assert (found["response_length/clip_ratio"], found["response_length/max"]) == (0.25, 3)
    assert batch_metrics(batch, [EOS])["response_length/clip_ratio"] == 0.5
    assert batch_metrics(batch, [])["response_length/clip_ratio"] == 1  # ignore_eos


def test_groups_whose_rewards_are_all_equal_are_counted():
    parts = [{"overall": reward, "other": place} for place, reward in enumerate([1.0, 1.0, 0.0, 1.0, 0.5, 0.5])]
    assert group_metrics(parts, ["a", "a", "b", "b", "c", "c"]) == {"rollout/zero_variance_groups": 2 / 3}
    assert group_metrics(parts, ["a", "b", "a", "c", "b", "c"]) == {"rollout/zero_variance_groups": 0}
    assert group_metrics(parts, list("abcdef")) == {}


@pytest.mark.parametrize(
    ("rewards", "key", "kept"),
    [
        ([0.5, 0.5, 0.2, 0.8], "overall", [2, 3]),  # equal rewards teach nothing, whatever their mean
        ([0.97, 0.97, 1.0, 0.9], "overall", [2, 3]),
        ([0.0, 0.0, 1.0, 1.0], "overall", []),
        ([1.0, 0.99, 0.0, 0.01], "overall", []),  # outside (filter_low, filter_high), as EasyR1 has it
        ([0.5, 0.5, 0.2, 0.8], "part", [0, 1, 2, 3]),  # the filter looks at filter_key alone
    ],
)
def test_online_filtering_keeps_groups_whose_rewards_differ_and_have_a_mean_inside_the_bounds(rewards, key, kept):
    settings = SimpleNamespace(filter_key=key, filter_low=0.01, filter_high=0.99)
    maker = SimpleNamespace(config=SimpleNamespace(algorithm=settings))
    parts = [{"overall": reward, "part": place / 4} for place, reward in enumerate(rewards)]

    class Samples(list):
        non_tensor_batch = {"uid": ["a", "a", "b", "b"], "reward": parts}

        def __getitem__(self, rows):
            return rows

    assert ExperienceMaker._informative(maker, Samples()) == kept
    Samples.non_tensor_batch = {"uid": list("abcd"), "reward": [{key: 0.5}] * 4}
    assert ExperienceMaker._informative(maker, Samples()) == [0, 1, 2, 3]  # single samples have no group to differ from


def test_mfu_is_the_operations_of_an_update_over_what_the_gpus_could_do():
    shape = ModelShape(
        hidden=4, layers=2, intermediate=8, heads=2, kv_heads=1, head_dim=2, vocab=10, tied=True, attention_bias=False
    )
    matrices = 2 * (4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 8) + 10 * 4
    forward = 2 * matrices * (2 + 4) + 4 * 2 * 4 * (4 + 16)  # the last token of a response is not computed
    tokens = Tokens([0, 1], [0, 0], [3, 5])
    whole = update_mfu(tokens, shape, 1e6, 0.5, epochs=2, adapters=False)
    assert whole == pytest.approx(2 * 3 * forward / 0.5 / 1e6)
    assert update_mfu(tokens, shape, 1e6, 0.5, epochs=2, adapters=True) == pytest.approx(whole * 2 / 3)
    shared = Tokens([0, 0], [2, 2], [1, 3])  # the prompt of both counts once
    less = 3 * (2 * matrices * 5 + 4 * 2 * 4 * (4 + (9 - 4) + (16 - 4)))
    assert update_mfu(shared, shape, 1e6, 0.5, epochs=1, adapters=False) == pytest.approx(less / 0.5 / 1e6)


def test_speeds_count_what_was_trained_on_and_what_was_sampled():
    timer = Timer()
    timer.seconds["gen"], timer.generated = 2.0, 100  # more than the batch has: online filtering has dropped some
    timer.started -= 10
    batch = DataProto.from_dict({"attention_mask": torch.ones(4, 5), "response_mask": torch.ones(4, 2)})
    found = timer.metrics(batch, ranks=2)
    assert found["perf/gen_tokens_per_s"] == 50
    assert found["perf/throughput"] == pytest.approx(4 * 5 / 10 / 2, rel=0.05)
