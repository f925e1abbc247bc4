"""Which files of a run folder are copied elsewhere, and in which order."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from common.exchange.metric_files import parts_folder
from common.files.sealed import FACTS
from deploy.run_folder.control_files import FOLDER
from deploy.run_folder.workspace import Workspace

LEFT_OUT = (FOLDER, "tensorboard")
"""Of the folder as a whole: a meeting place (deploy/run_folder/post.py), and what is drawn of the
metrics."""


def copied_files(workspace: Workspace, *, is_complete: bool) -> dict[str, Path]:
    """Path by name of what is finished: of the whole folder, or of what a run makes. Rows of
    metrics come before the snapshots that were made after them, and of a snapshot its facts last.
    """
    root = workspace.root
    if is_complete:
        parts = [path for path in root.glob("*") if path.name not in LEFT_OUT]
    else:
        made = (workspace.config, workspace.clusters, workspace.classifier)
        parts = [*made, *workspace.traces()]
    found = {str(path.relative_to(root)): path for path in _files(parts, links=is_complete)}
    return dict(sorted(found.items(), key=lambda item: (*_rank(item[1]), item[0])))


def metric_parts(workspace: Workspace) -> dict[str, Path]:
    """Path by name of the parts into which rows of metrics were moved until now."""
    folders = [parts_folder(path) for path in (workspace.metrics, workspace.profiles)]
    found = _files((folder for folder in folders if folder.is_dir()), links=False)
    return {str(path.relative_to(workspace.root)): path for path in found}


def _files(parts: Iterable[Path], *, links: bool) -> Iterator[Path]:
    """Of files and folders; `links` are other runs' files that a whole copy has to hold."""
    for part in sorted(parts):
        inside = [part, *part.rglob("*")] if part.is_dir() else [part]
        for path in inside:
            below = path.relative_to(part.parent).parts
            is_hidden = any(name.startswith(".") for name in below)
            if path.is_file() and not is_hidden and (links or not path.is_symlink()):
                yield path


def _rank(path: Path) -> tuple[bool, str, bool]:
    """Snapshots last, one after the other, each with its facts at its end."""
    is_snapshot = path.parent.name.startswith("step-")
    return is_snapshot, path.parent.name if is_snapshot else "", path.name == FACTS
