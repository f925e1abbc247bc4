"""A copy of a run's finished files somewhere else, kept while the run goes on.

The run works in its folder and never waits: a thread copies what has changed. A snapshot's facts,
without which it is none, come after its tensors, and snapshots after the rows of metrics that were
on disk when they were made, so that whoever goes on from the copy misses none.
"""

import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from common.errors import InputError, RunFailed
from common.files.snapshots import FACTS
from deploy.run_folder.remote import TROUBLE, Remote, reason, tried
from deploy.run_folder.workspace import Workspace

ROUND_SECONDS = 15.0
SNAPSHOTS = "snapshots/"
PRUNED = (SNAPSHOTS, "milestones/", "rollouts/")
"""Folders of which the run removes what it does not keep."""


class Mirror:
    """Copies in the background while the block lasts, and once more at its end."""

    def __init__(self, url: str, workspace: Workspace, say: Callable[[str], object]) -> None:
        """
        Raises:
            InputError: nothing can be stored at `url`.
        """
        self._remote = Remote(url)
        self._workspace = workspace
        self._say = say
        self._copied: dict[str, tuple[int, int]] = {}
        self._has_failed = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def fetch(self) -> None:
        """What a run left there, newest snapshot and all, into a folder that has no run.

        Raises:
            InputError: it cannot be fetched; the folder has no run still.
        """
        if self._workspace.has_run():
            return
        root = self._workspace.root
        try:
            names = self._remote.names()
            whole = [name.rpartition("/")[0] for name in names if _is_facts(name)]
            for name in [*_wanted(names, max(whole, default=""))]:
                self._remote.get(name, root / name)
        except TROUBLE as error:
            for path in self._workspace.traces():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise InputError(f"--mirror {self._remote.url}: {reason(error)}") from None
        if whole:
            self._say(f"fetched {max(whole)} of {self._remote.url}")

    def require_free(self) -> None:
        """For a run that begins anew.

        Raises:
            InputError: another one's files are there, which would be replaced.
        """
        names = self._remote.names()
        found = [name for name in names if name == "metrics.jsonl" or name.startswith(SNAPSHOTS)]
        if found:
            raise InputError(
                f"--mirror {self._remote.url}: holds a run already ({found[0]}); choose another "
                "URL, go on with --resume, or replace it with --restart"
            )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """
        Raises:
            RunFailed: the run ended well, and its copy is not whole.
        """
        self._ended.set()
        self._thread.join()
        failure = tried(self._round)
        if not isinstance(failure, Exception):
            return
        sentence = (
            f"not everything could be copied to {self._remote.url}: {reason(failure)}; "
            f"{self._workspace.root} has all of it"
        )
        if error is not None and not (isinstance(error, SystemExit) and not error.code):
            self._say(f"warning: {sentence}")  # after which comes why the run ended
        else:
            raise RunFailed(sentence)

    def _work(self) -> None:
        while not self._ended.wait(ROUND_SECONDS):
            failure = tried(self._round)
            if isinstance(failure, Exception) and not self._has_failed:
                self._say(
                    f"warning: {self._remote.url}: {reason(failure)}; it is tried again, and the "
                    "run goes on"
                )
            self._has_failed = isinstance(failure, Exception)

    def _round(self) -> None:
        """Copy what has changed, and remove what the run does not keep."""
        if not self._workspace.root.is_dir():
            raise OSError(f"{self._workspace.root} is not there")
        files = dict(self._files())
        for name, path in files.items():
            try:
                found = path.stat()
            except FileNotFoundError:  # was pruned meanwhile
                continue
            state = found.st_mtime_ns, found.st_size
            if self._copied.get(name) != state:
                self._remote.put(path, name)
                self._copied[name] = state
        if files:
            self._prune(files.keys())

    def _prune(self, kept: Collection[str]) -> None:
        gone = [n for n in self._remote.names() if n.startswith(PRUNED) and n not in kept]
        for name in sorted(gone, key=lambda name: not _is_facts(name)):  # facts first
            self._remote.drop(name)
            self._copied.pop(name, None)

    def _files(self) -> Iterator[tuple[str, Path]]:
        """Names and paths of what is finished, in the order in which it is copied."""
        workspace, root = self._workspace, self._workspace.root
        snapshots = [path for path in workspace.snapshots.glob("step-*/*") if path.is_file()]
        made = (workspace.config, workspace.clusters, workspace.classifier, *workspace.traces())
        for path in made:
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                is_own = file.is_file() and not file.is_symlink()
                if is_own and path != workspace.snapshots and not file.name.startswith("."):
                    yield str(file.relative_to(root)), file
        for file in sorted(snapshots, key=lambda file: (file.parent.name, file.name == FACTS)):
            yield str(file.relative_to(root)), file


def _is_facts(name: str) -> bool:
    return name.startswith(SNAPSHOTS) and name.endswith(f"/{FACTS}")


def _wanted(names: list[str], newest: str) -> Iterator[str]:
    """All, but of the snapshots the newest alone."""
    for name in names:
        if not name.startswith(SNAPSHOTS) or name.rpartition("/")[0] == newest:
            yield name
