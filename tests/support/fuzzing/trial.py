"""One command in a process of its own: forked with everything imported, bounded and watched."""

import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

SECONDS = 60.0
"""A command on these tiny files takes one or two; the machine may be busy."""
GROWTH_MB = 1500
"""Memory that a command may add to what Python, torch and scikit-learn hold anyway."""


@dataclass(frozen=True)
class Trial:
    """What a command did: its exit code (negative: the signal that ended it) and its words."""

    argv: tuple[str, ...]
    code: int | None
    out: str
    err: str
    seconds: float
    grown_mb: float

    @property
    def sentence(self) -> str:
        """The last line that it wrote to stderr."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        return lines[-1] if lines else ""


class Server:
    """Forks commands from a process that imported the product once."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["fuzzing.preload"])
        # Python 3.11's fork server does not take over sys.path, and passes over what it misses.
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        try:
            forkserver.ensure_running()
        finally:
            os.environ.pop("PYTHONPATH")
            if before is not None:
                os.environ["PYTHONPATH"] = before

    def begin(
        self,
        argv: Sequence[object],
        folder: Path,
        *,
        file_bytes: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> "Running":
        """Start `varkd argv` in `folder`, with the variables of `environment` beside its own.

        No file that it writes may be longer than `file_bytes`: the system's own refusal, as of a
        full disk. What it says lies beside the folder meanwhile.
        """
        words = [str(word) for word in argv]
        notes = folder.parent / f"{folder.name}.notes"
        notes.mkdir(exist_ok=True)
        child = self._context.Process(
            target=_command,
            args=(words, str(folder), str(notes), file_bytes, dict(environment or {})),
        )
        child.start()
        return Running(child, tuple(words), notes, time.monotonic())

    def run(
        self,
        argv: Sequence[object],
        folder: Path,
        *,
        seconds: float = SECONDS,
        file_bytes: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Trial:
        """Run `varkd argv` to its end; after `seconds` it is killed, and its code is None."""
        begun = self.begin(argv, folder, file_bytes=file_bytes, environment=environment)
        return begun.ended(seconds)

    def call(self, function: Callable[..., Any], *arguments: object) -> Any:
        """What `function` returns in a process of its own; it must lie in a module."""
        here, there = self._context.Pipe(duplex=False)
        child = self._context.Process(target=_answer, args=(there, function, arguments))
        child.start()
        there.close()
        try:
            return here.recv()
        except EOFError:
            child.join()
            raise RuntimeError(f"{function.__name__} ended with {child.exitcode}") from None
        finally:
            child.join()


@dataclass(frozen=True)
class Running:
    """A command that was begun."""

    process: BaseProcess
    argv: tuple[str, ...]
    notes: Path
    started: float

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def said(self) -> str:
        """What it wrote to stderr so far."""
        return (self.notes / "err").read_text(errors="replace")

    def ended(self, seconds: float = SECONDS) -> Trial:
        """Wait for its end; after `seconds` it is killed, and its code is None."""
        self.process.join(seconds)
        hung = self.process.is_alive()
        if hung:
            self.process.kill()
            self.process.join()
        grown = self.notes / "grown"
        trial = Trial(
            self.argv,
            None if hung else self.process.exitcode,
            (self.notes / "out").read_text(errors="replace"),
            self.said(),
            time.monotonic() - self.started,
            float(grown.read_text()) if grown.exists() else 0.0,
        )
        grown.unlink(missing_ok=True)
        return trial


def lacking(modules: Sequence[str]) -> list[str]:
    """Those that this process has not imported."""
    return [name for name in modules if name not in sys.modules]


def _answer(to: Connection, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    """In the forked process."""
    import torch

    torch.set_num_threads(1)
    to.send(function(*arguments))


def _command(
    argv: list[str], folder: str, notes: str, file_bytes: int | None, environment: dict[str, str]
) -> None:
    """In the forked process: words go to files, memory has an end, then `main`."""
    os.environ.update(environment)
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(f"{notes}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = os.fdopen(1, "w", buffering=1, errors="surrogateescape", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python begins
    os.chdir(folder)
    import torch

    from deploy.main import main

    torch.set_num_threads(1)
    held = int(re.findall(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[0]) << 10
    limit = held + 3 * (GROWTH_MB << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code: object = 0
    try:
        main(argv)
    except SystemExit as ended:  # anything else ends as for a user: with a traceback and code 1
        code = ended.code
    finally:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        Path(notes, "grown").write_text(str(grown))
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
