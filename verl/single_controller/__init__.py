"""One driver, many ranks: worker processes on Ray, and how a batch is shared out among them."""

from .placement import cluster_has_gpus
from .worker_group import WorkerGroup

__all__ = ["WorkerGroup", "cluster_has_gpus"]
