"""Asks Ray for the places of the ranks, and says what it waits for while the cluster is too small.

Whether the ranks have GPUs is the cluster's to say: the driver's machine, a head node for example, may have none.
"""

import logging
import os
import time

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from ..utils.errors import ConfigError

logger = logging.getLogger(__name__)

PATIENCE_S = 300
REPORT_EVERY_S = 10


def no_gpus_wanted() -> bool:
    """Whether the user asks for a run on CPUs: CUDA's own way, an empty CUDA_VISIBLE_DEVICES, or -1."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")


def cluster_has_gpus(nnodes: int) -> bool:
    """Whether a run's ranks get GPUs: some machine of the cluster has one. Needs Ray up.

    While fewer than ``nnodes`` machines have joined, those with GPUs may still be on their way; ``place_ranks`` gives
    up on them where this does.
    """
    if no_gpus_wanted():
        return False
    end = time.monotonic() + PATIENCE_S
    while not (gpus := ray.cluster_resources().get("GPU", 0.0)) and time.monotonic() < end:
        joined = sum(node["Alive"] for node in ray.nodes())
        if joined >= nnodes:
            break
        logger.info("waiting for %d machine(s); %d have joined, none of them with a GPU", nnodes, joined)
        time.sleep(REPORT_EVERY_S)
    return gpus > 0


def place_ranks(nnodes: int, ranks_per_node: int, *, with_gpus: bool) -> PlacementGroup:
    """A placement group with one bundle a machine, each on a machine of its own, with room for its ranks.

    Raises:
        ConfigError: the cluster still lacks the resources after five minutes.
    """
    bundle = {"CPU": float(ranks_per_node)} | ({"GPU": float(ranks_per_node)} if with_gpus else {})
    group = placement_group([bundle] * nnodes, strategy="STRICT_SPREAD")
    started = time.monotonic()
    while not group.wait(REPORT_EVERY_S):
        message = (
            f"waiting for {nnodes} machine(s) with {bundle} each; Ray has "
            f"{_sum(ray.cluster_resources())} in all, {_sum(ray.available_resources())} free"
        )
        if time.monotonic() - started > PATIENCE_S:
            remove_placement_group(group)
            raise ConfigError(
                f"trainer.nnodes={nnodes}, trainer.n_gpus_per_node={ranks_per_node}: gave up {message}; "
                "start Ray on more machines (ray start --address=...) or ask for fewer ranks"
            )
        logger.info("%s", message)
    return group


def _sum(resources: dict[str, float]) -> dict[str, float]:
    return {name: resources.get(name, 0.0) for name in ("CPU", "GPU")}
