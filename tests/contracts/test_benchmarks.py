"""Every benchmark still runs: at sizes that say nothing about speed, and none is asserted."""

import importlib
import json
import math
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from benchmarks.series import SERIES, Entry, run

ROOT = Path(__file__).parents[2]
RUNS = {
    "data_plane": "--rows 2 --length 16 --width 8 --store-mb 128 --rounds 1",
    "dd1_toy": "--steps 3",
    "dd2_toy": "--stage1-steps 3 --generator-steps 3",
    "dryrun_memory": "decoding",
    "end_to_end": "--where local --rounds 1 --steps 12",
    "learner": "--width 32 --depth 1 --teacher-width 32 --side 4 --vocab 64 --batch 2 --rounds 1",
    "long_run": "--steps 600",
    "loss": "--tokens 64 --vocab 64 --width 32 --teacher-width 32 --rounds 1",
    "publish": "--megabytes 4 --rounds 1",
    "sampling": "--batches 1 --side 4 --vocab 64 --rounds 1",
    "scaling": "--workers 1 2 --leases 3 --sleep-ms 1",
    "speculation": "--batches 1 --windows 4 --ahead 2 --side 4 --vocab 64 --rounds 1",
    "start_up": "--only imports",
    "teacher": "--width 64 --depth 1 --side 4 --vocab 64 --batch 2 --rounds 1",
    "zipar": "--grids 4 --batches 1 --rounds 1 --images 1 --vocab 64",
}
ELSEWHERE = {
    "compare_official": "needs an official checkout",
    "drift": "reads the folder of a study",
    "faults": "its faults are tests/ray/test_faults.py",
    "series": "runs the others",
}


def test_each_of_them_is_run_here_or_says_where():
    found = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in _text(path)}
    assert found == RUNS.keys() | ELSEWHERE.keys()


@pytest.mark.parametrize("entry", [*chain(*SERIES.values())], ids=lambda entry: entry.name)
def test_what_a_series_asks_for_is_understood(entry):
    module = importlib.import_module(entry.module)
    _, *words = entry.words.split()
    module._parser().parse_args(words)


def test_a_series_ends_what_takes_too_long_and_what_that_started(tmp_path):
    entry = Entry("slow", "series cpu --only nothing", 0.01)
    assert run(entry, tmp_path, 0.01).startswith("longer than 0 s")


@pytest.mark.long
@pytest.mark.parametrize("name", RUNS)
def test_it_runs(name, tmp_path):
    out = tmp_path / "figures.json"
    call = [sys.executable, "-m", f"benchmarks.{name}", *RUNS[name].split(), "--out", str(out)]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
    rows = json.loads(out.read_text())["rows"]
    assert rows
    numbers = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert numbers
    assert all(map(math.isfinite, numbers))


def _text(path: Path) -> str:
    return path.read_text()
