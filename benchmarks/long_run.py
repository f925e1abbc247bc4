"""Whether memory and file descriptors of every role stay flat over many tiny steps on Ray.

    python -m benchmarks.long_run --steps 20000 --out long_run.json

Every few seconds each process of the run is looked at (Linux: /proc): memory of its own, without
what it shares, in MB, and open descriptors. Of each role the table has the first look after a tenth
of the steps, the one in the middle and the last one.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measuring import machine, parser, report
from benchmarks.processes import MARK
from benchmarks.start_up import ROOT, SMALL, prepare, role_of

LOOK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Look:
    """All processes of one role together."""

    steps: int
    processes: int
    mb: float
    descriptors: int


def main() -> None:
    options = parser("memory and descriptors over a long run")
    options.add_argument("--steps", type=int, default=20_000)
    given = options.parse_args()
    on = machine(given)
    os.environ.setdefault("OMP_NUM_THREADS", str(given.threads))
    with tempfile.TemporaryDirectory() as place:
        source, folder = prepare(Path(place, "source")), Path(place, "run")
        began = time.monotonic()
        looks = watched(source, folder, given.steps)
        seconds = time.monotonic() - began
    rows: list[dict[str, object]] = [
        row for role, found in sorted(looks.items()) if (row := row_of(role, found, given.steps))
    ]
    rows.append({"role": f"{given.steps} steps in {seconds:.0f} s"})
    report("long_run", given, on, rows)


def watched(source: Path, folder: Path, steps: int) -> dict[str, list[Look]]:
    """Run, and look until it ends; by role."""
    mark = secrets.token_hex(8)
    words = ["distill", "smoke", *SMALL, f"learner.steps={steps}", "--from", str(source)]
    # The models have hardly been trained: a gate would close everything.
    words += ["--out", str(folder), "rollout.workers=2", "objective.kind=gkd"]
    program = "from deploy.main import main; main()"
    looks: dict[str, list[Look]] = {}
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [sys.executable, "-c", program, *words],
            cwd=ROOT,
            env=os.environ | {MARK: mark},
            stdout=said,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        while process.poll() is None:
            for role, look in looked(f"{MARK}={mark}", steps_done(folder)).items():
                looks.setdefault(role, []).append(look)
            time.sleep(LOOK_SECONDS)
        if process.returncode:
            said.seek(0)
            raise SystemExit(said.read().decode()[-4000:])
    return looks


def steps_done(folder: Path) -> int:
    """As the run's metrics have it."""
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines[-2:] if line.endswith(b"\n")]
    return json.loads(whole[-1])["step"] if whole else 0


def looked(mark: str, steps: int) -> dict[str, Look]:
    """Every process that has the mark in its environment, by role."""
    found: dict[str, Look] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if mark not in (folder / "environ").read_text():
                continue
            role = role_of((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            status = (folder / "status").read_text()
            own = int(status.partition("RssAnon:")[2].split()[0]) / 1024
            descriptors = len(list((folder / "fd").iterdir()))
        except (OSError, UnicodeDecodeError, IndexError):
            continue
        before = found.get(role, Look(steps, 0, 0.0, 0))
        found[role] = Look(
            steps, before.processes + 1, before.mb + own, before.descriptors + descriptors
        )
    return found


def row_of(role: str, looks: list[Look], steps: int) -> dict[str, object] | None:
    """Early, in the middle, late; None of what did not live that long."""
    # The last look may meet a run that is being ended.
    settled = [look for look in looks if steps * 0.1 <= look.steps <= steps * 0.98]
    if len(settled) < 3:
        return None
    row: dict[str, object] = {"role": role, "processes": settled[-1].processes}
    for name, look in zip(
        ("early", "middle", "late"),
        (settled[0], settled[len(settled) // 2], settled[-1]),
        strict=True,
    ):
        row |= {f"{name}_mb": round(look.mb, 1), f"{name}_files": look.descriptors}
    return row


if __name__ == "__main__":
    main()
