"""A cluster: every node has the same software, shares the run folder and calculates rightly."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from deploy.backend.node_check import CARRIED_BYTES, NodeLook, ask_others, check_nodes
from deploy.backend.session import cluster
from deploy.config import RunConfig
from deploy.console.versions import versions
from deploy.doctor.arithmetic import arithmetic
from deploy.doctor.collectives import collectives
from deploy.doctor.finding import Finding, examined, judged
from deploy.doctor.machine import GB, devices, existing

MB = 2**20
ALIKE = ("python", "varkd", "torch", "ray", "pyarrow")
"""Versions that must not differ between nodes."""


def nodes(config: RunConfig, root: Path, target: Console) -> Iterator[Finding]:
    """Joins the cluster that RAY_ADDRESS names, or starts one here, and asks each node; the
    driver's has been examined by itself.

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
        if config.rollout.weights_folder is not None:
            yield from _sharing(config.rollout.weights_folder)
        for name, answer in ask_others(calculation).items():
            if isinstance(answer, str):
                advice = "ask again while nobody is at work there: run `varkd doctor` on it"
                yield Finding(f"node {name}", "warn", answer, advice)
            else:
                yield from condensed(f"node {name}", answer)


def _sharing(folder: Path) -> Iterator[Finding]:
    """Whether all nodes see and write what versions travel through."""
    for name, answer in check_nodes(folder).items():
        wrong = [answer] if isinstance(answer, str) else _wrong(answer)
        said = f"rollout.weights_folder: {'; '.join(wrong) or f'shares {folder}'}"
        advice = "mount one folder on all nodes, where all may write"
        yield judged(f"node {name}", said, advice, fails=bool(wrong))


def calculation() -> list[Finding]:
    """On a node: its devices, whether they calculate as float32 does, and sums over ranks."""
    checks = {"device": devices, "arithmetic": arithmetic, "collectives": collectives}
    return [finding for name, check in checks.items() for finding in examined(name, check)]


def condensed(node: str, found: list[Finding]) -> Iterator[Finding]:
    """A line for what is well there, and one for each finding that is not."""
    well = [one for one in found if one.state == "ok"]
    devices = [one.said for one in well if one.name.startswith(("device", "precision"))]
    others = [one.name for one in well if not one.name.startswith(("device", "precision"))]
    said = f"{'; '.join(devices)}; as they should be: {', '.join(others) or 'none'}"
    yield Finding(node, "ok", said)
    for one in found:
        if one.state != "ok":
            yield Finding(node, one.state, f"{one.name}: {one.said}", one.advice)


def _wrong(answer: NodeLook) -> list[str]:
    found = [answer.refusal] if answer.refusal else []
    if not found and not answer.sees:
        found.append("it does not see the driver's files")
    if answer.carried_seconds is None:
        found.append("what went through its object store came back as something else")
    return found
