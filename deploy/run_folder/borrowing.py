"""Run folders that share what they start from: links to one run's files, no copies."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import InputError
from deploy.run_folder.workspace import Workspace


def shared(workspace: Workspace) -> tuple[Path, ...]:
    """What a distillation starts from."""
    return (
        workspace.tokenizer,
        workspace.train_tokens,
        workspace.test_tokens,
        workspace.teacher_tokens,
        workspace.teacher,
        workspace.student_before,
        workspace.classifier,
    )


def link(source: Path, folder: Path) -> list[Path]:
    """Let `folder` read the files of `source` in place; returns the links that were made.

    Files that are in `folder` already stay; what is written there later replaces a link, and never
    the file behind it.
    """
    made = []
    for theirs, ours in zip(shared(Workspace(source)), shared(Workspace(folder)), strict=True):
        if theirs.exists() and not (ours.exists() or ours.is_symlink()):
            ours.parent.mkdir(parents=True, exist_ok=True)
            ours.symlink_to(os.path.relpath(theirs, ours.parent))
            made.append(ours)
    return made


@contextmanager
def borrowed(source: Path, workspace: Workspace) -> Iterator[None]:
    """Links for the block; they stay where a run came of it.

    Raises:
        InputError: `source` is no other run folder, or `workspace` has files of its own.
    """
    root, theirs = workspace.root, shared(Workspace(source.resolve()))
    if source.resolve() == root or not any(path.exists() for path in theirs):
        raise InputError(
            f"--from {source}: no other run folder with tokens and models; the new run is to be in "
            f"{root} (--out)"
        )
    for ours, given in zip(shared(workspace), theirs, strict=True):
        if ours.exists() and given.exists() and not ours.samefile(given):
            raise InputError(
                f"{ours}: is there already and is not that of --from {source}; choose a new --out"
            )
    made = link(source.resolve(), root)
    try:
        yield
    finally:
        if not workspace.has_run():
            for path in made:
                path.unlink(missing_ok=True)
            for folder in {path.parent for path in made} - {root}:
                if not any(folder.iterdir()):
                    folder.rmdir()
