"""The address of the Ray cluster that a run joins: which one is meant, whether it is well formed, and who answers.

Ray by itself tries for ten minutes to reach a cluster that is gone, and where it looks for one it also takes the
private Ray of another run. This needs no Ray.
"""

import re
import socket
from pathlib import Path

from .environment import variable
from .errors import ConfigError

LOCAL, AUTO = "local", "auto"
PATIENCE_S = 5.0
HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})")
QUICKLY = {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_py_gcs_connect_timeout_s": "5"}
"""environment variables with which Ray gives up on a cluster within half a minute; read when it is imported"""


def ray_address(nnodes: int) -> str:
    """``local``, this machine alone, on which the run starts Ray; ``auto``, this machine's cluster; or HOST:PORT."""
    return variable("RAY_ADDRESS") or (AUTO if nnodes > 1 else LOCAL)


def address_problems(nnodes: int) -> list[str]:
    """What is wrong with the form of the address."""
    address, key = ray_address(nnodes), _key(nnodes)
    if address == LOCAL and nnodes > 1:
        return [f"{key}: is this machine alone, and trainer.nnodes={nnodes}; unset it, or give HOST:PORT of a cluster"]
    if address in (LOCAL, AUTO):
        return []
    match = HOST_AND_PORT.fullmatch(address)
    if match and 0 < int(match[2]) < 2**16:
        return []
    if "://" in address:
        return [
            f"{key}: is an address for clients and jobs, and the driver must run on a machine of the cluster; give "
            "HOST:PORT of its head, as ray start prints it (HOST:6379), or auto"
        ]
    return [f"{key}: must be HOST:PORT of a cluster's head (HOST:6379), auto, or local; correct or unset it"]


def reachable(nnodes: int) -> str:
    """The address for ``ray.init``, once it is known that something answers there.

    Raises:
        ConfigError: no cluster was started on this machine (``auto``), or nothing answers.
    """
    given = address = ray_address(nnodes)
    key = _key(nnodes)
    if address == AUTO:
        address = _cluster_of_this_machine()
        if not HOST_AND_PORT.fullmatch(address):
            raise ConfigError(
                f"{key}: no cluster was started on this machine; run ray start on every machine before, give "
                "RAY_ADDRESS=HOST:PORT of the cluster's head, or set RAY_ADDRESS=local to train on this machine alone"
            )
    if address == LOCAL:
        return address
    host, port = HOST_AND_PORT.fullmatch(address).groups()
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_S).close()
    except OSError as error:
        raise ConfigError(unreachable(nnodes, f"nothing answers at {address} ({error})")) from error
    return given  # with auto Ray also finds the token that the cluster may ask for


def unreachable(nnodes: int, reason: str) -> str:
    """The message that the cluster cannot be joined."""
    return (
        f"{_key(nnodes)}: {reason}; is the cluster gone? Start it again (ray start), correct the address, or "
        "unset RAY_ADDRESS, with trainer.nnodes=1, to train on this machine alone"
    )


def _key(nnodes: int) -> str:
    given = variable("RAY_ADDRESS")
    return f"RAY_ADDRESS={given}" if given else f"trainer.nnodes={nnodes}"


def _cluster_of_this_machine() -> str:
    """What ``ray start`` has noted where Ray keeps its files; empty: nothing."""
    folder = variable("RAY_TMPDIR") or variable("TMPDIR") or "/tmp"
    try:
        return (Path(folder) / "ray" / "ray_current_cluster").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
