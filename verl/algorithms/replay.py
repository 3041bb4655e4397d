"""Hard-case replay: prompts that went badly early in training come back later, with importance weights.

After ReRULE (arXiv 2606.15333): easy prompts converge soon and then teach nothing, while hard ones near the boundary
between forget and retain keep failing and are thrown away after one use. Stage one (steps up to `collect_steps`) stores
whole groups of samples whose mean reward is low. Stage two adds stored groups to every on-policy batch. The abstract
fixes this much; what follows is our reading of it:

- A group whose samples all earned the same is not stored: its group-relative advantages are zero, replay is idle work.
- A full buffer keeps the hardest groups (lowest mean reward, the later one among equals).
- Advantages are those of the collecting step, relative to their own group. Samples are off-policy, so the trainer
  recomputes `old_log_probs` with the present actor and weighs each token by
  `losses.rollout_weights(old_log_probs, rollout_log_probs, response_mask, "token", cap)`; a stored row's
  `rollout_log_probs` are the log-probabilities under the actor that drew it.

Left out: the critic's values, which go stale, so replay is for estimators without one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..protocol import DataProto, object_array

REPLAY_TENSORS = (
    "prompts",
    "responses",
    "input_ids",
    "attention_mask",
    "position_ids",
    "response_mask",
    "rollout_log_probs",
    "ref_log_probs",
    "token_level_scores",
    "advantages",
    "returns",
)
"""What is stored of a row (`ref_log_probs` where there is a reference); see the table in verl.protocol."""


@dataclass
class _Group:
    mean_reward: float
    step: int
    data: DataProto

    @property
    def hardness(self) -> tuple[float, int]:
        return (-self.mean_reward, self.step)


class ReplayBuffer:
    """A bounded store of low-reward groups. All draws follow from `seed` and the step, so a resumed run repeats them.

    Args:
        capacity: groups kept at most.
        collect_steps: last training step (counted from 1) that adds groups; replay starts with the next one.
        ratio: replayed groups for each on-policy group of a batch.
        reward_threshold: a group is hard if its mean reward is at most this.
        seed: of the draws.
    """

    def __init__(self, *, capacity: int, collect_steps: int, ratio: float, reward_threshold: float, seed: int) -> None:
        if capacity < 1 or ratio <= 0:
            raise ValueError(f"capacity={capacity} must be at least 1 and ratio={ratio} greater than 0")
        self.capacity = capacity
        self.collect_steps = collect_steps
        self.ratio = ratio
        self.reward_threshold = reward_threshold
        self.seed = seed
        self._groups: list[_Group] = []

    def __len__(self) -> int:
        """Number of groups stored."""
        return len(self._groups)

    def collect(self, step: int, data: DataProto) -> int:
        """Store the hard groups of a finished batch; returns how many were added. Does nothing after `collect_steps`.

        `data` carries REPLAY_TENSORS and `old_log_probs` (B, T), the log-probabilities under the actor that sampled,
        and `uid`, by which rows are grouped; a group's rewards are the row sums of `token_level_scores`.
        """
        if step > self.collect_steps:
            return 0
        rewards_B = data.batch["token_level_scores"].sum(-1).double()
        rows_of: dict[str, list[int]] = {}
        for row, uid in enumerate(data.non_tensor_batch["uid"]):
            rows_of.setdefault(uid, []).append(row)
        added = []
        for rows in rows_of.values():
            rewards = rewards_B[rows]
            if rewards.mean() <= self.reward_threshold and rewards.max() > rewards.min():
                added.append(_Group(rewards.mean().item(), step, _stored_rows(data, rows)))
        kept = sorted(self._groups + added, key=lambda group: group.hardness, reverse=True)
        self._groups = kept[: self.capacity]
        return sum(any(group is other for other in self._groups) for group in added)

    def sample(self, step: int, on_policy_groups: int) -> DataProto | None:
        """round(ratio * on_policy_groups) stored groups for this step, or None while collecting or when empty.

        Drawn without replacement; a buffer that is too small is gone through again, so that the number of rows, which
        has to divide over the ranks, does not depend on what was collected. Every draw gets a uid of its own.
        """
        wanted = round(self.ratio * on_policy_groups)
        if step <= self.collect_steps or not self._groups or wanted == 0:
            return None
        generator = np.random.default_rng([self.seed, step])
        drawn: list[int] = []
        while len(drawn) < wanted:
            drawn += generator.permutation(len(self._groups)).tolist()
        parts = []
        for draw, number in enumerate(drawn[:wanted]):
            part = self._groups[number].data.select()
            uid = f"{part.non_tensor_batch['uid'][0]}@{step}.{draw}"
            part.non_tensor_batch["uid"] = object_array([uid] * len(part))
            parts.append(part)
        return DataProto.concat(parts)

    def state_dict(self) -> dict[str, Any]:
        """{"tensors": name -> tensor over all stored rows, "json": everything else}; safetensors and JSON hold it."""
        json_part: dict[str, Any] = {
            "groups": [{"mean_reward": g.mean_reward, "step": g.step, "rows": len(g.data)} for g in self._groups]
        }
        if not self._groups:
            return {"tensors": {}, "json": json_part}
        everything = DataProto.concat([group.data for group in self._groups])
        json_part["non_tensors"] = {key: list(value) for key, value in everything.non_tensor_batch.items()}
        return {"tensors": dict(everything.batch.items()), "json": json_part}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the contents by what `state_dict` returned; a smaller capacity keeps the hardest groups."""
        self._groups = []
        entries = state["json"]["groups"]
        if entries:
            everything = DataProto.from_dict(state["tensors"], state["json"]["non_tensors"])
            ends = np.cumsum([entry["rows"] for entry in entries])
            for entry, end in zip(entries, ends, strict=True):
                rows = everything[np.arange(end - entry["rows"], end)]
                self._groups.append(_Group(entry["mean_reward"], entry["step"], rows))
        self._groups = self._groups[: self.capacity]


def _stored_rows(data: DataProto, rows: list[int]) -> DataProto:
    """A copy on the CPU of what replay needs, the sampling actor's log-probabilities in place of the engine's."""
    part = data[rows]
    tensors = {key: part.batch[key].detach().cpu() for key in REPLAY_TENSORS if key in part.batch}
    tensors["rollout_log_probs"] = part.batch["old_log_probs"].detach().cpu()
    return DataProto.from_dict(tensors, part.non_tensor_batch)
