"""A student trained again on the rollouts that a run kept."""

import shutil

import pyarrow as pa
import pytest
from building.one_pass import open_pairs
from building.runs import go, rows_of

from common.errors import InputError
from common.exchange.assembly import Share
from common.exchange.segments import Segments, SegmentWriter
from learner.keeping import KeptRecords


def record(lease, rows=2, generation=1, **columns):
    facts = {"lease": str(lease), "generation": str(generation), "oldest": "0"}
    columns = {"id": [10 * lease + row for row in range(rows)], **columns}
    return pa.RecordBatch.from_pydict(columns).replace_schema_metadata(facts)


def test_records_come_back_as_they_were_and_the_later_of_two_counts(tmp_path):
    writer = SegmentWriter(tmp_path, 0, 1e9)
    first, second = record(0), record(1)
    for each in (first, second):
        writer.add(each)
    writer.flush()
    writer.flush()  # there is nothing
    again = record(1, generation=2, reward=[0.5, 1.5])  # after a restart, with another column
    writer.add(record(2))
    writer.add(again)
    writer.flush()
    assert len(list(tmp_path.glob("*.arrow"))) == 3
    (tmp_path / "000009-0.arrow").write_bytes(b"being written when its process died")
    found = Segments(tmp_path)
    assert found.leases == [0, 1, 2]
    assert found.record(0).equals(first, check_metadata=True)
    assert found.record(1).equals(again, check_metadata=True)
    found.require(2)
    with pytest.raises(InputError, match=r"have 2 sequences, but rollout\.batch_size is 4"):
        found.require(4)


def test_the_newest_records_stay_within_the_room_that_they_have(tmp_path):
    writer = SegmentWriter(tmp_path, 1, 1.0)
    for lease in range(3):
        writer.add(record(lease))
        writer.flush()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["000002-1.arrow", "000002-1.json"]
    assert Segments(tmp_path).leases == [2]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("000000-0.arrow", b"ARROW1", "other contents than were written"),
        ("000000-0.json", b'{"format": "varkd-segment-1", "leases": ["a"]}', "no facts of a segm"),
        ("000000-0.json", b"[]", "no facts of a segment of ours"),
    ],
)
def test_a_damaged_segment_is_named(tmp_path, name, content, complaint):
    writer = SegmentWriter(tmp_path, 0, 1e9)
    writer.add(record(0))
    writer.flush()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is damaged: {complaint}"):
        Segments(tmp_path).record(0)


class Source:
    def take(self, step, **how):
        return Share([record(step)], [step])


def test_nothing_is_written_before_the_folder_is_the_runs(tmp_path):
    """A batch is fetched while the one before is trained, and the first step may be refused."""
    kept = KeptRecords(Source(), SegmentWriter(tmp_path, 0, 1e9), 1)
    written = []
    for step in (5, 6, 7):
        kept.take(step, shard=0, shards=1, timeout=0)
        written.append(len(list(tmp_path.glob("*.arrow"))))
    assert written == [0, 0, 1]
    kept.flush()
    assert Segments(tmp_path).leases == [5, 6, 7]


def test_the_student_is_the_same_and_learns_on_in_further_epochs(run_in):
    _, whole = run = run_in("learner.ordered=true", "buffer.keep_gb=1", name="whole")
    go(run)
    replay = ("learner.ordered=true", f"rollout.replay={whole.rollouts}", "buffer.keep_gb=1")
    config, again = run_in(*replay, "learner.checkpoint_every=6", "learner.steps=9", name="again")
    assert not config.scoring
    assert not config.samples_student
    go((config, again))
    assert not again.rollouts.exists(), "what was kept is not kept again"
    rows = rows_of(again)
    assert [row["loss"] for row in rows[:6]] == [row["loss"] for row in rows_of(whole)]
    assert len(rows) == 9
    shutil.rmtree(again.snapshots / "step-00000009")
    facts, _ = go((config, again), resume=True)
    assert facts["resumed"]
    assert [row["loss"] for row in rows_of(again)] == [row["loss"] for row in rows]
    other = run_in(*replay, "objective.kind=gkd", name="other")
    go(other)
    losses = [row["loss"] for row in rows_of(other[1])]
    assert len(losses) == 6, "a finite set of rollouts serves another objective"
    assert losses != [row["loss"] for row in rows[:6]]


def test_the_teachers_own_samples_serve_again_as_a_finite_set(run_in):
    """SeqKD: rows of the teacher's own, with its signal and for their codes alone."""
    teacher = ("contexts.sources.teacher.ratio=1", "contexts.sources.teacher.kind=teacher")
    none = ("contexts.sources.data.ratio=0", "contexts.sources.student.ratio=0")
    seqkd = (*teacher, *none, "objective.kind=kd", "learner.ordered=true", "learner.steps=2")
    whole = run_in(*seqkd, "buffer.keep_gb=1", name="whole")
    go(whole)
    replay = f"rollout.replay={whole[1].rollouts}"
    again, other = (run_in(*seqkd, replay, *more, name=str(more)) for more in ((), MORE))
    go(again)
    go(other)
    losses = [[row["loss"] for row in rows_of(run[1])] for run in (whole, again, other)]
    assert losses[1] == losses[0]
    assert len(losses[2]) == 5


MORE = ("objective.kind=mle", "learner.steps=5")
"""Epochs of the same rows."""


def test_pairs_of_noise_and_codes_serve_a_one_pass_student_again(one_pass_run, prepared, tmp_path):
    config, whole = one_pass_run
    again = open_pairs(prepared, tmp_path / "again", f"rollout.replay={whole.rollouts}")
    (again[1].root / "tokens/teacher.parquet").symlink_to(whole.root / "tokens/teacher.parquet")
    go(again)
    assert len(rows_of(whole)) == config.learner.steps
    assert [row["loss"] for row in rows_of(again[1])] == [row["loss"] for row in rows_of(whole)]


def test_what_cannot_be_replayed_is_refused(run_in, tmp_path):
    with pytest.raises(InputError, match=r"no kept rollouts are there; .* buffer\.keep_gb set"):
        go(run_in(f"rollout.replay={tmp_path}"))
