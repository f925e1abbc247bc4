"""Processes by a mark in their environment, which what they start inherits (Linux: /proc)."""

import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "VARKD_BENCHMARK"
STOPPED_SECONDS, RUNNING_SECONDS = 0.09, 0.01
"""In turns, for one that runs for a tenth of the time."""


def new_mark() -> str:
    """To be put into an environment."""
    return f"{MARK}={secrets.token_hex(8)}"


def processes(mark: str) -> Iterator[tuple[int, str]]:
    """(pid, title) of all that live and have the mark in their environment, or their parent's: a
    title may be written over an environment."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            pid = int(folder.name)
            if mark in (_read(pid, "environ") + _read(parent(pid), "environ")):
                yield pid, _read(pid, "cmdline").replace("\0", " ")


def parent(pid: int) -> int:
    """Of a process; 0 where it is gone."""
    after = _read(pid, "stat").rpartition(")")[2].split()
    return int(after[1]) if after else 0


def _read(pid: int, name: str) -> str:
    """A file of a process, empty where that is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


def of_title(mark: str, title: str) -> list[int]:
    """Those whose title begins with the regular expression `title`."""
    return [pid for pid, found in processes(mark) if re.match(title, found)]


def kill(pid: int, number: signal.Signals) -> None:
    """Send it, to a process that may be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def end_all(mark: str) -> None:
    """At once."""
    for pid, _ in processes(mark):
        kill(pid, signal.SIGKILL)


def slow_down(pid: int, over: threading.Event) -> None:
    """Let a process run for a tenth of the time until `over`."""
    while not over.is_set():
        kill(pid, signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)
        kill(pid, signal.SIGCONT)
        time.sleep(RUNNING_SECONDS)


def shared_memory() -> set[str]:
    """Names in /dev/shm that no living process has mapped or open, or has put its number into."""
    names = {str(path) for path in Path("/dev/shm").iterdir()}
    held = {
        name for name in names for pid in re.findall(r"\d+", name) if Path("/proc", pid).exists()
    }
    for folder in Path("/proc").iterdir() if names else ():
        try:
            text = (folder / "maps").read_text() if folder.name.isdigit() else ""
            held |= {name for name in names if name in text}
            held |= {os.readlink(file) for file in (folder / "fd").iterdir()} if text else set()
        except OSError:
            continue
    return names - held
