"""A copy of a run's finished files somewhere else, kept while the run goes on.

The run works in its folder and never waits: a thread copies what has changed. A snapshot's facts,
without which it is none, come after its tensors, and snapshots after the rows of metrics that were
on disk when they were made, so that whoever goes on from the copy misses none: rows may move into
a part while the file that they were in is copied, so the parts are looked for once more then.
"""

import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from common.background import Background
from common.errors import InputError, RunFailed
from deploy.run_folder.copied_files import copied_files, metric_parts
from deploy.run_folder.copying import Copy
from deploy.run_folder.fetching import (
    ROLLOUTS,
    SNAPSHOTS,
    fetch,
    is_facts,
    whole_files,
    without_older_snapshots,
)
from deploy.run_folder.post import Post
from deploy.run_folder.remote import Remote, reason, tried
from deploy.run_folder.synced import Synced
from deploy.run_folder.workspace import Workspace

ROUND_SECONDS = 15.0
QUIET_SECONDS = 5.0
"""After so long the last copies are worth a word."""


class Mirror(Background):
    """Copies in the background while the block lasts, and once more at its end; what is asked of
    the run there reaches its folder."""

    def __init__(
        self,
        remote: Remote,
        workspace: Workspace,
        say: Callable[[str], object],
        *,
        command: str = "distill",
        is_complete: bool = False,
        pause: float = ROUND_SECONDS,
    ) -> None:
        """`is_complete` is with what a run begins with: tokens, models, all of the folder; `pause`
        are seconds between two rounds."""
        super().__init__("mirror")
        self._remote = remote
        self._workspace = workspace
        self._say = say
        self._is_complete = is_complete
        self._pause = pause
        self._synced = Synced(workspace.root, remote.url)
        self._copy = Copy(remote, self._synced, command)
        self._post = Post(remote, workspace.root, self._copy.is_ours, pause)
        self._seen: set[str] = set()
        self._superseded: set[str] = set()
        self._before = ""
        self._has_failed = False
        self._failure: object = None
        """Of the last round."""
        self._is_done = threading.Event()
        """Set after it: a thread whose join a signal interrupts counts as ended (Python 3.11)."""

    def is_there(self) -> bool:
        """Whether anything was copied there.

        Raises:
            InputError: as `fetch`.
        """
        return self._copy.found() is not None

    def has_tokens(self) -> bool:
        """Whether what is there is all of a run, and not what a `--mirror` copies.

        Raises:
            InputError: as `fetch`.
        """
        manifest = self._copy.found()
        return manifest is not None and manifest.has_tokens

    def fetch(self, *, snapshots: bool = True, all_snapshots: bool = False) -> None:
        """What is there and not here; of the snapshots the newest, or all, or neither them nor
        kept rollouts.

        Raises:
            InputError: it cannot be fetched, or another command is at work there.
        """
        if (manifest := self._copy.found()) is None:
            return
        names = whole_files(self._remote, manifest)
        wanted = names if all_snapshots else without_older_snapshots(names)
        if snapshots:
            self._superseded = set(names) - set(wanted)
            self._before = max(filter(is_facts, wanted), default="")
        else:
            wanted = [name for name in wanted if not name.startswith((SNAPSHOTS, ROLLOUTS))]
        here, had_run = self._here(), self._workspace.has_run()
        if not self._is_complete:  # what does not belong to the run is as somebody put it here
            runs = {path.name for path in self._workspace.traces()}
            own = {name for name in here if name.partition("/")[0] not in runs}
            here = {name: path for name, path in here.items() if name not in own}
            wanted = [name for name in wanted if name not in own]
        try:
            fetch(self._remote, manifest, self._synced, self._workspace.root, here, wanted)
        except InputError:
            if not had_run:  # half a run is none
                for path in self._workspace.traces():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise
        if snapshots and self._before and not had_run:
            self._say(f"fetched {self._before.rpartition('/')[0]} of {self._remote.url}")

    def require_free(self) -> None:
        """For a run that begins anew.

        Raises:
            InputError: another one's files are there, which would be replaced, or another command
                is at work there.
        """
        manifest = self._copy.found()
        names = manifest.names() if manifest else ()
        found = [name for name in names if name == "metrics.jsonl" or name.startswith(SNAPSHOTS)]
        if found:
            raise InputError(
                f"{self._remote}: holds a run already ({found[0]}); choose another URL, go on with "
                "--resume, or replace it with --restart"
            )

    def replace(self) -> None:
        """For a run that throws away what is there, once it has a snapshot of its own.

        Raises:
            InputError: another command is at work there.
        """
        if (manifest := self._copy.found()) is not None:
            self._superseded = set(manifest.names())

    def __enter__(self) -> Self:
        """
        Raises:
            InputError: nothing can be stored there.
        """
        self._remote.require_writable()
        self._post.discard()
        self._seen = {*self._here()}
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Wait for the last copies, and for them through a first signal as well."""
        self._ended.set()
        try:
            if not self._is_done.wait(QUIET_SECONDS):
                self._say(f"copying the last files to {self._remote.url}")
                self._is_done.wait()
        except KeyboardInterrupt:
            self._say(
                f"still copying to {self._remote.url}; a second signal ends that, and "
                f"{self._workspace.root} has all of it"
            )
        super().__exit__(kind, error, at)

    def _finish(self, error: BaseException | None) -> None:
        """
        Raises:
            RunFailed: the run ended well, and its copy is not whole.
        """
        if not isinstance(failure := self._failure, Exception):
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
        with self._post:
            while not self._ended.wait(self._pause):
                failure = tried(self._round)
                if isinstance(failure, Exception) and not self._has_failed:
                    self._say(
                        f"warning: {self._remote.url}: {reason(failure)}; it is tried again, and "
                        "the run goes on"
                    )
                self._has_failed = isinstance(failure, Exception)
        # Here, for a signal would cut an object short that the block's own thread sends.
        self._failure = tried(self._last_round)
        self._is_done.set()

    def _last_round(self) -> None:
        self._round()
        self._post.carry()
        self._copy.close()

    def _round(self) -> None:
        """Copy what has changed, and remove what the run does not keep."""
        if not self._workspace.root.is_dir():
            raise OSError(f"{self._workspace.root} is not there")
        here = self._here()
        snapshots = {name: path for name, path in here.items() if name.startswith(SNAPSHOTS)}
        others = {name: path for name, path in here.items() if name not in snapshots}

        def last() -> dict[str, Path]:
            return {**metric_parts(self._workspace), **snapshots}

        self._copy.update(others, last, self._gone(here), is_live=self._post.has_news())
        self._seen = {*here}

    def _here(self) -> dict[str, Path]:
        return copied_files(self._workspace, is_complete=self._is_complete)

    def _gone(self, here: Mapping[str, Path]) -> list[str]:
        """What was here, or is of a run that this one goes on from or replaces."""
        gone = self._seen - here.keys()
        if max(filter(is_facts, here), default="") > self._before:
            gone |= self._superseded - here.keys()
        return sorted(gone, key=lambda name: not is_facts(name))
