"""Asks every node of a cluster what a run will need of it."""

import secrets
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from deploy.console.versions import versions

SECONDS = 120.0
"""A worker that starts on a node must import what it finds there first."""


@dataclass(frozen=True, slots=True)
class NodeLook:
    """What a node says."""

    host: str
    versions: dict[str, str]
    sees: bool
    """It found in the shared folder what the driver wrote."""
    refusal: str
    """Why it cannot write there; empty where it can."""
    free_bytes: int
    """Of the disk of the shared folder, as it sees it."""


def look(folder: str, mark: str, own: str) -> NodeLook:
    """On a node: read the driver's mark in `folder`, leave another one under the name `own`."""
    root, refusal, free = Path(folder), "", 0
    try:
        free = shutil.disk_usage(root).free
        (root / own).write_text(own)
    except OSError as error:
        refusal = error.strerror or str(error)
    sees = (root / mark).exists()
    return NodeLook(socket.gethostname(), versions(), sees, refusal, free)


def check_nodes(folder: Path) -> dict[str, NodeLook | str]:
    """By address and id of every living node: what it says, or why it says nothing; `refusal` also
    where the driver does not see what the node wrote.

    Raises:
        OSError: the driver cannot write into `folder`.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = f".varkd-doctor-{secrets.token_hex(8)}"
    nodes = [node for node in ray.nodes() if node["Alive"]]
    names = {node["NodeID"]: f"{mark}-{index}" for index, node in enumerate(nodes)}
    task, found = ray.remote(num_cpus=0, max_retries=0)(look), {}
    try:
        (folder / mark).write_text(mark)
        asked = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            options = task.options(scheduling_strategy=there, name="doctor.look")
            asked[node["NodeID"]] = options.remote(str(folder), mark, names[node["NodeID"]])
        for node in nodes:
            name = f"{node['NodeManagerAddress']} {node['NodeID'][:6]}"
            try:
                answer: NodeLook | str = ray.get(asked[node["NodeID"]], timeout=SECONDS)
            except RayError as error:
                answer = str(error).strip().splitlines()[-1]
            if isinstance(answer, NodeLook) and not (folder / names[node["NodeID"]]).exists():
                answer = _unseen(answer)
            found[name] = answer
    finally:
        for left in (mark, *names.values()):
            (folder / left).unlink(missing_ok=True)
    return found


def _unseen(answer: NodeLook) -> NodeLook:
    refusal = answer.refusal or "it wrote a file that the driver does not see"
    return NodeLook(answer.host, answer.versions, answer.sees, refusal, answer.free_bytes)
