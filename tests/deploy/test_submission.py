"""What `ray job submit --working-dir .` uploads from here, by Ray's own packaging, and what its
environment means to a command that starts a cluster of its own."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from deploy.backend.session import secure_environment

ROOT = Path(__file__).parents[2]
FOLDERS = {"common", "constraints", "deploy", "learner", "rollout", "studies", "teacher_server"}
FILES = {
    *(".gitignore", ".pre-commit-config.yaml", ".rayignore", "CHANGELOG.md", "CITATION.cff"),
    *("CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md"),
    *("mkdocs.yml", "pyproject.toml"),
}
HOME = (
    *("teacher.safetensors", "codes.npy", "train.parquet", "deep/below/last.ckpt", ".env"),
    *("deep/id.pem", "runs/a/config.toml", "data/1/1.png", "pretrained/x.bin", ".venv/bin/python"),
    *("tests/test_it.py", "studies/a/curves.png", "build/lib/a.py", "common/__pycache__/a.pyc"),
)
SENT = ("my.toml", "my_plugins/objectives/own.py", "common/data/tokens.py", "studies/a/study.toml")


def uploaded(folder: Path, package: Path) -> dict[str, int]:
    """Sizes by name of the files that Ray would send."""
    from ray._private.runtime_env.packaging import create_package

    create_package(str(folder), package, include_gitignore=True)
    entries = zipfile.ZipFile(package).infolist()
    return {entry.filename: entry.file_size for entry in entries if not entry.is_dir()}


@pytest.fixture
def checkout(tmp_path):
    """What git keeps of this folder, elsewhere."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this copy of the files is no checkout")
    for name in filter(None, done.stdout.decode().split("\0")):
        place = tmp_path / "checkout" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(ROOT / name, place)
    return tmp_path / "checkout"


def test_a_clean_checkout_is_sent_without_what_no_node_reads(checkout, tmp_path):
    sent = uploaded(checkout, tmp_path / "package.zip")
    below = [name.partition("/") for name in sent]
    assert {top for top, slash, _ in below if slash} == FOLDERS
    assert {top for top, slash, _ in below if not slash} <= FILES
    assert "deploy/configs/cifar10.toml" in sent
    assert {Path(name).suffix for name in sent if name.startswith("studies/")} == {".toml"}
    assert sum(sent.values()) < 3 * 2**20


def test_data_weights_and_secrets_stay_at_home_and_ones_own_code_does_not(tmp_path):
    folder = tmp_path / "checkout"
    for name in (*HOME, *SENT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, folder / name)
    sent = uploaded(folder, tmp_path / "package.zip").keys()
    assert sent - {".gitignore", ".rayignore"} == set(SENT)


@pytest.mark.parametrize(
    ("given", "is_made"),
    [
        ({}, True),
        ({"RAY_AUTH_MODE": "token"}, True),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "mine"}, False),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/a/token"}, False),
        ({"RAY_AUTH_MODE": "disabled"}, False),
    ],
)
def test_a_cluster_of_ones_own_has_a_token_whatever_a_submission_left_behind(
    monkeypatch, given, is_made
):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what is set below is taken back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    secure_environment()
    made = os.environ.get("RAY_AUTH_TOKEN", "")
    assert (len(made) == 64) is is_made
    assert os.environ["RAY_AUTH_MODE"] == given.get("RAY_AUTH_MODE", "token")
