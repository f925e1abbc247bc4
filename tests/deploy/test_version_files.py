"""The folder of a run's versions: whose it is, and when it goes."""

import pytest
from building.runs import go, tree

from common.errors import InputError
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
