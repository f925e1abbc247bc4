"""How long `varkd distill` on Ray takes to its first step, and `varkd smoke` to its end, and what
the time is made of.

Runs both commands as a user does, in a run folder of small files that it makes first. A clock of
all their processes (Linux: /proc, by a mark in their environment) is read every few milliseconds,
so that CPU seconds are known by process and, at each line that the command prints, in sum.

    python -m benchmarks.start_up --rounds 3 --out start_up.json
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measuring import machine, parser, report
from benchmarks.processes import new_mark

SMALL = (
    *("models.teacher.width=32", "models.teacher.depth=2", "models.student.width=32"),
    *("models.student.depth=1", "tokenizer.vocab_size=24", "learner.steps=1"),
    *("rollout.batch_size=16", "learner.global_batch_size=32", "learner.micro_batch=32"),
    *("learner.optimizer.warmup=0", "pretrain.teacher.steps=2", "pretrain.student.steps=2"),
    *("pretrain.teacher.optimizer.warmup=0", "pretrain.student.optimizer.warmup=0"),
)
SAMPLE_SECONDS = 0.1
TICKS = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).parents[1]
IMPORTS = {
    "imports: the command line": "import deploy.main, deploy.cli.parser as p; p.build_parser()",
    "imports: torch": "import torch",
    "imports: the driver": "import deploy.stages.distill, deploy.planning.plan",
    "imports: Ray": "import ray",
    "imports: Ray Train": "import ray.train.torch",
    "imports: evaluation": "import deploy.stages.evaluate",
}


@dataclass
class Watched:
    """A command and what its processes have used so far."""

    started: float
    mark: str
    cpu: dict[tuple[int, int], float] = field(default_factory=dict)
    """CPU seconds by process: its number and when it began."""
    names: dict[tuple[int, int], str] = field(default_factory=dict)
    lines: list[tuple[float, float, str]] = field(default_factory=list)
    """(wall seconds, CPU seconds of all processes, what was printed)."""
    first_step: tuple[float, float] | None = None

    def look(self) -> None:
        """Read the clocks of all processes that have the mark."""
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                key = int(folder.name), int(stat[19])
                if key not in self.names and self.mark not in (folder / "environ").read_text():
                    continue
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, UnicodeDecodeError):
                continue
            self.cpu[key] = (int(stat[11]) + int(stat[12])) / TICKS
            if words.strip():
                self.names[key] = role_of(words)

    def total(self) -> float:
        return sum(self.cpu.values())

    def now(self) -> float:
        return time.perf_counter() - self.started


def role_of(words: str) -> str:
    """What a process is, by its command or by the title that Ray gives it."""
    if words.startswith("ray::"):
        return re.split(r"[ .(]", words)[0]
    for name in ("gcs_server", "raylet/raylet", "default_worker.py", "forking/server.py"):
        if name in words.partition("--")[0]:
            return name
    for name in (
        "client.py",
        "agent.py",
        "agent/main.py",
        "log_monitor",
        "monitor.py",
        "dashboard",
    ):
        if name in words:
            return name
    return "driver" if "deploy.main" in words or "varkd" in words else words[:40]


@contextmanager
def running(words: list[str], metrics: Path | None) -> Iterator[Watched]:
    """`varkd` with these words, watched until it ends; `metrics` gets a row after a step."""
    mark = new_mark()
    environment = {**os.environ, **dict([mark.split("=")])}
    program = "from deploy.main import main; main()"
    watched = Watched(time.perf_counter(), mark)
    with subprocess.Popen(
        [sys.executable, "-c", program, *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        reader = threading.Thread(target=_read, args=(process, watched))
        reader.start()
        while process.poll() is None:
            watched.look()
            begun = metrics is not None and metrics.exists() and metrics.stat().st_size > 0
            if begun and watched.first_step is None:
                watched.first_step = watched.now(), watched.total()
            time.sleep(SAMPLE_SECONDS)
        reader.join()
    if process.returncode:
        raise SystemExit("\n".join(line for *_, line in watched.lines))
    yield watched


def _read(process: subprocess.Popen[str], watched: Watched) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        watched.lines.append((watched.now(), watched.total(), line.rstrip()))


def prepare(folder: Path, *more: str) -> Path:
    """A run folder with tokens and models; `more` overrides."""
    for words in (
        ["tokenize", "smoke", "--local"],
        ["pretrain", "smoke"],
    ):
        with running([*words, *SMALL, *more, "--out", str(folder)], None):
            pass
    return folder


def first_step(source: Path, folder: Path) -> list[dict[str, Any]]:
    """From the command to the learner's first step: in all, and CPU seconds by process."""
    words = ["distill", "smoke", *SMALL, "--from", str(source), "--out", str(folder)]
    with running(words, folder / "metrics.jsonl") as watched:
        assert watched.first_step is not None, "no step was taken"
        wall, cpu = watched.first_step
        rows = [{"what": "distill: to the first step", "wall": wall, "cpu": cpu}]
        rows.append({"what": "distill: to the end", "wall": watched.now(), "cpu": watched.total()})
        roles: dict[str, list[float]] = {}
        for key, name in watched.names.items():
            roles.setdefault(name, []).append(watched.cpu[key])
        for name, each in sorted(roles.items(), key=lambda item: -sum(item[1])):
            rows.append({"what": f"process: {name}", "count": len(each), "cpu": sum(each)})
        return rows


def smoke(folder: Path) -> list[dict[str, Any]]:
    """`varkd smoke` from line to line: a stage begins with the first line that names it."""
    with running(["smoke", "--out", str(folder)], None) as watched:
        stages: dict[str, tuple[float, float]] = {}
        for wall, cpu, line in watched.lines:
            name = re.split(r"[:,]|  |\d", line)[0].strip()[:40]
            stages.setdefault(name, (wall, cpu))
        ends = [*list(stages.values())[1:], (watched.now(), watched.total())]
        rows = [
            {
                "what": f"smoke: {name or 'start'}",
                "wall": end[0] - begin[0],
                "cpu": end[1] - begin[1],
            }
            for (name, begin), end in zip(stages.items(), ends, strict=True)
        ]
        rows.append({"what": "smoke: in all", "wall": watched.now(), "cpu": watched.total()})
        return rows


def imports() -> list[dict[str, Any]]:
    """CPU seconds of processes that do nothing but import."""
    rows = []
    for name, code in IMPORTS.items():
        before, began = os.times(), time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        after = os.times()
        cpu = sum(after[2:4]) - sum(before[2:4])
        rows.append({"what": name, "wall": time.perf_counter() - began, "cpu": cpu})
    return rows


def medians(rounds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each `what`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in (row for rows in rounds for row in rows):
        found.setdefault(row["what"], []).append(row)
    return [
        {
            key: rows[0][key] if key == "what" else statistics.median(row[key] for row in rows)
            for key in rows[0]
        }
        for rows in found.values()
    ]


def _parser():
    found = parser(str(__doc__).partition("\n\n")[0])
    found.add_argument("--only", choices=["imports", "distill", "smoke"], help="one part of it")
    return found


if __name__ == "__main__":
    given = _parser().parse_args()
    on = machine(given)
    os.environ.setdefault("OMP_NUM_THREADS", str(given.threads))
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        if given.only in (None, "imports"):
            table += medians([imports() for _ in range(given.rounds)])
        if given.only in (None, "distill"):
            source = prepare(Path(place, "source"))
            rounds = [first_step(source, Path(place, f"run{at}")) for at in range(given.rounds)]
            table += medians(rounds)
        if given.only in (None, "smoke"):
            table += smoke(Path(place, "smoke"))
    report("start_up", given, on, table)
