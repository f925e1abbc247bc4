"""One fault in a real run on Ray, and the run that goes on from it: for the table of faults
(benchmarks/faults.py) and for the tests of what it promises (tests/ray/test_faults.py)."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import (
    end_all,
    kill,
    new_mark,
    of_title,
    parent,
    processes,
    shared_memory,
    slow_down,
)
from benchmarks.start_up import ROOT, SMALL
from common.files.sealed import read_description
from common.files.snapshots import Snapshots
from common.files.tensors import load_tensors, tensors_digest

STEPS, STRIKE = 300, 30
PATIENCE_SECONDS = 150.0
"""A command that has not ended by then hangs."""
LEFT_SECONDS = 3.0
SETTINGS = (
    *("objective.kind=gkd", "rollout.workers=2", "learner.ordered=true", f"learner.steps={STEPS}"),
    *(
        "learner.checkpoint_every=20",
        "learner.stall_seconds=6",
        "learner.stop_seconds=20",
        "learner.max_staleness=2",
    ),
)
ACTORS = {
    "worker": r"ray::(RolloutWorker|worker-)",
    "all workers": r"ray::(RolloutWorker|worker-)",
    "teacher": r"ray::(ScorerLink|teacher)",
    "buffer": r"ray::(Buffer|buffer)",
    "ledger": r"ray::(Ledger|ledger)",
    "weights": r"ray::(WeightStore|weights)",
    "metrics": r"ray::(MetricsHub|metrics)",
    "learner": r"ray::RayTrainWorker",
    "controller": r"ray::TrainController",
}
"""Who may be hit, by the title of the process."""
ROLES = ACTORS | {
    "raylet": r"\S*raylet/raylet ",
    "gcs": r"\S*gcs_server ",
    "driver": r"\S*python\S* -c from deploy\.main",
}
RUN = "|".join([*ACTORS.values(), ROLES["driver"]])
"""Who belongs to a run, of all processes of a cluster that it joined."""
NODE = "node of "
"""Before an actor: the machine that it lives on, so its raylet and all that lives under it."""
FAULTS = [
    f"{name} {role}"
    for name in ("SIGKILL", "SIGSTOP")
    for role in ROLES
    if (name, role) != ("SIGSTOP", "driver")  # who stops his own command waits for himself
]
FAULTS += ["SLOW worker", "GONE folder", "READ-ONLY folder"]
MORE = {
    "SIGSTOP teacher": ("learner.stall_seconds=20",),
    # Ray misses a silent machine after half a minute, and others are to take its place meanwhile.
    "SIGKILL node of worker": ("learner.stall_seconds=60",),
    "SIGSTOP node of worker": ("learner.stall_seconds=60",),
    "SIGKILL node of learner": ("learner.stall_seconds=60",),
    "SIGSTOP node of learner": ("learner.stall_seconds=60",),
}
"""Six seconds, of which half must pass first, are too few for another one to start."""


@dataclass(frozen=True)
class Cluster:
    """That commands join."""

    address: str
    mark: str
    """In the environment of all that it starts."""


class Command:
    """`varkd distill` in a process of its own."""

    def __init__(
        self,
        source: Path,
        folder: Path,
        more: Sequence[str] = (),
        *,
        resume: bool = False,
        cluster: Cluster | None = None,
        before: Sequence[str] = (),
    ) -> None:
        """It joins the `cluster`, or has one of its own; `before` are the words of a command that
        runs it."""
        self.is_alone = cluster is None
        self.mark = cluster.mark if cluster else new_mark()
        joined = {"RAY_ADDRESS": cluster.address if cluster else ""}
        start = ["--resume"] if resume else ["--from", str(source)]
        words = ["distill", "smoke", *SMALL, *SETTINGS, *more, "--out", str(folder), *start]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the object)
        self.process = subprocess.Popen(
            [*before, sys.executable, "-c", "from deploy.main import main; main()", *words],
            cwd=ROOT,
            env=os.environ | dict([self.mark.split("=")]) | joined,
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
        )

    def wait(self, seconds: float = PATIENCE_SECONDS) -> str:
        """How it ended: the exit code, or that it hangs."""
        try:
            return str(self.process.wait(seconds))
        except subprocess.TimeoutExpired:
            end_all(self.mark)
            self.process.wait()
            return "hangs"

    def left(self) -> list[str]:
        """Titles of its processes that live; of a cluster that it joined, those of its run."""
        own = "" if self.is_alone else RUN
        found = [title for _, title in processes(self.mark) if re.match(own, title)]
        return [title.strip()[:100] for title in found]

    def said(self) -> list[str]:
        """What a user sees of it, without empty lines."""
        self._said.seek(0)
        return [line for line in self._said.read().decode().splitlines() if line.strip()]


@dataclass(frozen=True)
class Struck:
    """What became of a run that was hit."""

    fault: str
    hit: int
    """Processes, or folders."""
    exit: str
    seconds: float
    """From the fault to the end of the command."""
    left: list[str]
    """Processes that live three seconds later."""
    shared: list[str]
    """Shared memory that is nobody's by then."""
    went_on: bool
    """To its last step; else it was gone on with."""
    resumed: str
    """How that ended."""
    same_student: bool
    """To the bit, as of a run that nobody hit."""
    rows: int
    same_losses: bool
    """Of every step, each once: as of that run."""
    trained: dict[str, object]
    """The ledger's account in the last snapshot."""
    recovered: dict[str, float]
    """Seconds until another one was in a dead one's place, or until the learner's next step."""
    said: str
    """The last line, before it was gone on with."""


