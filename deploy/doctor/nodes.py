"""A cluster: every node has the same software and shares the run folder."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from deploy.backend.node_check import CARRIED_BYTES, NodeLook, check_nodes
from deploy.backend.session import cluster
from deploy.config import RunConfig
from deploy.console.versions import versions
from deploy.doctor.finding import Finding, judged
from deploy.doctor.machine import GB, existing

MB = 2**20
ALIKE = ("python", "varkd", "torch", "ray", "pyarrow")
"""Versions that must not differ between nodes."""


def nodes(config: RunConfig, root: Path, target: Console) -> Iterator[Finding]:
    """Joins the cluster that RAY_ADDRESS names, or starts one here, and asks each node.

    Raises:
        InputError, RunFailed: there is none that can be joined, or none starts.
    """
    folder, ours = existing(root), versions()
    with cluster(config, told=target):
        for name, answer in check_nodes(folder).items():
            if isinstance(answer, str):
                yield Finding(f"node {name}", "FAIL", f"does not answer: {answer}", "restart it")
                continue
            other = [
                f"{package} {answer.versions.get(package)} instead of {ours[package]}"
                for package in ALIKE
                if answer.versions.get(package) != ours[package]
            ]
            wrong = _wrong(answer)
            said = f"{answer.host}: {'; '.join([*other, *wrong])}"
            if not other and not wrong:
                free, carried = answer.free_bytes / GB, answer.carried_seconds or 0.0
                said = (
                    f"{answer.host}: same software, shares {folder}, {free:.1f} GB free; "
                    f"{CARRIED_BYTES / MB:.0f} MB through the object stores and back in "
                    f"{carried:.2g} s"
                )
            advice = "mount one folder on all nodes for --out, and install the same packages"
            yield judged(f"node {name}", said, advice, fails=bool(other or wrong))


def _wrong(answer: NodeLook) -> list[str]:
    found = [answer.refusal] if answer.refusal else []
    if not found and not answer.sees:
        found.append("it does not see the driver's files")
    if answer.carried_seconds is None:
        found.append("what went through its object store came back as something else")
    return found
