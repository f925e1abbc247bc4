"""Fixtures of run folders: what a run reads is made once, and borrowed or copied by each test."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from building.runs import BASE, TINY, go
from rich.console import Console

from common.files.snapshots import Snapshots
from deploy.config import RunConfig
from deploy.run_folder.opening import open_run
from deploy.run_folder.workspace import Workspace
from deploy.stages.learner_rank import run_resources
from deploy.stages.pretrain import pretrain_model
from deploy.stages.tokenize import tokenize
from learner.process_group import SingleProcess


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with tokens, teacher, student and clusters of real digits, made once."""
    root = tmp_path_factory.mktemp("prepared")
    config, workspace = open_run(Path("smoke"), TINY, root)
    quiet = Console(quiet=True)
    tokenize(config, workspace, quiet, local=True)
    pretrain_model(config, workspace, "teacher", quiet)
    pretrain_model(config, workspace, "student", quiet)
    config.objective.build(run_resources(config, workspace, SingleProcess()))  # keeps clusters
    return root


@pytest.fixture
def run_in(prepared: Path, tmp_path: Path) -> Callable[..., tuple[RunConfig, Workspace]]:
    """A fresh run folder that borrows the prepared files; overrides as on the command line."""

    def build(*overrides: str, name: str = "run") -> tuple[RunConfig, Workspace]:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        for entry in prepared.iterdir():
            if not (root / entry.name).exists():
                (root / entry.name).symlink_to(entry)
        (root / "config.toml").unlink(missing_ok=True)
        return open_run(Path("smoke"), [*TINY, *overrides], root)

    return build


@pytest.fixture
def own_tokens(
    run_in: Callable[..., tuple[RunConfig, Workspace]],
) -> Callable[..., tuple[RunConfig, Workspace]]:
    """A run whose tokens folder is its own, so that the prepared one stays as it is."""

    def build(*overrides: str, name: str = "run") -> tuple[RunConfig, Workspace]:
        config, workspace = run_in(*overrides, name=name)
        folder = workspace.root / "tokens"
        if folder.is_symlink():
            target = folder.resolve()
            folder.unlink()
            folder.mkdir()
            for entry in target.iterdir():
                (folder / entry.name).symlink_to(entry)
        return config, workspace

    return build


@pytest.fixture(scope="session")
def halves(
    prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[RunConfig, Workspace]]:
    """Runs of 4 steps with snapshots of step 2 and 4, each made once; nothing is borrowed."""

    @cache
    def build(*overrides: str) -> tuple[RunConfig, Workspace]:
        root = tmp_path_factory.mktemp("half")
        shutil.copytree(prepared, root, dirs_exist_ok=True)
        (root / "config.toml").unlink(missing_ok=True)
        run = open_run(Path("smoke"), [*TINY, *BASE, "learner.steps=4", *overrides], root)
        assert go(run)[0]["steps"] == 4
        assert Snapshots(run[1].snapshots).steps() == [2, 4]
        return run

    return build


@pytest.fixture
def half(
    halves: Callable[..., tuple[RunConfig, Workspace]], tmp_path: Path
) -> Callable[..., tuple[RunConfig, Workspace]]:
    """A copy of such a run, for one test."""

    def build(*overrides: str, name: str = "run") -> tuple[RunConfig, Workspace]:
        config, made = halves(*overrides)
        shutil.copytree(made.root, tmp_path / name, symlinks=True)
        return config, Workspace(tmp_path / name)

    return build


@pytest.fixture
def again(tmp_path: Path) -> Callable[..., tuple[RunConfig, Workspace]]:
    """The command as it is given once more in the folder of a run, with other overrides."""

    def build(*overrides: str, name: str = "run") -> tuple[RunConfig, Workspace]:
        root = tmp_path / name
        return open_run(Path("smoke"), [*TINY, *BASE, *overrides], root)

    return build
