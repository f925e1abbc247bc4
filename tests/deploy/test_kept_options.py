"""`varkd options` answers without importing torch, once the reference was read off the models."""

import os
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


def options(cache: Path, *words: str, root: Path = ROOT) -> tuple[str, str]:
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
def kept(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return cache, options(cache)


def test_the_second_time_nothing_slow_is_imported_and_the_same_is_said(kept):
    cache, (first, imported) = kept
    assert imported == "pydantic torch"
    assert options(cache) == (first, "")
    assert options(cache, "rollout.workers")[0] in first
    assert options(cache, "--search", "staleness")[1] == ""


@pytest.mark.parametrize("damage", ["", "[{]", "[]x", '[{"key": "a"}]', "3"])
def test_a_damaged_file_is_read_anew(kept, tmp_path, damage):
    (file,) = (kept[0] / "varkd").iterdir()
    (tmp_path / "varkd").mkdir()
    copy = tmp_path / "varkd" / file.name
    copy.write_text(damage)
    assert options(tmp_path) == kept[1]
    assert copy.read_text() == file.read_text()


def test_a_folder_that_cannot_be_made_costs_only_time(kept, tmp_path):
    (tmp_path / "file").touch()
    assert options(tmp_path / "file") == kept[1]


def test_a_change_of_the_code_is_seen(kept, tmp_path):
    root = tmp_path / "code"
    root.mkdir()
    for package in ("common", "rollout", "teacher_server", "learner", "deploy"):
        subprocess.run(["cp", "-r", str(ROOT / package), str(root)], check=True)
    before = options(kept[0], "buffer", root=root)[0]
    config = root / "deploy" / "config.py"
    text = config.read_text()
    config.write_text(text.replace("rollout has to wait.", "rollout must wait."))
    after, imported = options(kept[0], "buffer", root=root)
    assert imported == "pydantic torch"
    assert after == before.replace("rollout has to wait.", "rollout must wait.") != before