def strike(
    fault: str,
    source: Path,
    folder: Path,
    whole: Path,
    *,
    cluster: Cluster | None = None,
    afterwards: Cluster | None = None,
) -> Struck:
    """Hit one run, which joins a `cluster` if there is one, and go on with it, `afterwards`."""
    memory = {*map(str, Path("/dev/shm").iterdir())}  # whoever made it
    command = Command(source, folder, MORE.get(fault, ()), cluster=cluster)
    while len(losses(folder)) < STRIKE and command.process.poll() is None:
        time.sleep(0.05)
    with struck(fault, command, folder) as hit:
        began = time.monotonic()
        ending, seconds = command.wait(), time.monotonic() - began
    time.sleep(LEFT_SECONDS)
    left, said = command.left(), command.said() or [""]
    if command.is_alone:
        end_all(command.mark)
    went_on = len(losses(folder)) == STEPS and ending == "0"
    resumed = "" if went_on else Command(source, folder, resume=True, cluster=afterwards).wait()
    return Struck(
        fault=fault,
        hit=hit,
        exit=ending,
        seconds=round(seconds, 1),
        left=left,
        shared=sorted(shared_memory() - memory),
        went_on=went_on,
        resumed=resumed,
        same_student=student(folder) == student(whole),
        rows=len(losses(folder)),
        same_losses=losses(folder) == losses(whole),
        trained=trained(folder),
        recovered=recovered(folder),
        said=said[-1],
    )


@contextmanager
def struck(fault: str, command: Command, folder: Path) -> Iterator[int]:
    """How many processes, or folders, were hit; what can be taken back is after the block."""
    name, _, role = fault.partition(" ")
    if name == "GONE":
        folder.rename(away := folder.with_name("away"))
        yield 1
        assert not folder.exists(), "nobody makes it anew"
        away.rename(folder)
    elif name == "READ-ONLY":  # whoever opens a file from now on does so through a second mount
        mount("--bind", str(folder), str(folder))
        mount("-o", "remount,bind,ro", str(folder))
        yield 1
        subprocess.run(["umount", "-l", str(folder)], check=True)
    else:
        over = threading.Event()
        for pid in (hit := _targets(role, command.mark)):
            if name == "SLOW":
                threading.Thread(target=slow_down, args=(pid, over), daemon=True).start()
            else:
                kill(pid, signal.Signals[name])
        yield len(hit)
        over.set()


def _targets(role: str, mark: str) -> list[int]:
    if role.startswith(NODE):
        raylet = parent(_targets(role.removeprefix(NODE), mark)[0])
        return [raylet, *(pid for pid, _ in processes(mark) if parent(pid) == raylet)]
    found = of_title(mark, ROLES[role])
    return found if role.startswith("all") else found[:1]


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def losses(folder: Path) -> list[float]:
    """Of every row of the run's metrics; two of one step would be two here."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line)["loss"] for line in lines]


def student(folder: Path) -> str | None:
    """Digest of what the run trained."""
    path = folder / "student.safetensors"
    return tensors_digest(load_tensors(path)[0]) if path.exists() else None


def recovered(folder: Path) -> dict[str, float]:
    """As the run's report has it, by who died."""
    facts = json.loads((folder / "distill.json").read_text())
    found = {name: each["seconds"] for name, each in facts.get("replaced", {}).items()}
    again = [each["seconds"] for each in facts.get("restarts", []) if "seconds" in each]
    return found | ({"learner": max(again)} if again else {})


def trained(folder: Path) -> dict[str, object]:
    """Which leases the newest snapshot says were trained."""
    snapshots = Snapshots(folder / "snapshots")
    step = snapshots.newest_step()
    if step is None:
        return {}
    return read_description(snapshots.folder(step), step)[0]["ledger"]
