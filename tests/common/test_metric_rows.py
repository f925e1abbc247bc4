"""Rows on disk: whole lines, each step once, whatever happened to the run that wrote them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.errors import InputError
from common.exchange.metric_files import read_rows
from common.exchange.metrics import PROFILE, MetricsHub, MetricsLog

ROOT = Path(__file__).parents[2]


def row(step, loss=0.5):
    return {"step": step, "time": 1e9 + step, "pid": 7, "version": step, "loss": loss}


def write(folder, *rows):
    log = MetricsLog(folder)
    log.write(list(rows))
    log.close()


def test_what_a_later_run_repeats_is_there_once(tmp_path):
    write(tmp_path, *(row(step) for step in (1, 2, 3)), {"step": 3, PROFILE: {"first": 1}})
    write(tmp_path, row(3, loss=0.25), row(4), {"step": 4, PROFILE: {"first": 4}})
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(found["step"], found["loss"]) for found in rows] == [
        (1, 0.5),
        (2, 0.5),
        (3, 0.25),
        (4, 0.5),
    ]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    assert [found["step"] for found in read_rows(tmp_path / "profiles.jsonl")] == [4]


def test_a_learner_that_begins_again_within_a_run_is_there_once(tmp_path):
    log = MetricsLog(tmp_path)
    log.write([row(1), row(2), {"step": 2, PROFILE: {"first": 1}}, row(3)])
    log.write([row(2, loss=0.125), {"step": 2, PROFILE: {"first": 2}}])
    log.close()
    assert [found["loss"] for found in read_rows(tmp_path / "metrics.jsonl")] == [0.5, 0.125]
    assert [found[PROFILE] for found in read_rows(tmp_path / "profiles.jsonl")] == [{"first": 2}]


def test_a_log_that_begins_with_curves_keeps_the_scalars_of_their_step(tmp_path):
    """They are two rows, and of a snapshot's the first one may be on disk already."""
    write(tmp_path, row(1), row(2), row(3))
    write(tmp_path, {"step": 2, PROFILE: {"first": 1}}, row(3, loss=0.25))
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(found["step"], found["loss"]) for found in rows] == [(1, 0.5), (2, 0.5), (3, 0.25)]
    assert [found["step"] for found in read_rows(tmp_path / "profiles.jsonl")] == [2]


def test_a_new_run_begins_anew_even_over_lines_that_are_none(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"\0\0\n[]\n")
    write(tmp_path, row(1))
    assert [found["step"] for found in read_rows(tmp_path / "metrics.jsonl")] == [1]


def test_a_half_written_last_line_is_survived(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(tmp_path, row(1), row(2))
    path.write_text(path.read_text() + '{"step": 3, "lo')
    assert [found["step"] for found in read_rows(path)] == [1, 2]
    write(tmp_path, row(3))
    assert [json.loads(line)["step"] for line in path.open()] == [1, 2, 3]


@pytest.mark.parametrize("line", ["nonsense", "[1]", "{}", '{"step": "1"}', "\0\0\0", "[" * 99999])
def test_another_broken_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    write(tmp_path, row(1), row(2))
    path.write_text(f"{line}\n" + path.read_text())
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 1 is no row of metrics"):
        read_rows(path)


def test_tensorboard_shows_quantities_and_each_step_once(tmp_path):
    write(tmp_path, *(row(step, loss=step) for step in (1, 2, 3)))
    write(tmp_path, row(2, loss=8.0), row(3, loss=9.0))
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value, event.wall_time) for event in board.Scalars("loss")] == [
        (1, 1.0, 1e9 + 1),
        (2, 8.0, 1e9 + 2),
        (3, 9.0, 1e9 + 3),
    ]
    (tmp_path / "tensorboard" / "teacher").mkdir()  # of another training: not ours to remove
    write(tmp_path, row(1))
    files = sorted(path.name.split(".")[0] for path in (tmp_path / "tensorboard").iterdir())
    assert files == ["events", "teacher"]


def test_rows_that_arrived_are_forgotten(tmp_path):
    hub, cursor = MetricsHub(), 0
    for step in range(100):
        hub.post(row(step))
        rows = hub.since(cursor)
        assert [found["step"] for found in rows] == [step]
        cursor += len(rows)
    assert len(hub._rows) <= 1
    assert hub.since(cursor) == []
    assert hub._rows == []


def test_a_full_disk_is_one_sentence_and_the_lines_before_stay(tmp_path):
    """The operating system's own refusal: files over 4 KiB cannot be written in the child."""
    script = f"""
import resource, signal, sys
from pathlib import Path
from common.errors import InputError
from common.exchange.metrics import MetricsLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
log = MetricsLog(Path({str(tmp_path)!r}))
try:
    for step in range(1, 1000):
        log.write([{{"step": step, "loss": 0.5}}])
except InputError as error:
    print(error)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert f"{tmp_path}: metrics cannot be written: File too large" in done.stdout
    assert done.stderr == ""
    steps = [found["step"] for found in read_rows(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 20
