"""Fixtures of several files here: a run with a one-pass student."""

import shutil

import pytest
from building.one_pass import distilled

from deploy.run_folder.workspace import Workspace


@pytest.fixture(scope="session")
def one_pass_run(prepared, tmp_path_factory):
    """A finished run; no test changes its folder."""
    return distilled(prepared, tmp_path_factory.mktemp("pairs") / "run", "buffer.keep_gb=1")


@pytest.fixture
def one_pass_copy(one_pass_run, tmp_path):
    """The same run in a folder of the test's own."""
    shutil.copytree(one_pass_run[1].root, tmp_path / "run", symlinks=True)
    return one_pass_run[0], Workspace(tmp_path / "run")
