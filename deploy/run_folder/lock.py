"""A run folder belongs to one command at a time.

The lock is the kernel's: it ends with the process that holds it, however that ends.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from common.errors import InputError, RunFailed
from common.files.atomic import unwritable
from common.files.paths import read_json

LOCK = ".lock"
HOLDER = ".lock.json"
"""Who holds the lock, for whoever finds it held; says nothing where nobody does."""


@contextmanager
def locked(root: Path, command: str) -> Iterator[None]:
    """Hold the folder `root` for the block; it is made for the block where there is none.

    The lock leaves nothing behind: what it made is gone after the block, an empty folder included.

    Raises:
        InputError: another command holds the folder (the message says which one), or nothing can
            be written there.
    """
    lock, holder = FileLock(root / LOCK, timeout=0), root / HOLDER
    made: list[Path] = []
    try:
        try:
            made = _make(root)
            lock.acquire()
        except Timeout:
            raise InputError(
                f"{root}: {_who(holder)}; wait for it, or choose another --out"
            ) from None
        except OSError as error:
            raise unwritable(root, error) from error
        try:
            with suppress(OSError):  # a full disk: the command says so itself where it matters
                holder.write_text(json.dumps(_ourselves(command)))
            yield
        finally:
            for name in (holder, root / LOCK):  # while it is held: filelock knows of unlinked files
                with suppress(OSError):
                    name.unlink()
            lock.release()
    finally:
        for folder in made:
            with suppress(OSError):  # it is in use now
                folder.rmdir()


def holder(root: Path) -> dict[str, Any] | None:
    """Who holds the folder now: `command`, `pid`, `host` and `since`, as far as it was said; None
    where nobody does, or where the file system does not tell one machine of another's locks."""
    try:
        handle = os.open(root / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        is_held = False
    except OSError as error:
        is_held = isinstance(error, BlockingIOError)
    finally:
        os.close(handle)
    if not is_held:
        return None
    try:
        found = read_json(root / HOLDER, "who holds a folder")
    except (OSError, ValueError):  # it has only just begun
        return {}
    return found if isinstance(found, dict) else {}


class Tenancy:
    """What a process of a run that may outlive its command asks before it writes in the folder."""

    def __init__(self, root: Path) -> None:
        """Made while the command holds the folder."""
        self._root = root
        self._holder = self._read()

    def require(self) -> None:
        """
        Raises:
            InputError: the folder is not there any more, or is another one.
            RunFailed: another command holds the folder now.
        """
        if self.is_gone():
            raise InputError(
                f"{self._root}: is not there any more as this run began in it: it was removed or "
                "moved, or its storage is away; nothing more is stored; bring it back and go on "
                "with --resume"
            )
        if self._read() != self._holder:
            raise RunFailed(
                f"{self._root}: another command is at work here, and the one that this learner "
                "belongs to is gone; nothing was stored"
            )

    def is_gone(self) -> bool:
        """Whether what says who holds the folder has gone, or the folder itself."""
        return self._read() is None and (self._holder is not None or not self._root.is_dir())

    def _read(self) -> str | None:
        try:
            return (self._root / HOLDER).read_text()
        except OSError:
            return None


def _make(root: Path) -> list[Path]:
    """Make `root` and its parents; what was missing, deepest first."""
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    return missing


def _ourselves(command: str) -> dict[str, Any]:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"command": command, "pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _who(holder: Path) -> str:
    try:
        found = read_json(holder, "who holds a folder")
        return (
            f"`varkd {found['command']}` is at work here (process {found['pid']} on "
            f"{found['host']}, since {found['since']})"
        )
    except (OSError, ValueError, KeyError, TypeError):  # it has only just begun
        return "another varkd command is at work here"
