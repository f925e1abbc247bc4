"""Rows that have outgrown their file: every one of them is there once, in parts and file."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.errors import InputError
from common.exchange.metric_files import iterate_rows, read_rows
from common.exchange.metrics import PROFILE, MetricsLog


def write(folder, steps, loss=0.5):
    """A file holds three of the rows, and the events of some."""
    log = MetricsLog(folder, limit=3 * 25)
    for step in steps:
        log.write([{"step": step, "loss": loss}, {"step": step, PROFILE: {"at": step}}])
    log.close()


def shown(path):
    """Steps; a file at a time and all at once are the same."""
    rows = list(iterate_rows(path))
    assert rows == read_rows(path)
    return [row["step"] for row in rows]


def parts(path):
    return sorted(path.with_suffix("").glob("*"))


@pytest.fixture
def path(tmp_path):
    write(tmp_path, range(1, 12))
    return tmp_path / "metrics.jsonl"


def test_full_files_become_parts_and_nothing_is_lost(path):
    names = [part.name.rpartition("-")[0] for part in parts(path)]
    assert names == ["00000001-00000003", "00000004-00000006", "00000007-00000009"]
    assert [json.loads(line)["step"] for line in path.open()] == [10, 11]
    assert shown(path) == [*range(1, 12)]
    assert shown(path.with_name("profiles.jsonl")) == [*range(1, 12)]
    assert len(parts(path.with_name("profiles.jsonl"))) > 1
    board = path.parent / "tensorboard"
    assert len(list(board.iterdir())) > 2
    events = EventAccumulator(str(board)).Reload().Scalars("loss")
    assert [event.step for event in events] == [*range(1, 12)]


@pytest.mark.parametrize("step", [12, 11, 10, 8, 7, 1])
def test_a_run_that_goes_on_from_a_step_cuts_into_the_parts(path, step):
    before = {part: part.read_bytes() for part in parts(path)}
    write(path.parent, range(step, step + 2), loss=0.25)
    assert shown(path) == [*range(1, step + 2)]
    expected = [0.5] * (step - 1) + [0.25] * 2
    assert [row["loss"] for row in read_rows(path)] == expected
    left = [part for part in before if part.exists()]
    assert len(left) == min((step - 1) // 3, 3), "whole parts stay as they are"
    assert all(part.read_bytes() == before[part] for part in left)


def test_a_kill_before_the_file_is_emptied_shows_no_row_twice(path):
    before = path.read_bytes()
    write(path.parent, [12, 13])
    assert [json.loads(line)["step"] for line in path.open()] == [13]
    path.write_bytes(before + b'{"step": 12, "loss": 0.5}\n')
    assert shown(path) == [*range(1, 13)]
    write(path.parent, [12, 13], loss=0.25)
    assert shown(path) == [*range(1, 14)]


def test_a_kill_before_a_cut_part_is_removed_leaves_the_cut_one(path):
    old = parts(path)[2]
    content = old.read_bytes()
    write(path.parent, [9])
    old.write_bytes(content)
    assert shown(path) == [*range(1, 10)]
    write(path.parent, [9, 10])
    assert not old.exists()
    assert shown(path) == [*range(1, 11)]


def test_what_a_later_file_repeats_is_its_own_from_there_on(path):
    """As in a copy that was cut off after a run went back."""
    path.write_text('{"step": 8, "loss": 0.25}\n')
    assert shown(path) == [*range(1, 9)]
    assert read_rows(path)[-1]["loss"] == 0.25


def test_a_damaged_part_is_named(path):
    damaged = parts(path)[1]
    content = damaged.read_bytes()
    for at in (0, len(content) // 2, len(content) - 1):
        damaged.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(InputError, match=f"{damaged} is damaged: .*steps 4 to 6"):
            read_rows(path)
    damaged.write_bytes(content[:-3])
    with pytest.raises(InputError, match=f"{damaged} is damaged"):
        write(path.parent, [5])
    write(path.parent, [1])  # throws it away
    assert shown(path) == [1]
