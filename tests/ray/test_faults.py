"""The table of docs/faults.md: real runs that are hit by one fault each, on a private cluster and
on one of several nodes.

Half an hour of runs, so only `pytest -m long` hits them (`-k "SIGKILL and ledger"` for one). Some
of the same in seconds, for every change: test_deaths.py, test_silence.py, test_two_nodes.py.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from building.waiting import until

from benchmarks.on_ray import simulated_nodes
from benchmarks.processes import end_all, new_mark
from benchmarks.start_up import prepare
from benchmarks.struck import (
    LEFT_SECONDS,
    PATIENCE_SECONDS,
    STEPS,
    Cluster,
    Command,
    Struck,
    strike,
    student,
)
from deploy.backend.private_cluster import PARENT, PREFIX

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Ending:
    """How a run is to end."""

    seconds: float = PATIENCE_SECONDS
    """At most, from the fault on: a multiple of what is measured on a quiet machine."""
    code: int = 0
    said: str = ""
    """What its last line has in it."""


GOES_ON = Ending()
LOST = "go on from the newest snapshot with --resume$"
PRIVATE = {
    **dict.fromkeys(("SIGKILL worker", "SIGSTOP worker"), GOES_ON),
    **dict.fromkeys(("SIGKILL all workers", "SIGSTOP all workers"), GOES_ON),
    **dict.fromkeys(("SIGKILL teacher", "SIGSTOP teacher"), GOES_ON),
    **dict.fromkeys(("SIGKILL metrics", "SIGSTOP metrics"), GOES_ON),
    **dict.fromkeys(("SIGKILL learner", "SIGSTOP learner"), GOES_ON),
    **{
        f"SIGKILL {name}": Ending(10, 1, f"the process of {name} died: .*{LOST}")
        for name in ("buffer", "ledger", "weights")
    },
    **{
        f"SIGSTOP {name}": Ending(20, 1, f"{name} has not answered for .*{LOST}")
        for name in ("buffer", "ledger", "weights")
    },
    "SIGKILL controller": Ending(10, 1, rf"controller \(Ray Train\) died: .*{LOST}"),
    "SIGSTOP controller": Ending(80, 1, f"the learner did not end its step .*{LOST}"),
    "SIGKILL raylet": Ending(40, 1, f"the private cluster's raylet died .*{LOST}"),
    "SIGSTOP raylet": Ending(50, 1, f"the private cluster's raylet has been stopped .*{LOST}"),
    "SIGKILL gcs": Ending(40, 1, f"the private cluster's gcs_server died .*{LOST}"),
    "SIGSTOP gcs": Ending(50, 1, f"the private cluster's gcs_server has been stopped .*{LOST}"),
    "SIGKILL driver": Ending(2, -9),
    "SLOW worker": GOES_ON,
    "GONE folder": Ending(10, 2, "run0"),
    "READ-ONLY folder": Ending(20, 2, "Read-only file system"),
}
SEVERAL_NODES = {
    "SIGKILL worker": GOES_ON,
    "SIGKILL learner": GOES_ON,
    "SIGKILL node of worker": GOES_ON,
    "SIGKILL node of learner": GOES_ON,
    "SIGSTOP node of worker": GOES_ON,
    "SIGSTOP node of learner": GOES_ON,
    "SIGKILL driver": Ending(2, -9),
    # The head's, on which the driver and the services are:
    "SIGKILL node of buffer": Ending(40, 1, LOST),
    "SIGSTOP node of buffer": Ending(80, 1, LOST),
    "SIGKILL gcs": Ending(80, 1, LOST),
    "SIGSTOP gcs": Ending(80, 1, LOST),
}
CPUS = (0, 4, 4)
"""Of the head and two nodes, of which one has room for the whole run."""
IS_FATAL = re.compile("gcs|node of buffer")
"""To a cluster, which nobody joins again."""
IS_REPLACED = re.compile(r"SIG\w+ (?:all |node of (?!worker))?(teacher|learner|worker)")
"""While the run goes on, which then says how long that took."""
LEAVES_PROCESSES = re.compile("gcs|SIGSTOP node|node of buffer")
"""Stopped ones cannot end, and those of a cluster without a GCS hear of nothing before their
raylets miss it, in a minute."""


@dataclass(frozen=True)
class Made:
    """What the runs begin with, and one that nobody hit."""

    root: Path
    source: Path
    whole: Path


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    with tempfile.TemporaryDirectory(prefix="varkd-", dir="/var/tmp") as root:  # see ON_SMALL_DISK
        found = Made(Path(root), prepare(Path(root, "source")), Path(root, "whole"))
        assert Command(found.source, found.whole).wait() == "0"
        yield found


@pytest.fixture
def nodes(monkeypatch) -> Iterator[Cluster]:
    """A cluster of several nodes, with Ray's own patience."""
    for name in ("period_ms", "failure_threshold"):
        monkeypatch.delenv(f"RAY_health_check_{name}", raising=False)
    monkeypatch.setenv(*(mark := new_mark()).split("="))
    with simulated_nodes(CPUS) as address:
        yield Cluster(address, mark)
    end_all(mark)


