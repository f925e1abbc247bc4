"""What becomes of a run on Ray that is hit by one fault, and of the run that goes on from it.

    python -m benchmarks.faults --out faults.json
    python -m benchmarks.faults --only "SIGSTOP ledger" "SIGKILL driver"

Every row is a real run in `ordered` mode with two workers, whose process is killed or stopped after
thirty steps, or runs for a tenth of the time from then on (SLOW), or whose folder is renamed (GONE)
or can only be read any more (READ-ONLY, which takes the right to mount). `seconds` is the time from
there to the end of the command, `left` its processes three seconds later; `same_student` and
`same_losses` compare the run, gone on with where it had ended, with one that nobody hit, to the
bit and each step once. docs/faults.md has the results; tests/ray/test_faults.py, marked long, hits
runs alike and requires them.
"""

import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.measuring import machine, parser, report
from benchmarks.start_up import prepare
from benchmarks.struck import FAULTS, Command, strike


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
            rows.append(asdict(strike(fault, source, Path(place, f"run{number}"), whole)))
            sys.stderr.write(f"{rows[-1]}\n")
    report("faults", given, on, rows)


if __name__ == "__main__":
    main()
