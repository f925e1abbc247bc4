"""A run in `ordered` mode that goes on from a snapshot is the run that was never stopped."""

import shutil

import pytest
from building.launchers import Replacing
from building.runs import go, rows_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.artifacts.backbone_file import load_backbone
from common.exchange.metrics import MetricsHub
from common.files.snapshots import Snapshots
from common.files.tensors import state_digest
from deploy.run_folder.records import read_windows
from deploy.run_folder.workspace import Workspace

ORDERED = ("learner.ordered=true", "learner.steps=7", "learner.checkpoint_every=5")
TIMES = ("time", "pid", "images_per_second")
PACES = ("seconds/", "lease_seconds/", "teacher/", "buffer/")


def numbers_of(workspace):
    """Everything in the rows that a clock has no part in."""
    return [
        {key: value for key, value in row.items() if key not in TIMES and not key.startswith(PACES)}
        for row in rows_of(workspace)
    ]


@pytest.mark.parametrize(
    ("max_staleness", "publish_every", "versions"), [(2, 1, [3, 4]), (3, 2, [2, 4])]
)
def test_leases_are_pinned_to_the_versions_that_they_would_have_had(
    run_in, tmp_path, max_staleness, publish_every, versions
):
    bounds = (f"learner.max_staleness={max_staleness}", f"learner.publish_every={publish_every}")
    config, whole = run_in(*ORDERED, *bounds, "rollout.workers=2", name="whole")
    go((config, whole))
    (shared := tmp_path / "shared").mkdir()
    config, _ = run_in(*ORDERED, *bounds, "rollout.workers=2", f"rollout.weights_folder={shared}")
    assert {row["lag_max"] for row in rows_of(whole)} >= {max_staleness}
    found, _ = Snapshots(whole.snapshots).load(5)
    assert sorted(map(int, found["versions"])) == versions
    shutil.copytree(whole.root, tmp_path / "cut", symlinks=True)
    cut = Workspace(tmp_path / "cut")
    facts, _ = go((config, cut), resume_from=5)
    assert facts["resumed"]
    assert not [*shared.iterdir()], "versions in files, which go with the run"
    assert numbers_of(cut) == numbers_of(whole)
    for name in ("student", "student_ema"):
        models = [load_backbone(getattr(of, name))[0] for of in (cut, whole)]
        assert state_digest(models[0]) == state_digest(models[1])


class Unread(MetricsHub):
    """As a driver reads it that is killed after some rows."""

    def since(self, cursor):
        return [row for row in super().since(cursor) if row["step"] <= 3]


def test_rows_that_nobody_had_written_come_with_the_snapshot(run_in, tmp_path):
    config, whole = run_in(*ORDERED, "learner.profile_every=2", name="whole")
    go((config, whole), launch=lambda: Replacing({MetricsHub: Unread}))
    assert [row["step"] for row in rows_of(whole)] == [1, 2, 3]
    assert [window["first"] for window in read_windows(whole.profiles)] == [1]
    shutil.copytree(whole.root, tmp_path / "cut", symlinks=True)
    for name, how in (("cut", {"resume_from": 5}), ("whole", {"resume": True})):
        workspace = Workspace(tmp_path / name)
        go((config, workspace), **how)
        assert [row["step"] for row in rows_of(workspace)] == list(range(1, 8))
        assert [window["first"] for window in read_windows(workspace.profiles)] == [1, 3, 5, 7]
        board = EventAccumulator(str(workspace.board)).Reload()
        assert [event.step for event in board.Scalars("loss")] == list(range(1, 8))


def test_a_snapshot_is_stored_when_the_last_one_is_old_enough(run_in):
    """Without a word about steps; of steps of milliseconds all are slow enough for this."""
    config, workspace = run_in("learner.steps=3", "learner.checkpoint_minutes=1e-6")
    go((config, workspace))
    assert Snapshots(workspace.snapshots).steps() == [2, 3]
    config, workspace = run_in("learner.steps=3", name="default")
    go((config, workspace))
    assert Snapshots(workspace.snapshots).steps() == [3]
