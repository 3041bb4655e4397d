"""The ranks as the driver sees them: call a method on all, or share a batch out and put the answers together."""

from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..protocol import DataProto
from .placement import place_ranks

NEWS_OF_A_DEATH_S = 5.0
"""how long a rank's failure waits for the news that another one died"""


class WorkerError(RuntimeError):
    """A rank raised or died."""


class RankDied(WorkerError):
    """A rank's process is gone."""


class WorkerGroup:
    """``world_size`` processes of one worker class, in a process group.

    Args:
        worker_class: takes (config, rank, *arguments) and has ``address`` and ``connect`` as FSDPWorker does.
    """

    def __init__(
        self, worker_class: type, *arguments: Any, nnodes: int, ranks_per_node: int, with_gpus: bool, config: Any
    ) -> None:
        self.group = place_ranks(nnodes, ranks_per_node, with_gpus=with_gpus)
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1 if with_gpus else 0, "max_concurrency": 1}
        if not with_gpus and ray.cluster_resources().get("GPU"):
            # Ray shows a process that has asked for no GPU all of them.
            options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        remote = ray.remote(**options)(worker_class)
        self.workers = [
            remote.options(
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self.group, placement_group_bundle_index=rank // ranks_per_node
                )
            ).remote(config, rank, *arguments)
            for rank in range(nnodes * ranks_per_node)
        ]
        self.all("connect", self._get([self.workers[0].address.remote()], "address")[0])

    @property
    def world_size(self) -> int:
        return len(self.workers)

    def all(self, method: str, *arguments: Any) -> list[Any]:
        """The method's result on every rank, by rank."""
        return self._get([getattr(worker, method).remote(*arguments) for worker in self.workers], method)

    def split(self, method: str, data: DataProto, ranks_per_share: int = 1) -> list[Any]:
        """Share the rows out in order, equally, and return the shares' results in order.

        Args:
            ranks_per_share: neighbouring ranks that work on the same share (tensor parallelism); the first one answers.
        """
        shares = data.chunk(self.world_size // ranks_per_share)
        references = [ray.put(share) for share in shares]
        calls = [
            getattr(worker, method).remote(references[rank // ranks_per_share])
            for rank, worker in enumerate(self.workers)
        ]
        return self._get(calls, method)[::ranks_per_share]

    def _get(self, calls: list[ray.ObjectRef], method: str) -> list[Any]:
        """All results; the first rank that fails ends the wait for the others, which may hang in a collective."""
        pending = list(calls)
        while pending:
            [call], pending = ray.wait(pending, num_returns=1)
            if failure := _failure(call, calls.index(call), method):
                # A rank that dies breaks the collectives of the others, whose complaints may arrive before the news.
                wait_s = 0 if isinstance(failure, RankDied) else NEWS_OF_A_DEATH_S
                others = ray.wait(pending, num_returns=len(pending), timeout=wait_s)[0] if pending else []
                failures = [_failure(other, calls.index(other), method) for other in others]
                raise next((other for other in failures if isinstance(other, RankDied)), failure)
        return ray.get(calls)

    def shutdown(self) -> None:
        """End the processes at once, and give their place back."""
        for worker in self.workers:
            ray.kill(worker)  # Asked to leave, a rank takes its libraries down first: ten seconds on busy cores.
        ray.util.remove_placement_group(self.group)


def _failure(call: ray.ObjectRef, rank: int, method: str) -> WorkerError | None:
    """What went wrong in a call that has ended."""
    try:
        ray.get(call)
        return None
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(getattr(error, "cause", None), BaseException) else error
        failure = WorkerError(f"rank {rank} failed in {method}: {type(cause).__name__}: {cause}")
        failure.__cause__ = error
    except ray.exceptions.RayActorError as error:
        failure = RankDied(f"rank {rank} died in {method}: {error}")
        failure.__cause__ = error
    return failure
