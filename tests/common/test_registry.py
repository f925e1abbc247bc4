"""The directory is the registry, as it is at the moment."""

import os
import sys

import pytest

from common.config.plugin_path import use_plugins
from common.config.registry import kinds, load_plugin
from common.errors import InputError


@pytest.fixture
def objectives(tmp_path):
    """The folder of objectives of a package that is in use."""
    folder = tmp_path / "package_that_grows" / "objectives"
    folder.mkdir(parents=True)
    use_plugins([str(folder.parent)], [])
    yield folder
    use_plugins([], [])
    sys.path.remove(str(tmp_path.resolve()))


def put(folder, name, time):
    """A file whose folder was changed at `time`: on some file systems two changes share a tick."""
    (folder / f"{name}.py").touch()
    os.utime(folder, (time, time))


def test_files_that_come_while_a_process_runs_are_listed(objectives):
    ours = set(kinds("learner.objectives"))
    assert {"varkd", "kd"} <= ours
    put(objectives, "first", 1)
    assert set(kinds("learner.objectives")) == ours | {"first"}
    put(objectives, "second", 2)
    assert set(kinds("learner.objectives")) == ours | {"first", "second"}
    put(objectives, "kd", 3)
    with pytest.raises(InputError, match=r"package_that_grows\.objectives\.kd and .*; rename"):
        kinds("learner.objectives")
    use_plugins([], [])
    assert set(kinds("learner.objectives")) == ours


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def broken(:", r"SyntaxError: invalid syntax \(own.py, line 1\)"),
        ("from common import nothing_such", r"ImportError: .*\(line 1 of .*own\.py\)"),
        ("\nwidth = hight", r"NameError: .*\(line 2 of .*own\.py\)"),
        ("from common.errors import InputError\nraise InputError('own words')", r"^own words"),
    ],
)
def test_a_users_file_that_cannot_be_imported_is_named_as_the_mistake(objectives, text, said):
    (objectives / "own.py").write_text(text)
    sys.modules.pop("package_that_grows.objectives", None)  # of the test before, in its own folder
    with pytest.raises(InputError, match=said):
        load_plugin("learner.objectives", "own")
