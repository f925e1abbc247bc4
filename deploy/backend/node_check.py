"""Asks every node of a cluster what a run will need of it."""

import secrets
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from deploy.console.versions import versions

T = TypeVar("T")
SECONDS = 120.0
"""A worker that starts on a node must import what it finds there first."""
CARRIED_BYTES = 2**23
"""From the driver's object store to a node's and back; more than Ray puts into its messages."""


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
    carried_seconds: float | None = None
    """What `CARRIED_BYTES` took there and back; None where they did not come back as they were."""


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


def bring(held: list[Any]) -> tuple[float, Any]:
    """On a node: what the driver holds, and the seconds until it was there."""
    import ray

    began = time.monotonic()
    value = ray.get(held[0])
    return time.monotonic() - began, value


def carried_seconds(payload: bytes, sent: Any, there: Any) -> float | None:
    """`sent` is the driver's object, `there` where a task brings it. As `NodeLook` has it.

    Raises:
        RayError: the node does not answer.
    """
    import ray

    options = ray.remote(num_cpus=0, max_retries=0, num_returns=2)(bring).options
    answers: Any = options(scheduling_strategy=there, name="doctor.bring").remote([sent])
    seconds, value = answers
    there_seconds, began = float(ray.get(seconds, timeout=SECONDS)), time.monotonic()
    came = ray.get(value, timeout=SECONDS)
    return there_seconds + time.monotonic() - began if came == payload else None


def check_nodes(folder: Path) -> dict[str, NodeLook | str]:
    """By address and id of every living node: what it says, or why it says nothing; `refusal` also
    where the driver does not see what the node wrote.

    Raises:
        OSError: the driver cannot write into `folder`.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark, nodes = f".varkd-doctor-{secrets.token_hex(8)}", _living()
    names = {node["NodeID"]: f"{mark}-{index}" for index, node in enumerate(nodes)}
    task, found = ray.remote(num_cpus=0, max_retries=0)(look), {}
    sent = ray.put(payload := secrets.token_bytes(CARRIED_BYTES))
    try:
        (folder / mark).write_text(mark)
        asked = {}
        for node, own in names.items():
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            options = task.options(scheduling_strategy=there, name="doctor.look")
            asked[node] = options.remote(str(folder), mark, own), there
        for node in nodes:
            name = _name(node)
            answering, there = asked[node["NodeID"]]
            try:
                answer: NodeLook = ray.get(answering, timeout=SECONDS)
                took = carried_seconds(payload, sent, there)
            except RayError as error:
                found[name] = str(error).strip().splitlines()[-1]
                continue
            if not (folder / names[node["NodeID"]]).exists():
                answer = _unseen(answer)
            found[name] = replace(answer, carried_seconds=took)
    finally:
        for left in (mark, *names.values()):
            (folder / left).unlink(missing_ok=True)
    return found


def ask_others(question: Callable[[], T], seconds: float = SECONDS) -> dict[str, T | str]:
    """What `question`, a function of a module that all nodes have, gives on every living node but
    the driver's, with all GPUs of it; or why there is no answer in `seconds`."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own, task, asked = ray.get_runtime_context().get_node_id(), ray.remote(max_retries=0), {}
    for node in _living():
        if node["NodeID"] != own:
            gpus = node["Resources"].get("GPU", 0)
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            options = {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": there}
            answer = task(question).options(**options, name="doctor.ask").remote()
            asked[_name(node)] = answer, gpus
    found, deadline = {}, time.monotonic() + seconds
    for name, (answer, gpus) in asked.items():
        try:
            found[name] = ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
        except GetTimeoutError:
            ray.cancel(answer, force=True)
            of_it = f" with all of its {gpus:g} GPUs, of which others may hold some" * bool(gpus)
            found[name] = f"nothing was calculated there in {seconds:g} s{of_it}"
        except RayError as error:
            found[name] = str(error).strip().splitlines()[-1]
    return found


def _living() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerAddress']} {node['NodeID'][:6]}"


def _unseen(answer: NodeLook) -> NodeLook:
    refusal = answer.refusal or "it wrote a file that the driver does not see"
    return replace(answer, refusal=refusal)
