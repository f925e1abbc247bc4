"""`varkd options` answers without importing torch, once the reference was read off the models."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = """
import sys
from deploy.main import main
try:
    main(["options", *sys.argv[1:]])
finally:
    sys.stderr.write(" ".join(sorted({"torch", "pydantic"} & sys.modules.keys())))
"""


def options(cache: Path, root: Path, *words: str) -> tuple[str, str]:
    """(what is listed, which of the slow libraries were imported for it)."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words],
        capture_output=True,
        text=True,
        env=environment,
        cwd=root,
        check=True,
    )
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """The code in a place of its own, where it may be changed."""
    root = tmp_path_factory.mktemp("code")
    for package in ("common", "rollout", "teacher_server", "learner", "deploy"):
        shutil.copytree(ROOT / package, root / package)  # with what was compiled
    return root


@pytest.fixture(scope="module")
def kept(tmp_path_factory, copied):
    cache = tmp_path_factory.mktemp("cache")
    return cache, options(cache, copied)


@pytest.fixture
def listed(server, tmp_path):
    """What is listed where everything is imported anyway."""
    folder = tmp_path / "here"
    folder.mkdir()

    def run(cache: Path) -> str:
        done = server.run(["options"], folder, environment={"XDG_CACHE_HOME": str(cache)})
        assert (done.code, done.err) == (0, "")
        return done.out

    return run


def test_the_second_time_nothing_slow_is_imported_and_the_same_is_said(kept, copied):
    cache, (first, imported) = kept
    assert imported == "pydantic torch"
    assert options(cache, copied) == (first, "")
    assert options(cache, copied, "rollout.workers")[0] in first
    assert options(cache, copied, "--search", "staleness")[1] == ""


def test_a_damaged_file_is_read_anew(kept, listed, tmp_path):
    cache = tmp_path / "cache"
    assert listed(cache) == kept[1][0]
    (file,) = (cache / "varkd").iterdir()
    whole = file.read_text()
    for damage in ("", "[{]", "[]x", '[{"key": "a"}]', "3"):
        file.write_text(damage)
        assert listed(cache) == kept[1][0], damage
        assert file.read_text() == whole, damage


def test_a_folder_that_cannot_be_made_costs_only_time(kept, listed, tmp_path):
    (tmp_path / "file").touch()
    assert listed(tmp_path / "file") == kept[1][0]


def test_a_change_of_the_code_is_seen(kept, copied):
    before, imported = options(kept[0], copied, "buffer")
    assert imported == "", "it is kept"
    config = copied / "deploy" / "sections.py"
    text, times = config.read_text(), config.stat()
    config.write_text(text.replace("rollout has to wait.", "rollout must wait."))
    try:
        after, imported = options(kept[0], copied, "buffer")
    finally:
        config.write_text(text)
        os.utime(config, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert imported == "pydantic torch"
    assert after == before.replace("rollout has to wait.", "rollout must wait.") != before
