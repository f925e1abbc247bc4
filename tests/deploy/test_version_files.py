"""The folder of a run's versions: whose it is, and when it goes."""

import pytest
import torch
from building.runs import go, tree

from common.errors import InputError
from common.exchange.packed_weights import pack
from common.exchange.weight_folder import FiledVersions, WeightFolder
from common.exchange.weights import Weights
from common.spec import SequenceSpec
from deploy.planning.hardware import MB
from deploy.planning.resources import Sizing
from deploy.run_folder.version_files import NOTE, version_files
from deploy.run_folder.workspace import Workspace


@pytest.fixture
def shared(tmp_path):
    (folder := tmp_path / "shared").mkdir()
    return folder


@pytest.fixture
def root(tmp_path):
    (folder := tmp_path / "here").mkdir()
    return folder


@pytest.fixture
def config(run_in, shared):
    return run_in(f"rollout.weights_folder={shared}", name="other")[0]


def killed(config, root):
    """What a command leaves that ends at once."""
    left = version_files(config, root)
    folder = left.__enter__()
    (folder / "00000000-x.weights").touch()
    note = (root / NOTE).read_text()
    left.__exit__(None, None, None)
    folder.mkdir()
    (folder / "00000000-x.weights").touch()
    (root / NOTE).write_text(note)
    return folder


def test_a_runs_files_go_with_it_and_those_of_one_that_was_killed_with_the_next(
    config, shared, root, tmp_path
):
    (other := tmp_path / "beside").mkdir()
    left = killed(config, root)
    with version_files(config, other) as theirs, version_files(config, root) as ours:
        assert {*shared.iterdir()} == {theirs, ours}
        assert left not in (theirs, ours)
        (ours / "00000001-x.weights").touch()
    assert not [*shared.iterdir(), *root.iterdir(), *other.iterdir()]


@pytest.mark.parametrize("said", ["../here", "", "varkd-0123456789abcdef/../../here", "\0"])
def test_a_note_that_is_none_of_ours_removes_nothing(config, shared, root, said):
    (root / NOTE).write_text(said)
    (shared / "keep").touch()
    with version_files(config, root):
        assert root.is_dir()
    assert [*shared.iterdir()] == [shared / "keep"]


def test_nothing_is_made_where_versions_are_not_files_or_nobody_samples(run_in, shared, root):
    for overrides in ((), (f"rollout.weights_folder={shared}", f"rollout.replay={root}")):
        with version_files(run_in(*overrides)[0], root) as folder:
            assert folder is None
    assert not [*shared.iterdir(), *root.iterdir()]


@pytest.mark.parametrize("found", ["nothing", "a file"])
def test_a_folder_that_cannot_be_used_is_refused_before_anything_is_there(run_in, tmp_path, found):
    place = tmp_path / "place"
    if found == "a file":
        place.touch()
    config, workspace = run_in(f"rollout.weights_folder={place}")
    before = tree(workspace.root)
    reason = {"nothing": "no such file", "a file": "not a directory"}[found]
    with pytest.raises(InputError, match=rf"rollout.weights_folder: {place}: {reason}.*make it"):
        go((config, workspace))
    assert tree(Workspace(workspace.root).root) == before
    assert place.exists() == (found == "a file")


@pytest.mark.parametrize("bounds", [(0, 1), (3, 2)])
def test_versions_in_files_take_the_disk_that_the_plan_says_and_no_shared_memory(
    run_in, tmp_path, bounds
):
    spec = SequenceSpec(64, 16, (4, 4), 10)
    staleness = [f"learner.max_staleness={bounds[0]}", f"learner.publish_every={bounds[1]}"]
    plain, filed = (
        Sizing(run_in(*staleness, *more)[0], spec)
        for more in ((), (f"rollout.weights_folder={tmp_path}",))
    )
    kept = plain.versions * plain.version_bytes
    assert (plain.shared_bytes - filed.shared_bytes, plain.filed_bytes) == (kept, 0)
    plain_mb, filed_mb = (
        next(need.host_mb for need in sizing.reservations() if need.role == "weights")
        for sizing in (plain, filed)
    )
    assert plain_mb - filed_mb == pytest.approx(kept / MB)
    (folder := tmp_path / "own").mkdir()
    behind = filed.config.schedule().versions_kept
    weights, most = WeightFolder(FiledVersions(behind), folder, behind), 0
    payload = pack(filed.config.models.student.build(spec), torch.float32)
    for version in range(0, 10 * bounds[1], bounds[1]):
        weights.publish(Weights(version, payload))
        most = max(most, sum(path.stat().st_size for path in folder.iterdir()))
    assert filed.filed_bytes <= most == pytest.approx(filed.filed_bytes, rel=0.1), "with headers"
