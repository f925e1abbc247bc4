"""What a Ray cluster that a command starts for itself needs of the machine: room, a folder of its
own that nobody else can enter, and an interpreter that Ray can call."""

import os
import resource
import shlex
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from common.errors import InputError, RunFailed

LEAST_FILES = 1024
"""Open files per process; Ray's server processes hold several per actor."""
LEAST_STORE_MB = 75
"""Ray starts with no less shared memory."""
MOST_ON_DISK_MB = 10_000
"""Ray puts a larger object store nowhere but into /dev/shm."""
PARENT = Path("/tmp") if os.path.isdir("/tmp") else Path(tempfile.gettempdir())
"""The names of sockets, which lie deep below, have room for about 107 bytes."""
PREFIX = "vk-"
YOUNG_SECONDS = 10.0
"""A folder of this age may belong to somebody who has not locked it yet."""


def require_limits(object_store_mb: float) -> str | None:
    """Raise the limit of open files as far as allowed; returns a warning, if there is one.

    Raises:
        InputError: too few open files, too little or too much shared memory.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        raise InputError(
            f"this process may open {soft} files, but Ray needs {LEAST_FILES}; raise the limit "
            f"(`ulimit -n {4 * LEAST_FILES}`, or the hard limit), or run with --local"
        )
    return _require_memory(object_store_mb)


def _require_memory(object_store_mb: float) -> str | None:
    found = f"cluster.object_store_mb is {object_store_mb:g}"
    if object_store_mb < LEAST_STORE_MB:
        raise InputError(
            f"{found}, but Ray needs at least {LEAST_STORE_MB}; raise it, or run with --local"
        )
    there_mb = psutil.virtual_memory().total / 2**20
    if object_store_mb > there_mb:
        raise InputError(f"{found}, but this machine has {there_mb:.0f} MB of memory; lower it")
    shared_mb = _free_mb("/dev/shm")
    if shared_mb is None or shared_mb >= object_store_mb:
        return None
    if object_store_mb > MOST_ON_DISK_MB:
        raise InputError(
            f"{found}, but /dev/shm has {shared_mb:.0f} MB free; lower it, or enlarge /dev/shm "
            "(docker run --shm-size)"
        )
    free_mb = _free_mb(str(PARENT)) or 0.0
    if free_mb < object_store_mb:
        raise InputError(
            f"{found}, but /dev/shm has {shared_mb:.0f} MB free and {PARENT} {free_mb:.0f}; lower "
            "it, or make room"
        )
    return f"{found}, but /dev/shm has {shared_mb:.0f} MB free: Ray uses {PARENT}, which is slower"


def _free_mb(folder: str) -> float | None:
    if not os.path.isdir(folder):
        return None
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize / 2**20


def worker_environment() -> dict[str, str]:
    """Ray's `runtime_env`: it puts the interpreter's path into a shell as it is."""
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


@contextmanager
def private_folder() -> Iterator[Path]:
    """A short folder that only this user can enter, for Ray's sockets and logs; gone afterwards.

    Ray makes its own folders open to everybody, so that one lies inside. Folders that killed runs
    left are removed first.

    Raises:
        RunFailed: there is no room for it.
    """
    remove_leftovers(PARENT)
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=PARENT))  # 0700
        lock = FileLock(folder / "lock")
        lock.acquire(timeout=1)
        inner = folder / "r"
        inner.mkdir()
    except OSError as error:
        raise RunFailed(
            f"{PARENT}: Ray's temporary folder cannot be made: {error.strerror}; make room there, "
            "or run with --local"
        ) from error
    try:
        yield inner
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def remove_leftovers(parent: Path) -> None:
    """Remove this user's folders whose processes are gone: a living one holds its lock."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            found = folder.lstat()
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            is_young = time.time() - found.st_mtime < YOUNG_SECONDS
            if not is_ours or is_young or not (folder / "lock").is_file():
                continue
            with FileLock(folder / "lock", timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError):
            continue  # somebody lives there, or removes it at this moment
