"""What becomes of a run on Ray that is hit by one fault, and of the run that goes on from it.

    python -m benchmarks.faults --out faults.json
    python -m benchmarks.faults --only "SIGSTOP ledger" "SIGKILL driver"

Every row is a real run in `ordered` mode with two workers, whose process is killed or stopped after
thirty steps, or runs for a tenth of the time from then on (SLOW), or whose folder is renamed (GONE)
or can only be read any more (READ-ONLY, which takes the right to mount). `seconds` is the time from
there to the end of the command, `left` counts its processes three seconds later, `resume` says
whether the run, gone on with where it had ended, has student and losses of one that nobody hit, to
the bit, and each step once. docs/faults.md has the results.
"""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measuring import machine, parser, report
from benchmarks.start_up import MARK, ROOT, SMALL, prepare
from common.files.tensors import load_tensors, tensors_digest

STEPS, STRIKE = 300, 30
PATIENCE_SECONDS = 90.0
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
ROLES = {
    "worker": r"ray::(RolloutWorker|worker-)",
    "all workers": r"ray::(RolloutWorker|worker-)",
    "teacher": r"ray::(ScorerLink|teacher)",
    "buffer": r"ray::(Buffer|buffer)",
    "ledger": r"ray::(Ledger|ledger)",
    "weights": r"ray::(WeightStore|weights)",
    "metrics": r"ray::(MetricsHub|metrics)",
    "learner": r"ray::RayTrainWorker",
    "controller": r"ray::TrainController",
    "raylet": r"\S*raylet/raylet ",
    "gcs": r"\S*gcs_server ",
    "driver": r"\S*python\S* -c from deploy\.main",
}
"""Who may be hit, by the title of the process."""
FAULTS = [
    f"{name} {role}"
    for name in ("SIGKILL", "SIGSTOP")
    for role in ROLES
    if (name, role) != ("SIGSTOP", "driver")  # who stops his own command waits for himself
]
FAULTS += ["SLOW worker", "GONE folder", "READ-ONLY folder"]
MORE = {"SIGSTOP teacher": ("learner.stall_seconds=12",)}
"""Six seconds, of which half must pass first, are too few for another one to start."""


def main() -> None:
    options = parser("one fault at a time")
    options.add_argument("--only", nargs="+", choices=FAULTS, default=FAULTS, metavar="FAULT")
    given = options.parse_args()
    on = machine(given)
    os.environ.setdefault("OMP_NUM_THREADS", str(given.threads))
    with tempfile.TemporaryDirectory() as place:
        source, rows = prepare(Path(place, "source")), []
        whole = Path(place, "whole")
        Command(source, whole).wait()
        for number, fault in enumerate(given.only):
            rows.append(row_of(fault, source, Path(place, f"run{number}"), whole))
            sys.stderr.write(f"{rows[-1]}\n")
    report("faults", given, on, rows)


class Command:
    """`varkd distill` in a process of its own."""

    def __init__(
        self, source: Path, folder: Path, more: tuple[str, ...] = (), *, resume: bool = False
    ) -> None:
        self.mark = f"{MARK}={secrets.token_hex(8)}"
        start = ["--resume"] if resume else ["--from", str(source)]
        words = ["distill", "smoke", *SMALL, *SETTINGS, *more, "--out", str(folder), *start]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the object)
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from deploy.main import main; main()", *words],
            cwd=ROOT,
            env=os.environ | dict([self.mark.split("=")]),
            stdout=self._said,
            stderr=subprocess.STDOUT,
        )

    def wait(self) -> str:
        """How it ended: the exit code, or that it hangs."""
        try:
            return str(self.process.wait(PATIENCE_SECONDS))
        except subprocess.TimeoutExpired:
            for pid, _ in processes(self.mark):
                kill(pid, signal.SIGKILL)
            self.process.wait()
            return "hangs"

    def last_line(self) -> str:
        """What a user sees last of it."""
        self._said.seek(0)
        lines = [line for line in self._said.read().decode().splitlines() if line.strip()]
        return lines[-1] if lines else ""


def row_of(fault: str, source: Path, folder: Path, whole: Path) -> dict[str, object]:
    """Hit one run, and go on with it."""
    command = Command(source, folder, MORE.get(fault, ()))
    while len(losses(folder)) < STRIKE and command.process.poll() is None:
        time.sleep(0.05)
    with struck(fault, command, folder) as hit:
        began = time.monotonic()
        ending, seconds = command.wait(), time.monotonic() - began
    time.sleep(LEFT_SECONDS)
    left = sum(1 for _ in processes(command.mark))
    for pid, _ in processes(command.mark):
        kill(pid, signal.SIGKILL)
    went_on, said = len(losses(folder)) == STEPS and ending == "0", command.last_line()
    resumed = "" if went_on else Command(source, folder, resume=True).wait()
    same = student(folder) == student(whole)
    rows = "same losses" if losses(folder) == losses(whole) else f"{len(losses(folder))} rows"
    return {
        "fault": fault,
        "hit": hit,
        "exit": ending,
        "seconds": round(seconds, 1),
        "left": left,
        "went_on": went_on,
        "resume": f"{resumed} {'same student' if same else 'ANOTHER STUDENT'}, {rows}".strip(),
        "said": said[:300],
    }


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
        found = [pid for pid, title in processes(command.mark) if re.match(ROLES[role], title)]
        hit = found if role.startswith("all") else found[:1]
        over = threading.Event()
        for pid in hit:
            if name == "SLOW":
                threading.Thread(target=slow_down, args=(pid, over), daemon=True).start()
            else:
                kill(pid, signal.Signals[name])
        yield len(hit)
        over.set()


def slow_down(pid: int, over: threading.Event) -> None:
    """Let a process run for a tenth of the time."""
    while not over.is_set():
        kill(pid, signal.SIGSTOP)
        time.sleep(0.09)
        kill(pid, signal.SIGCONT)
        time.sleep(0.01)


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


def processes(mark: str) -> Iterator[tuple[int, str]]:
    """(pid, title) of all that live and have the mark in their environment."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if mark in (folder / "environ").read_text():
                title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                yield int(folder.name), title
        except (OSError, UnicodeDecodeError):
            continue


def kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    main()
