"""Versions as files of a folder that all machines see, for which no object store needs room.

Free of torch, as the store that keeps the list is.
"""

import io
import secrets
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from common.errors import InputError, Verdict
from common.exchange.weights import Digest, Payload, Weights, WeightStore, aligned, pieces
from common.files.paths import refusal

RETRY_SECONDS = 0.1
"""Between two looks for a file that was published and is not there: caches of network file systems
are that old, and older."""
PATIENCE_SECONDS = 50.0
"""So long may a file that was published not be readable: less than a worker waits for a version,
which then only knows that there is none."""
FIELD = "rollout.weights_folder"


@dataclass(frozen=True, slots=True)
class FiledWeights(Weights):
    """Weights whose bytes lie in a file; `payload` is empty until they were read."""

    path: Path = field(kw_only=True)
    sizes: tuple[int, ...] = field(kw_only=True)
    """Bytes of the parts, which follow each other."""

    def require(self, found: str) -> None:
        """
        Raises:
            InputError: a ValueError as for all weights; the sentence names the file.
        """
        try:
            Weights.require(self, found)
        except ValueError as error:
            raise InputError(
                f"{self.path}: {error}; examine the disk of {FIELD}, and go on with --resume"
            ) from None

    def read(self) -> "FiledWeights":
        """With their bytes, in memory of their own: of a file that is removed, a map would be lost.

        Raises:
            OSError: the file is not there, cannot be read, or is not whole.
        """
        with self.path.open("rb", buffering=0) as file:
            payload = [aligned(size) for size in self.sizes]
            for part in payload:
                rest = part.data
                while rest:
                    count = file.readinto(rest)
                    if not count:
                        raise OSError(f"it ends {len(rest)} bytes before a part does")
                    rest = rest[count:]
        return replace(self, payload=payload)


class FiledVersions(WeightStore):
    """The list of versions that lie in files: they travel with a call, as they have no bytes."""


class WeightFolder:
    """A `WeightSink` and `WeightSource`: bytes lie in `folder`, `store` says which ones there are.

    Travels to the learner and to every worker. Whoever publishes removes what the store dropped,
    one version later, for whoever has just been told of it. Nobody else uses the folder, and it
    goes with the run (deploy/run_folder/version_files.py).
    """

    def __init__(
        self,
        store: WeightStore,
        folder: Path,
        keep_behind: int,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """`keep_behind` is the store's."""
        self._store = store
        self._folder = folder
        self._keep_behind = keep_behind
        self._patience = patience
        self._published: dict[int, Path] = {}
        self._missed: tuple[Path | None, float] = (None, 0.0)
        """The file that could not be read last, and since when."""

    def publish(self, weights: Weights) -> None:
        """Write a version to a file that gets its name when it is whole, then offer it.

        Raises:
            ValueError: it is not newer than the newest one.
            InputError: the folder is full, is not there, or cannot be written.
        """
        if not weights.payload:
            self._store.publish(weights)
            return
        self._drop_old()
        # Versions have the same numbers again when a learner restarts.
        path = self._folder / f"{weights.version:08d}-{secrets.token_hex(8)}.weights"
        with ExitStack() as undone:
            undone.callback(_remove, path)
            digest = _write(path, weights)
            bare = FiledWeights(
                weights.version,
                (),
                weights.digest or digest,
                canary=weights.canary,
                path=path,
                sizes=tuple(len(np.frombuffer(part, np.uint8)) for part in weights.payload),
            )
            self._store.publish(bare)
            undone.pop_all()
        self._published[weights.version] = path

    def newest(self, timeout: float) -> int:
        """As `WeightStore.newest`."""
        return self._store.newest(timeout)

    def get(self, version: int, timeout: float) -> Weights:
        """The bundle of `version`, once published, read into memory of its own.

        Raises:
            TimeoutError: it was not published within `timeout` seconds, or is gone already, or its
                file could not be read until then.
            InputError: the file could not be read for long, whatever the calls, or this machine
                does not have the folder.
            Closed: the run was ended.
        """
        deadline = time.monotonic() + timeout
        while True:
            held = self._store.get(version, max(0.0, deadline - time.monotonic()))
            if not isinstance(held, FiledWeights):
                return held
            try:
                return held.read()
            except OSError as error:
                self._miss(held, refusal(error), deadline)
            time.sleep(RETRY_SECONDS)

    def rewind(self) -> None:
        """Forget all versions, those included that a learner left which is gone."""
        self._store.rewind()
        self._published.clear()
        with suppress(OSError):
            for path in list(self._folder.iterdir()):
                _remove(path)

    def close(self, cause: str | Verdict) -> None:
        """As `WeightStore.close`; who still reads a file may."""
        self._store.close(cause)

    def _miss(self, held: FiledWeights, reason: str, deadline: float) -> None:
        """Say so, if it is time: as `get`."""
        now, shared = time.monotonic(), self._folder.parent
        if not shared.is_dir():
            raise InputError(f"{FIELD}: {shared} is not there on a worker's machine; mount it")
        if self._missed[0] != held.path:
            self._missed = held.path, now
        waited = now - self._missed[1]
        sentence = (
            f"{held.path}: version {held.version} of the student's weights was published, but its "
            f"file could not be read in {waited:.0f} s: {reason}; {FIELD} must be one folder on "
            "all machines, from which nobody else removes files"
        )
        if waited >= self._patience:
            raise InputError(sentence)
        if now >= deadline:
            raise TimeoutError(sentence)

    def _drop_old(self) -> None:
        """Those that the store dropped when the newest one came."""
        oldest = max(self._published, default=0) - self._keep_behind
        for version in [version for version in self._published if version < oldest]:
            _remove(self._published.pop(version))


def _write(path: Path, weights: Weights) -> str:
    """The digest, which is computed beside. Nothing is flushed to the disk: a machine that goes
    down takes the version with it, and what a network file system has no room for it says when the
    file is closed.

    Raises:
        InputError: it could not be written; nothing is left of it.
    """
    hidden = path.with_name(f".{path.name}.tmp")
    try:
        with hidden.open("xb", buffering=0) as file:
            digest = _write_parts(file, weights.payload)
        hidden.rename(path)
    except OSError as error:
        raise InputError(
            f"{path.parent}: version {weights.version} of the student's weights could not be "
            f"written: {refusal(error)}; make room there, or set {FIELD} to another folder and go "
            "on with --resume"
        ) from error
    finally:
        _remove(hidden)  # under that name it is of no use
    return digest


def _write_parts(file: io.RawIOBase, payload: Payload) -> str:
    """The digest of what was written."""
    digest = Digest()
    for part in payload:
        for _, piece in pieces(np.frombuffer(part, np.uint8)):
            digest.add(piece)
            rest = piece.data
            while rest:
                rest = rest[file.write(rest) :]
    return str(digest)


def _remove(path: Path) -> None:
    """If that can be: what stays goes with the folder."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
