"""A run in `ordered` mode that goes on from a snapshot is the run that was never stopped."""

import shutil

import pytest
from building.runs import go, rows_of

from common.artifacts.backbone_file import load_backbone
from common.files.snapshots import Snapshots
from common.files.tensors import state_digest
from deploy.run_folder.workspace import Workspace

TIMES = ("time", "pid", "images_per_second")


def numbers_of(workspace):
    """Everything in the rows that a clock has no part in."""
    return [
        {
            key: value
            for key, value in row.items()
            if key not in TIMES and not key.startswith(("seconds/", "teacher/", "buffer/"))
        }
        for row in rows_of(workspace)
    ]


@pytest.mark.parametrize(
    ("max_staleness", "publish_every", "versions"), [(2, 1, [3, 4]), (3, 2, [2, 4])]
)
def test_leases_are_pinned_to_the_versions_that_they_would_have_had(
    run_in, tmp_path, max_staleness, publish_every, versions
):
    settings = ("learner.ordered=true", "learner.steps=7", "learner.checkpoint_every=5")
    bounds = (f"learner.max_staleness={max_staleness}", f"learner.publish_every={publish_every}")
    config, whole = run_in(*settings, *bounds, "rollout.workers=2", name="whole")
    go((config, whole))
    assert {row["lag_max"] for row in rows_of(whole)} >= {max_staleness}
    found, _ = Snapshots(whole.snapshots).load(5)
    assert sorted(map(int, found["versions"])) == versions
    shutil.copytree(whole.root, tmp_path / "cut", symlinks=True)
    cut = Workspace(tmp_path / "cut")
    facts, _ = go((config, cut), resume_from=5)
    assert facts["resumed"]
    assert numbers_of(cut) == numbers_of(whole)
    for name in ("student", "student_ema"):
        models = [load_backbone(getattr(of, name))[0] for of in (cut, whole)]
        assert state_digest(models[0]) == state_digest(models[1])
