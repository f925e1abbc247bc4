"""Files at a URL of `pyarrow.fs`: s3://, gs://, abfs://, hdfs:// or file://."""

import io
import shutil
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from common.errors import InputError
from common.files.sealed import Readable
from common.files.urls import secret_in, shown, without_end
from deploy.run_folder.control_files import CLOCK, FOLDER, new_identifier

T = TypeVar("T")
Storage = Callable[[str], tuple[fs.FileSystem, str]]
OBJECTS = ("s3", "gcs", "abfs")
"""File systems without folders: a name may have slashes, and what is stored is there whole."""
PART = ".part"
PROBE = "varkd-probe/empty"
EXPECTED = "expected a URL such as s3://bucket/runs/mine, gs://... or file:///mnt/runs/mine"
CHUNK_BYTES = 2**22
MOST_TEXT = 2**26
"""Bytes; more is no list of ours."""
TROUBLE = (OSError, ValueError, NotImplementedError)
"""What Arrow raises where storage, rights or names are wrong."""


class Remote:
    """A folder there; names in it are paths with slashes."""

    def __init__(
        self, url: str, option: str = "--mirror", opened: Storage = fs.FileSystem.from_uri
    ) -> None:
        """Looks at the folder once; `option` is how the URL was given, `opened` finds the file
        system that a URL means, and the folder in it.

        Raises:
            InputError: no such storage, it cannot be reached, or the URL holds what nobody else is
                to know.
        """
        self.url = without_end(url)
        """As it may be said, and given again."""
        self._said = f"{option} {shown(self.url)}".strip()
        self._ahead: float | None = None
        if "://" not in url:
            raise InputError(f"{self}: {EXPECTED}")
        if (why := secret_in(url)) is not None:
            raise InputError(f"{self}: {why}")
        try:
            self._fs, self._root = opened(url.replace(" ", "%20"))
            self._require_bucket()
        except InputError:
            raise
        except pa.ArrowInvalid as error:  # no URL of a storage that Arrow knows
            raise InputError(f"{self}: {reason(error)}; {EXPECTED}") from None
        except TROUBLE as error:
            raise InputError(f"{self}: {reason(error)}") from None

    def __str__(self) -> str:
        """For messages."""
        return self._said

    def require_writable(self) -> None:
        """
        Raises:
            InputError: nothing can be stored or removed there.
        """
        try:
            self.put_text("", PROBE)
            self.drop(PROBE, with_folder=True)
        except TROUBLE as error:
            raise InputError(
                f"{self}: cannot be written: {reason(error)}; choose another URL, or give "
                "credentials that may"
            ) from None

    def _require_bucket(self) -> None:
        """Look at the folder; where nothing is, a bucket that is not there reads alike."""
        bucket = self._root.strip("/").partition("/")[0]
        if not bucket and self._fs.type_name in OBJECTS:
            raise pa.ArrowInvalid("names no bucket")
        if self.names() or self._fs.type_name not in OBJECTS:
            return
        with suppress(OSError):  # not everybody may ask
            (found,) = self._fs.get_file_info([bucket])
            if found.type is fs.FileType.NotFound:
                raise InputError(f"{self}: there is no bucket {bucket}; make it, or name another")

    def names(self, folder: str = "") -> list[str]:
        """Of all files, or of those in one folder of it, in order.

        Raises:
            OSError: it cannot be reached.
        """
        below = self._path(folder) if folder else self._root
        chosen = fs.FileSelector(below, allow_not_found=True, recursive=True)
        found = [info.path for info in self._fs.get_file_info(chosen) if info.is_file]
        return sorted(path[len(self._root) :].lstrip("/") for path in found)

    def age(self, name: str) -> float:
        """Seconds since a file was replaced, by the clock of the storage, where it has one and lets
        us ask it: machines' clocks may differ by more than matters.

        Raises:
            OSError: it cannot be reached.
        """
        if (changed := self._changed(name)) is None:
            return float("inf")
        if self._ahead is None:
            self._ahead = self._measure_clock()
        return (datetime.now(UTC) - changed).total_seconds() + self._ahead

    def _changed(self, name: str) -> datetime | None:
        (info,) = self._fs.get_file_info([self._path(name)])
        return info.mtime

    def _measure_clock(self) -> float:
        """Seconds by which the storage's is ahead; 0 where nothing can be stored to tell."""
        probe = f"{FOLDER}/{new_identifier()}{CLOCK}"
        with suppress(*TROUBLE):
            self.put_text("", probe)
            changed, now = self._changed(probe), datetime.now(UTC)
            self.drop(probe)
            return (changed - now).total_seconds() if changed else 0.0
        return 0.0

    def put(self, source: Readable, size: int, name: str) -> None:
        """Store the next `size` bytes whole, or not at all: an object is there once all of it is,
        and on a file system it is renamed then.

        Raises:
            OSError: it cannot be stored, or there are fewer.
        """
        final = self._path(name)
        if self._fs.type_name not in OBJECTS:  # there it would ask for rights above the folder
            self._fs.create_dir(final.rpartition("/")[0], recursive=True)
        is_renamed = self._fs.type_name in ("local", "hdfs")
        half = f"{final}{PART}" if is_renamed else final
        with self._fs.open_output_stream(half) as target:
            left = size
            while left and (chunk := source.read(min(left, CHUNK_BYTES))):
                target.write(chunk)
                left -= len(chunk)
        if left:
            raise OSError(f"{name} became smaller while it was copied")
        if is_renamed:
            self._fs.move(half, final)

    def put_text(self, text: str, name: str) -> None:
        """
        Raises:
            OSError: it cannot be stored.
        """
        content = text.encode()
        self.put(io.BytesIO(content), len(content), name)

    def get(self, name: str, target: Path) -> None:
        """Fetch a file.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be fetched.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._fs.open_input_stream(self._path(name)) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK_BYTES)

    def text(self, name: str) -> str | None:
        """A small file; None where there is none.

        Raises:
            OSError: it cannot be fetched.
            ValueError: it is no text.
        """
        (info,) = self._fs.get_file_info([self._path(name)])
        if not info.is_file:
            return None
        with self._fs.open_input_stream(self._path(name)) as source:
            return source.read(MOST_TEXT).decode()

    def drop(self, name: str, *, with_folder: bool = False) -> None:
        """`with_folder` as well that which it was the last file of, and to which nobody else adds.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be removed.
        """
        path = self._path(name)
        self._fs.delete_file(path)
        folder = path.rpartition("/")[0]
        if not with_folder or "/" not in name:
            return
        if self._fs.get_file_info(fs.FileSelector(folder, allow_not_found=True)):
            return
        (found,) = self._fs.get_file_info([folder])
        if found.type is fs.FileType.Directory:  # some stores have none, or make one of a name
            self._fs.delete_dir(folder)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


def reason(error: Exception) -> str:
    """Arrow's own account in a line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def tried(work: Callable[[], T]) -> T | Exception:
    """Its answer, or what was wrong with the storage."""
    try:
        return work()
    except TROUBLE as error:
        return error
