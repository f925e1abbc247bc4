"""Files that survive a crash: written beside their name, flushed, renamed."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from common.errors import InputError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Run `write` on a temporary neighbour, flush it to disk, then rename it to `path`.

    Raises:
        InputError: the disk is full or the folder cannot be written; `path` is as it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode & 0o777  # as the umask has it
        write(temporary)
        temporary.chmod(mode)  # safetensors lets nobody but the owner read
        _flush(temporary)
        temporary.replace(path)
        with suppress(OSError):  # the file is there; not every file system flushes folders
            _flush(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    except SafetensorError as error:  # safetensors wraps the operating system's error
        raise InputError(f"{path}: could not be written: {error}; free some space") from error
    finally:
        with suppress(OSError):  # never in place of what went wrong before it
            temporary.unlink(missing_ok=True)


def drop_leftovers(folder: Path) -> None:
    """Remove what processes that are gone left half-written in `folder`."""
    for half in folder.glob(".*.tmp"):
        pid = half.name.split(".")[-2]
        if pid.isdigit() and not is_alive(int(pid)):
            half.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine has that number."""
    try:
        os.kill(pid, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def _flush(path: Path) -> None:
    """Wait until a file's contents, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritable(path: Path, error: OSError) -> InputError:
    full = error.errno == errno.ENOSPC
    remedy = "free some space or choose another --out" if full else "choose another --out"
    return InputError(f"{path}: could not be written: {error.strerror or error}; {remedy}")


def write_text(path: Path, text: str) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)
