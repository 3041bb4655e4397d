"""The processes that score on the CPU: samples go to them once they are drawn, scores are waited for when needed.

What is scored how is ``function``'s; what a failure means for the run is the trainer's.
"""

from dataclasses import dataclass

import ray

from ...config.worker import RewardConfig
from ...utils.errors import DataError
from .function import RewardError, RewardInput, RewardScore, RewardWorker, checked_scores, load_reward_function


@dataclass(frozen=True)
class Scoring:
    """Samples that are being scored, part by part."""

    inputs: list[RewardInput]
    parts: list[ray.ObjectRef]

    def wait(self) -> list[RewardScore]:
        """The scores of all samples, in order.

        Raises:
            RewardError, DataError: as ``RewardWorker.score``; of several parts' errors the first part's.
            ray.exceptions.RayActorError: a process died.
        """
        try:
            scores = [score for part in self.parts for score in ray.get(part)]
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RewardError | DataError):
                raise error.cause from error
            name = type(error.cause).__name__
            raise RewardError(f"the reward function raised {name}: {error.cause}") from error
        return checked_scores(scores, self.inputs) if len(self.parts) > 1 else scores


class RewardProcesses:
    """``num_cpus`` processes that share the samples of a sequential function; one for a function of whole batches."""

    def __init__(self, config: RewardConfig) -> None:
        count = config.num_cpus if load_reward_function(config)[1] == "sequential" else 1
        process = ray.remote(num_cpus=config.num_cpus // count)(RewardWorker)
        self.processes = [process.remote(config) for _ in range(count)]

    def start(self, inputs: list[RewardInput]) -> Scoring:
        """Begin to score; batches are scored in the order in which they come."""
        size = max(1, -(-len(inputs) // len(self.processes)))
        shares = [inputs[start : start + size] for start in range(0, len(inputs), size)] or [[]]
        calls = [process.score.remote(share) for process, share in zip(self.processes, shares, strict=False)]
        return Scoring(inputs, calls)
