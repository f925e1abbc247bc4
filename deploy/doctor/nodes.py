"""A cluster: every node has the same software and shares the run folder."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from deploy.backend.node_check import check_nodes
from deploy.backend.session import cluster
from deploy.config import RunConfig
from deploy.console.versions import versions
from deploy.doctor.finding import Finding, judged
from deploy.doctor.machine import GB, existing

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
            wrong = answer.refusal or ("" if answer.sees else "it does not see the driver's files")
            said = f"{answer.host}: {'; '.join([*other, wrong] if wrong else other)}"
            if not other and not wrong:
                free = answer.free_bytes / GB
                said = f"{answer.host}: same software, shares {folder}, {free:.1f} GB free"
            advice = "mount one folder on all nodes for --out, and install the same packages"
            yield judged(f"node {name}", said, advice, fails=bool(other or wrong))
