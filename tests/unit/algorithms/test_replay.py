"""Hard-case replay: what is stored, what comes back and when, and that a resumed run draws the same."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from verl.algorithms.losses import rollout_weights
from verl.algorithms.replay import ReplayBuffer
from verl.protocol import DataProto

T = 3


def batch(groups: dict[str, list[float]], step: int = 1) -> DataProto:
    """One row a reward; rows of the groups interleaved, as after balancing over ranks."""
    rows = [(uid, n, reward) for uid, rewards in groups.items() for n, reward in enumerate(rewards)]
    rows.sort(key=lambda row: row[1])
    scores = torch.zeros(len(rows), T)
    scores[:, -1] = torch.tensor([reward for _, _, reward in rows])
    return DataProto.from_dict(
        {
            "responses": torch.arange(len(rows) * T).view(-1, T),
            "response_mask": torch.ones(len(rows), T, dtype=torch.long),
            "token_level_scores": scores,
            "advantages": scores - 0.5,
            "old_log_probs": torch.full((len(rows), T), -float(step)),
            "rollout_log_probs": torch.full((len(rows), T), -99.0),
            "values": torch.zeros(len(rows), T),
        },
        {"uid": [uid for uid, _, _ in rows], "prompt": [f"prompt of {uid}" for uid, _, _ in rows]},
    )


def buffer(**changes) -> ReplayBuffer:
    return ReplayBuffer(
        **{"capacity": 8, "collect_steps": 5, "ratio": 0.5, "reward_threshold": 0.5, "seed": 1} | changes
    )


def prompts(data: DataProto | None) -> list[str]:
    return [] if data is None else sorted(set(data.non_tensor_batch["prompt"].tolist()))


def test_only_hard_groups_with_something_to_learn_are_stored():
    replay = buffer()
    added = replay.collect(
        1, batch({"easy": [1.0, 0.9], "hard": [0.0, 0.6], "hopeless": [0.0, 0.0], "edge": [0.0, 1.0]})
    )
    assert added == len(replay) == 2
    drawn = replay.sample(6, on_policy_groups=8)
    assert prompts(drawn) == ["prompt of edge", "prompt of hard"]


def test_groups_come_back_whole_and_with_the_sampling_actors_log_probs():
    replay = buffer()
    data = batch({"easy": [1.0, 0.9, 0.8], "hard": [0.0, 0.6, 0.3]}, step=2)
    replay.collect(2, data)
    drawn = replay.sample(6, on_policy_groups=2)
    rows = [row for row, uid in enumerate(data.non_tensor_batch["uid"]) if uid == "hard"]
    assert torch.equal(drawn.batch["responses"], data.batch["responses"][rows])
    assert torch.equal(drawn.batch["advantages"], data.batch["advantages"][rows])
    assert (drawn.batch["rollout_log_probs"] == -2.0).all(), "of the actor that sampled, not of its engine"
    assert not {"old_log_probs", "values"} & set(drawn.batch.keys()), "stale ones do not come back"
    old = torch.full((3, T), -2.0 + 0.5)  # the present actor likes these tokens better
    weights = rollout_weights(old, drawn.batch["rollout_log_probs"], drawn.batch["response_mask"], "token", cap=1.2)
    assert torch.allclose(weights, torch.full((3, T), 1.2))


def test_stages():
    replay = buffer(collect_steps=2)
    assert replay.collect(1, batch({"a": [0.0, 0.5]})) == 1
    assert replay.sample(1, 4) is None, "no replay while collecting"
    assert replay.collect(2, batch({"b": [0.0, 0.5]})) == 1
    assert replay.sample(2, 4) is None
    assert replay.collect(3, batch({"c": [0.0, 0.5]})) == 0, "no collecting afterwards"
    assert prompts(replay.sample(3, 4)) == ["prompt of a", "prompt of b"]
    assert buffer().sample(9, 4) is None, "an empty buffer has nothing to give"
    assert buffer(ratio=0.1).sample(9, 4) is None


def test_a_full_buffer_keeps_the_hardest():
    replay = buffer(capacity=2)
    assert replay.collect(1, batch({"mean30": [0.0, 0.6], "mean10": [0.0, 0.2], "mean20": [0.0, 0.4]})) == 2
    assert replay.collect(2, batch({"mean15": [0.0, 0.3], "mean40": [0.0, 0.8]})) == 1
    assert prompts(replay.sample(6, 4)) == ["prompt of mean10", "prompt of mean15"]
    replay.collect(3, batch({"also10": [0.0, 0.2]}))
    assert prompts(replay.sample(6, 4)) == ["prompt of also10", "prompt of mean10"]


def test_number_of_rows_depends_on_the_ratio_only():
    full = buffer(ratio=0.5)
    full.collect(1, batch({f"g{i}": [0.0, 0.1 * i] for i in range(1, 8)}))
    single = buffer(ratio=0.5)
    single.collect(1, batch({"only": [0.0, 0.4]}))
    for groups in (2, 4, 12):
        assert len(full.sample(6, groups)) == len(single.sample(6, groups)) == groups // 2 * 2
    uids = single.sample(6, 12).non_tensor_batch["uid"].tolist()
    assert [uids.count(uid) for uid in uids] == [2] * 12, "each draw is a group of its own"
    assert not set(uids) & {"only"}, "and never merges with the same prompt's fresh samples"
    assert len(prompts(full.sample(6, 12))) == 6, "without replacement while the buffer is large enough"


def test_draws_follow_from_seed_and_step():
    def drawn(seed: int, step: int) -> list[str]:
        replay = buffer(seed=seed)
        replay.collect(1, batch({f"g{i}": [0.0, 0.1 * i] for i in range(1, 9)}))
        replay.sample(7, 8)  # an earlier draw must not matter
        return replay.sample(step, 4).non_tensor_batch["prompt"].tolist()

    assert drawn(1, 9) == drawn(1, 9)
    assert len({tuple(drawn(seed, step)) for seed in (1, 2) for step in range(6, 12)}) > 6


@pytest.mark.parametrize("filled", [True, False])
def test_state_survives_safetensors_and_json(tmp_path, filled):
    replay = buffer()
    if filled:
        replay.collect(1, batch({"a": [0.0, 0.2, 0.1], "b": [0.0, 0.4, 0.1]}))
        replay.collect(2, batch({"c": [0.0, 0.3, 0.1]}, step=2))
    state = replay.state_dict()
    save_file(state["tensors"], tmp_path / "replay.safetensors")
    (tmp_path / "replay.json").write_text(json.dumps(state["json"]))

    resumed = buffer()
    resumed.collect(1, batch({"overwritten": [0.0, 0.1]}))
    resumed.load_state_dict(
        {
            "tensors": load_file(tmp_path / "replay.safetensors"),
            "json": json.loads((tmp_path / "replay.json").read_text()),
        }
    )
    assert len(resumed) == len(replay) == (3 if filled else 0)
    for other in (replay, resumed):  # going on from the state is going on from the original
        other.collect(3, batch({"d": [0.0, 0.1, 0.0]}, step=3))
    one, two = replay.sample(6, 6), resumed.sample(6, 6)
    assert {k: v.tolist() for k, v in one.non_tensor_batch.items()} == {
        k: v.tolist() for k, v in two.non_tensor_batch.items()
    }
    assert all(torch.equal(tensor, two.batch[key]) for key, tensor in one.batch.items())

    small = buffer(capacity=1)
    small.load_state_dict(resumed.state_dict())
    assert prompts(small.sample(6, 4)) == ["prompt of d"]


def test_settings_are_checked():
    with pytest.raises(ValueError, match="capacity=0"):
        buffer(capacity=0)
    with pytest.raises(ValueError, match="ratio=0"):
        buffer(ratio=0)
