"""Asks Ray for the places of the ranks, and says what it waits for while the cluster is too small."""

import logging
import time

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from ..utils.errors import ConfigError

logger = logging.getLogger(__name__)

PATIENCE_S = 300
REPORT_EVERY_S = 10


def place_ranks(nnodes: int, ranks_per_node: int, *, with_gpus: bool) -> list[PlacementGroup]:
    """One placement group a machine, with one bundle a rank.

    Raises:
        ConfigError: the cluster still lacks the resources after five minutes, or this machine alone never has them.
    """
    bundle = {"CPU": 1.0} | ({"GPU": 1.0} if with_gpus else {})
    groups = [placement_group([bundle] * ranks_per_node, strategy="STRICT_PACK") for _ in range(nnodes)]
    pending, started = list(groups), time.monotonic()
    while pending:
        done, _ = ray.wait([group.ready() for group in pending], num_returns=len(pending), timeout=REPORT_EVERY_S)
        if len(done) == len(pending):
            break
        message = (
            f"waiting for {nnodes} machine(s) with {ranks_per_node} x {bundle} each; Ray has "
            f"{_sum(ray.cluster_resources())} in all, {_sum(ray.available_resources())} free"
        )
        if time.monotonic() - started > PATIENCE_S:
            for group in groups:
                remove_placement_group(group)
            raise ConfigError(
                f"trainer.nnodes={nnodes}, trainer.n_gpus_per_node={ranks_per_node}: gave up {message}; "
                "start Ray on more machines (ray start --address=...) or ask for fewer ranks"
            )
        logger.info("%s", message)
    return groups


def _sum(resources: dict[str, float]) -> dict[str, float]:
    return {name: resources.get(name, 0.0) for name in ("CPU", "GPU")}
