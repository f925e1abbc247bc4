"""The benchmarks of benchmarks/README.md one after another, each with a limit of time.

    python -m benchmarks.series cpu --out results
    python -m benchmarks.series gpu --out results --minutes 8

The most telling ones first, in processes of their own; NAME.json and NAME.txt of each are put into
the folder. What takes longer than its limit is ended, what finds no time any more is left out, and
both are said. Nothing else should run beside it. Exit code 1 where one failed.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

LLAMAGEN = "--device cuda --vocab 16384 --rounds 1"


@dataclass(frozen=True, slots=True)
class Entry:
    """One command, and the seconds that it gets."""

    name: str
    words: str
    seconds: float = 600

    @property
    def module(self) -> str:
        return f"benchmarks.{self.words.split()[0]}"


SERIES = {
    "cpu": [
        Entry("end_to_end", "end_to_end --where ray"),
        Entry("end_to_end-large", "end_to_end --where ray --config large --rounds 2"),
        Entry("learner", "learner"),
        Entry("teacher", "teacher --dtypes float32 bfloat16"),
        Entry("sampling", "sampling --layered --models llamagen-small --dtypes float32 bfloat16"),
        Entry("loss", "loss --tokens 2048"),
        Entry("publish", "publish --megabytes 50 500"),
        Entry("data_plane", "data_plane"),
        Entry("start_up", "start_up"),
        Entry("scaling", "scaling --nodes 4"),
    ],
    "gpu": [
        Entry("256", "end_to_end --device cuda --config llamagen --where ray --rounds 1", 200),
        Entry("384", "end_to_end --device cuda --config llamagen-384 --where ray --rounds 1", 300),
        *(
            Entry(
                f"learner-{preset}",
                f"learner {LLAMAGEN} --dtype bfloat16 --preset {preset} --teacher-width {width} "
                "--side 24 --batch 64 --chunk 8192 --compile only",
                150,
            )
            for preset, width in (("B", 1024), ("L", 1280), ("XL", 1536))
        ),
        *(
            Entry(
                f"teacher-{preset}",
                f"teacher {LLAMAGEN} --preset {preset} --side 24 --batch 64 --dtypes bfloat16",
                60,
            )
            for preset in ("L", "XL")
        ),
        *(
            Entry(
                f"sampling-{preset}-{side}",
                f"sampling {LLAMAGEN} --models llamagen-{preset} --side {side} --guidance 2 "
                "--dtypes bfloat16 --batches 64 256",
                90,
            )
            for preset, side in (("B", 16), ("B", 24), ("L", 24), ("XL", 24))
        ),
        Entry("loss", f"loss {LLAMAGEN} --tokens 8192", 60),
        Entry("publish", "publish --megabytes 50 500 --rounds 3", 120),
        Entry("data_plane", "data_plane --rounds 3", 60),
    ],
}


def main() -> None:
    options = _parser().parse_args()
    known = [entry.name for entry in SERIES[options.device]]
    if unknown := [name for name in options.only if name not in known]:
        _parser().error(f"--only {unknown[0]} is none of {', '.join(known)}")
    if options.out.exists() and not options.out.is_dir():
        _parser().error(f"--out {options.out} is a file; name a folder")
    options.out.mkdir(parents=True, exist_ok=True)
    end, failed = time.monotonic() + 60 * options.minutes, []
    for entry in SERIES[options.device]:
        if options.only and entry.name not in options.only:
            continue
        seconds = min(entry.seconds, end - time.monotonic())
        said = "no time left" if seconds <= 0 else run(entry, options.out, seconds)
        print(f"{entry.name}: {said}", flush=True)
        if said != "done":
            failed.append(entry.name)
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description="all benchmarks in turn")
    found.add_argument("device", choices=sorted(SERIES))
    found.add_argument("--out", type=Path, required=True, help="folder of the results")
    found.add_argument("--minutes", type=float, default=120, help="for all together")
    found.add_argument("--only", nargs="*", default=[], metavar="NAME")
    return found


def run(entry: Entry, folder: Path, seconds: float) -> str:
    """`done`, or why not; what the command printed is beside its figures."""
    said, figures = folder / f"{entry.name}.txt", folder / f"{entry.name}.json"
    call = [sys.executable, "-m", entry.module, *entry.words.split()[1:], "--out", str(figures)]
    with said.open("w") as log:
        process = subprocess.Popen(call, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            end_group(process)
            return f"longer than {seconds:.0f} s, see {said}"
    return "done" if code == 0 else f"exit code {code}, see {said}"


def end_group(process: subprocess.Popen[bytes]) -> None:
    """The command and the runs that it started, which get a moment to take their clusters down."""
    wanted = signal.SIGTERM
    for _ in range(2):
        os.killpg(process.pid, wanted)
        for _ in range(150):
            process.poll()  # a process that was not asked for counts as being there
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.1)
        wanted = signal.SIGKILL


if __name__ == "__main__":
    main()
