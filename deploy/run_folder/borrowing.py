"""Run folders that share what they start from: links to one run's files, no copies."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import InputError
from deploy.run_folder.workspace import Workspace

SHARED = (
    *("tokenizer", "train_tokens", "test_tokens", "teacher_tokens"),
    *("teacher", "student_before", "classifier", "reference_features"),
)
"""What a distillation starts from, as a workspace calls it."""
REMADE = {"reference_features"}
"""Of these a run makes its own where they do not fit, and they decide nothing."""


def shared(workspace: Workspace) -> tuple[Path, ...]:
    """The paths of `SHARED`."""
    return tuple(getattr(workspace, name) for name in SHARED)


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
    require_lender(source, workspace)
    root, made = workspace.root, link(source.resolve(), workspace.root)
    try:
        yield
    finally:
        if not workspace.has_run():
            for path in made:
                path.unlink(missing_ok=True)
            for folder in {path.parent for path in made} - {root}:
                with suppress(OSError):  # it holds something, or was taken away
                    folder.rmdir()


def with_files_of(source: Path, workspace: Workspace) -> Workspace:
    """`workspace` as it is while it borrows from `source`, to be read: nothing is written.

    Raises:
        InputError: as `borrowed`.
    """
    require_lender(source, workspace)
    found, theirs = Workspace(workspace.root), Workspace(source.resolve())
    for name in SHARED:
        if getattr(theirs, name).exists() and not getattr(found, name).exists():
            setattr(found, name, getattr(theirs, name))
    return found


def require_lender(source: Path, workspace: Workspace) -> None:
    """Refuse what `borrowed` cannot take files from."""
    root, lender = workspace.root, Workspace(source.resolve())
    theirs = shared(lender)
    if source.resolve() == root or not any(path.exists() for path in theirs):
        raise InputError(
            f"--from {source}: no other run folder with tokens and models; the new run is to be in "
            f"{root} (--out)"
        )
    for name in SHARED:
        ours, given = getattr(workspace, name), getattr(lender, name)
        if name in REMADE:
            continue
        if ours.exists() and given.exists() and not ours.samefile(given):
            raise InputError(
                f"{ours}: is there already and is not that of --from {source}; choose a new --out"
            )
