"""Files at a URL of `pyarrow.fs`: s3://, gs://, abfs://, hdfs:// or file://."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

from pyarrow import fs

from common.errors import InputError

T = TypeVar("T")
PART = ".part"
TROUBLE = (OSError, ValueError)
"""What Arrow raises where storage, rights or names are wrong."""


class Remote:
    """A folder there; names in it are paths with slashes."""

    def __init__(self, url: str) -> None:
        """Looks at the folder once.

        Raises:
            InputError: no such storage, or it cannot be reached.
        """
        self.url = shown(url)
        """Without what nobody else is to know."""
        if "://" not in url:
            raise InputError(
                f"--mirror {self.url}: expected a URL such as s3://bucket/runs/mine, gs://..., or "
                "file:///mnt/runs/mine"
            )
        try:
            self._fs, self._root = fs.FileSystem.from_uri(url)
            self.names()
        except TROUBLE as error:
            said = reason(error).replace(url, self.url)
            raise InputError(f"--mirror {self.url}: {said}") from None

    def names(self) -> list[str]:
        """Of all files, in order.

        Raises:
            OSError: it cannot be reached.
        """
        chosen = fs.FileSelector(self._root, allow_not_found=True, recursive=True)
        found = [info.path for info in self._fs.get_file_info(chosen) if info.is_file]
        return sorted(path[len(self._root) :].lstrip("/") for path in found)

    def put(self, source: Path, name: str) -> None:
        """Store a file whole, or not at all: an object is there once all of it is, and on a file
        system it is renamed then.

        Raises:
            OSError: it cannot be stored.
        """
        final = self._path(name)
        self._fs.create_dir(final.rpartition("/")[0], recursive=True)
        is_renamed = self._fs.type_name in ("local", "hdfs")
        half = f"{final}{PART}" if is_renamed else final
        fs.copy_files(str(source), half, fs.LocalFileSystem(), self._fs)
        if is_renamed:
            self._fs.move(half, final)

    def get(self, name: str, target: Path) -> None:
        """Fetch a file.

        Raises:
            OSError: it cannot be fetched.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        half = target.with_name(f".{target.name}{PART}")
        with self._fs.open_input_stream(self._path(name)) as source, half.open("wb") as file:
            shutil.copyfileobj(source, file)
        half.replace(target)

    def drop(self, name: str) -> None:
        """
        Raises:
            OSError: it cannot be removed.
        """
        self._fs.delete_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


def shown(url: str) -> str:
    """Without keys and options, which may be in a URL."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def reason(error: Exception) -> str:
    """Arrow's own account in a line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def tried(work: Callable[[], T]) -> T | Exception:
    """Its answer, or what was wrong with the storage."""
    try:
        return work()
    except TROUBLE as error:
        return error
