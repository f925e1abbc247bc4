"""Bring what lies at a URL up to date with a folder, so that it is whole at any moment."""

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from common.files.sealed import Part
from deploy.run_folder.fetching import ROLLOUTS, SNAPSHOTS, known, require_nobody, whole_files
from deploy.run_folder.manifest import Manifest, Writer, read_manifest
from deploy.run_folder.remote import PART, TROUBLE, Remote
from deploy.run_folder.synced import Synced

BEAT_SECONDS = 30.0
TOGETHER = 32
"""Files that are open at once."""
PRUNED = (SNAPSHOTS, "milestones/", ROLLOUTS)
"""Folders in which what no list knows was left by a process that was killed."""

Files = Mapping[str, Path]


class Copy:
    """Of one folder, by one command. Nothing there is changed before there is something to copy."""

    def __init__(self, remote: Remote, synced: Synced, command: str) -> None:
        self._remote = remote
        self._synced = synced
        writer = Writer(synced.folder, command, os.getpid(), socket.gethostname())
        self._manifest = Manifest(writer)
        self._is_begun = False
        self._told = 0.0

    def found(self) -> Manifest | None:
        """The list of what is there, to go on from.

        Raises:
            InputError: it cannot be read, or another command is at work there.
        """
        manifest = known(self._remote)
        if manifest is not None:
            require_nobody(self._remote, manifest, self._synced)
        return manifest

    def is_ours(self) -> bool:
        """Whether the place was taken over, and by nobody else since.

        Raises:
            OSError: somebody else is at work there, or the storage cannot be reached.
            InputError: as `found`.
        """
        return self._is_begun and self._require_nobody_else() is not None

    def update(
        self, here: Files, last: Callable[[], Files], gone: list[str], *, is_live: bool = False
    ) -> None:
        """Copy what of `here` and then of `last` is new or has changed, in that order, and remove
        what is gone; which files are the last is asked once the others were copied. Of a run that
        `is_live` the place is taken over even before there is anything to copy.

        Raises:
            OSError: the storage cannot be reached, or another command took the place over.
            InputError: as `found`.
        """
        if self._is_begun and not self.is_ours():  # was taken away: all of it is copied again
            self._is_begun, self._manifest = False, Manifest(self._manifest.writer)
        if not (self._is_begun or is_live or gone or self._changed({**here, **last()})):
            return
        if not self._is_begun:
            self._begin()
        self._put_changed(here)
        self._put_changed(last())
        self._drop([name for name in gone if name in self._manifest.files])
        self._manifest = replace(self._manifest, is_whole=True, changing={})
        self._store()

    def close(self) -> None:
        """Let others work there.

        Raises:
            OSError: the storage cannot be reached.
        """
        if self._is_begun:
            self._manifest = self._manifest.closed()
            self._store()

    def _put_changed(self, here: Files) -> None:
        changed = self._changed(here)
        for first in range(0, len(changed), TOGETHER):
            self._put({name: here[name] for name in changed[first : first + TOGETHER]})

    def _changed(self, here: Files) -> list[str]:
        return [name for name in here if not self._synced.has(name, here[name])]

    def _begin(self) -> None:
        """Take the list that is there over; without one nothing is there, whatever once was."""
        self._synced.register()
        found = self.found()
        if found is None or found.writer.folder != self._synced.folder:
            known_here = {} if found is None else found.files
            for name in [
                n for n in self._synced.files if self._synced.part(n) != known_here.get(n)
            ]:
                self._synced.forget(name)
        if found is not None:
            self._manifest = replace(found, writer=self._manifest.writer)
        whole = set() if found is None else {*whole_files(self._remote, found)}
        for name in self._remote.names():
            if name not in whole and (name.startswith(PRUNED) or name.endswith(PART)):
                self._remote.drop(name, with_folder=True)
                self._manifest = self._with(name, None)
                self._synced.forget(name)
        self._store()
        self._is_begun = True

    def _require_nobody_else(self) -> Manifest | None:
        found = read_manifest(self._remote)
        if found is not None and found.closed().writer != self._manifest.closed().writer:
            raise OSError(
                f"`varkd {found.writer.command}` on {found.writer.host} is at work there by now"
            )
        return found

    def _put(self, paths: Mapping[str, Path]) -> None:
        with ExitStack() as stack:
            files = {}
            for name, path in paths.items():
                try:
                    file = stack.enter_context(path.open("rb"))
                except FileNotFoundError:  # was pruned meanwhile
                    continue
                found = os.fstat(file.fileno())
                part = Part.of_open(name, _Beating(file, self._beat), found.st_size)
                files[name] = file, part, found
            self._tell({name: part for name, (_, part, _) in files.items()})
            for name, (file, part, found) in files.items():
                file.seek(0)
                self._remote.put(_Beating(file, self._beat), part.bytes, name)
                self._manifest = self._with(name, part)
                self._synced.note(part, found)

    def _drop(self, names: list[str]) -> None:
        if names:
            self._tell(dict.fromkeys(names))
        for name in names:
            with suppress(FileNotFoundError):
                self._remote.drop(name, with_folder=True)
            self._manifest = self._with(name, None)
            self._synced.forget(name)

    def _with(self, name: str, part: Part | None) -> Manifest:
        files = {**self._manifest.files, name: part} if part else dict(self._manifest.files)
        if part is None:
            files.pop(name, None)
        return replace(self._manifest, files=files)

    def _tell(self, changing: Mapping[str, Part | None]) -> None:
        """Say what is about to change, before it does."""
        self._manifest = replace(self._manifest, changing=changing)
        self._store()

    def _store(self) -> None:
        if self._is_begun:  # a round may have waited for the storage for long
            self._require_nobody_else()
        self._manifest.store(self._remote)
        self._told = time.monotonic()
        self._synced.save()

    def _beat(self) -> None:
        """A sign of life while a large file is copied, which goes on without it: an object that
        is not written to its end would be there half."""
        if time.monotonic() - self._told > BEAT_SECONDS:
            with suppress(*TROUBLE):
                self._store()


class _Beating:
    """A file by whose reading a sign of life is given."""

    def __init__(self, file: BinaryIO, beat: Callable[[], object]) -> None:
        self._file = file
        self._beat = beat

    def read(self, size: int) -> bytes:
        self._beat()
        return self._file.read(size)