def require(found: Struck, wanted: Ending, *, leaves_processes: bool = False) -> None:
    """It ended in time and with its cause, left nothing, and trained what a run trains that nobody
    hits."""
    assert found.hit
    assert found.exit == str(wanted.code), found
    assert found.seconds <= wanted.seconds, found
    assert re.search(wanted.said, found.said), found
    assert leaves_processes or found.left == [], found
    assert found.shared == [], found
    assert found.went_on or found.resumed == "0" or found.fault.endswith(" metrics"), found
    assert found.same_student, found
    assert found.trained == {"step": STEPS, "frontier": 2 * STEPS, "beyond": []}, found
    if role := IS_REPLACED.match(found.fault):
        assert [name for name in found.recovered if name.startswith(role[1])], found
    assert found.same_losses or found.fault.endswith(" metrics"), found


@pytest.mark.parametrize("fault", PRIVATE)
def test_a_run_on_a_private_cluster(fault, made):
    folder = made.root / fault.replace(" ", "-") / "run0"
    folder.parent.mkdir()
    require(strike(fault, made.source, folder, made.whole), PRIVATE[fault])


@pytest.mark.parametrize("fault", SEVERAL_NODES)
def test_a_run_on_several_nodes(fault, made, nodes):
    folder = made.root / f"several-{fault.replace(' ', '-')}"
    afterwards = None if IS_FATAL.search(fault) else nodes
    found = strike(fault, made.source, folder, made.whole, cluster=nodes, afterwards=afterwards)
    require(found, SEVERAL_NODES[fault], leaves_processes=bool(LEAVES_PROCESSES.search(fault)))


LARGE = ("models.student.width=512", "models.student.depth=3")
"""Versions of 38 MB."""
FEW = (*LARGE, "learner.steps=12", "learner.checkpoint_every=6", "learner.stall_seconds=60")
ON_SMALL_DISK = ("unshare", "--mount", "sh", "-c")
"""Runs a shell line whose mounts nobody else sees."""


def test_a_full_object_store_slows_a_run_and_a_full_disk_beneath_it_ends_it(made):
    source = prepare(made.root / "large", *LARGE)
    folders = {name: made.root / f"large-{name}" for name in ("roomy", "tight", "full")}
    roomy = Command(source, folders["roomy"], (*FEW, "cluster.object_store_mb=500"))
    assert roomy.wait() == "0", roomy.said()
    tight = Command(source, folders["tight"], (*FEW, "cluster.object_store_mb=75"))
    until(lambda: tight.process.poll() is not None or spilled(), PATIENCE_SECONDS)
    assert tight.process.poll() is None, "it stored nothing on the disk"
    assert tight.wait() == "0", tight.said()
    assert student(folders["tight"]) == student(folders["roomy"]) is not None
    if subprocess.run([*ON_SMALL_DISK, "mount -t tmpfs tmpfs /tmp"]).returncode:
        pytest.skip("a file system cannot be mounted here")
    mounted = 'mount -t tmpfs -o size=64m tmpfs /tmp && exec "$@"'
    store = (*FEW, "cluster.object_store_mb=75")
    full = Command(source, folders["full"], store, before=(*ON_SMALL_DISK, mounted, "sh"))
    assert full.wait() == "1", full.said()
    assert re.search(
        f"the disk of Ray's temporary folder is full: make room; {LOST}", full.said()[-1]
    )
    until(lambda: full.left() == [], LEFT_SECONDS)
    again = Command(source, folders["full"], store, resume=True)
    assert again.wait() == "0", again.said()
    assert student(folders["full"]) == student(folders["roomy"])


def spilled() -> list[Path]:
    """Objects that Ray put on the disk for any private cluster."""
    return [*PARENT.glob(f"{PREFIX}*/r/**/ray_spilled_objects*/*")]
