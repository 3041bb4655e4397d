"""The smallest reward function: one sample at a time, 1 if the response is the ground truth, or one of several."""

from typing import Any

REWARD_NAME = "exact_match"
REWARD_TYPE = "sequential"


def compute_score(reward_input: dict[str, Any]) -> dict[str, float]:
    """``overall`` is 1 where response and ground truth agree up to case and surrounding blanks, else 0."""
    truth = reward_input["ground_truth"]
    answers = [str(one).strip().lower() for one in (truth if isinstance(truth, list) else [truth])]
    return {"overall": float(reward_input["response"].strip().lower() in answers)}
