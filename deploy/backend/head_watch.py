"""Whether the processes of a cluster are there that all others need: those of a private cluster's
head, or what a node sees of the cluster that was joined.

Ray waits a minute for its store of facts (the GCS) and then ends the process that waits, without a
word of ours and with other processes left behind. So the head is looked at from a thread: the
command hears of a loss at its next look, and where it does not end then, it is ended.
"""

import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, Self

import psutil

from common.background import Background
from common.errors import RunFailed
from deploy.console.faults import GO_ON
from deploy.console.stopping import SHOW_CURSOR

LOOK_SECONDS = 0.5
STOPPED_LOOKS = 8
"""So many looks in a row a process may be stopped, e.g. by a debugger."""
ASK_SECONDS = 2.0
SILENT_SECONDS = 30.0
"""Ray ends the process after 60."""
END_SECONDS = 15.0
"""A command has this long to end in order without its cluster's head."""
STDOUT, STDERR = 1, 2
OURS = "varkd"
"""How a sentence begins that ends a command."""
_watches: list["HeadWatch"] = []


class Head(Protocol):
    """What is watched."""

    def lost(self) -> str | None:
        """Who is gone, as a sentence, if somebody is; asked every `LOOK_SECONDS`."""
        ...

    def wait(self, seconds: float) -> None:
        """For so long, or until somebody may be gone."""
        ...

    def end(self) -> None:
        """End what was started for the command."""
        ...


class Node(Protocol):
    """As Ray's."""

    all_processes: Any

    def end(self) -> None: ...


class PrivateProcesses:
    """The processes of a private cluster's head."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._is_ending = False
        self._stopped: dict[str, int] = {}

    def end(self) -> None:
        """End them; whoever is gone from now on is not lost."""
        self._is_ending = True
        self._node.end()

    def wait(self, seconds: float) -> None:
        if self._is_ending or not hasattr(os, "pidfd_open"):  # which Linux has
            time.sleep(seconds)
            return
        ends, handles = select.poll(), []
        with suppress(ProcessLookupError):  # one is gone
            for infos in list(self._node.all_processes.values()):
                for info in infos:
                    handles.append(os.pidfd_open(info.process.pid))
                    ends.register(handles[-1], select.POLLIN)
            ends.poll(1000 * seconds)
        for handle in handles:
            os.close(handle)

    def lost(self) -> str | None:
        if self._is_ending:
            return None
        for kind, infos in list(self._node.all_processes.items()):
            for process in [info.process for info in infos]:
                if process.poll() is not None:
                    return f"the private cluster's {kind} died (exit code {process.returncode})"
                if self._is_stopped(kind, process.pid):
                    seconds = STOPPED_LOOKS * LOOK_SECONDS
                    return (
                        f"the private cluster's {kind} has been stopped for {seconds:g} s, "
                        "although its process lives"
                    )
        return None

    def _is_stopped(self, kind: str, pid: int) -> bool:
        try:
            now = psutil.Process(pid).status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return False
        self._stopped[kind] = self._stopped.get(kind, 0) + 1 if now else 0
        return self._stopped[kind] >= STOPPED_LOOKS


class JoinedHead:
    """The head of the cluster that was joined, by whether its store of facts answers."""

    def __init__(
        self,
        address: str,
        ask: Callable[[float], object],
        *,
        patience: float = SILENT_SECONDS,
    ) -> None:
        """`ask` returns once it has an answer, or raises after so many seconds. One that is begun
        again within `patience` is the same one: a cluster may keep its facts elsewhere (Redis)."""
        self._address = address
        self._ask = ask
        self._patience = patience
        self._heard = time.monotonic()

    def lost(self) -> str | None:
        try:
            self._ask(ASK_SECONDS)
        except Exception:  # noqa: BLE001 (Ray has many, of which none is public)
            silent = time.monotonic() - self._heard
            if silent < self._patience:
                return None
            return (
                f"the Ray cluster at {self._address} (RAY_ADDRESS) has not answered for "
                f"{silent:.0f} s: its head is gone, hangs, or is out of reach"
            )
        self._heard = time.monotonic()
        return None

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def end(self) -> None:
        """Nothing: it is not the command's."""


class HeadWatch(Background):
    """Watches while the block lasts."""

    is_awaited = False

    def __init__(
        self,
        head: Head,
        *,
        patience: float = END_SECONDS,
        force: Callable[[int], object] = os._exit,
    ) -> None:
        """`force` ends this process, which has `patience` seconds to end in order."""
        super().__init__("head-watch")
        self._head = head
        self._patience = patience
        self._force = force
        self.loss: str | None = None
        """The sentence about it."""

    def __enter__(self) -> Self:
        _watches.append(self)
        return super().__enter__()

    def _finish(self, error: BaseException | None) -> None:
        _watches.remove(self)

    def look(self) -> bool:
        """Whether it is lost by now."""
        if self.loss is None and (lost := self._head.lost()) is not None:
            self.loss = f"{lost}; {GO_ON}"
        return self.loss is not None

    def give_up(self, sentence: str) -> None:
        """As if the head were lost, with that sentence about it."""
        self.loss = self.loss or sentence

    def _work(self) -> None:
        while not self._ended.is_set():
            self._head.wait(LOOK_SECONDS)
            if not self._ended.is_set() and self.look():
                # At once: Ray may end this process as soon as it misses the raylet itself.
                _say(f"\nvarkd: {self.loss}\n")
                break
        if self.loss is None or self._ended.wait(self._patience):
            return
        ending = threading.Thread(target=self._head.end, daemon=True)
        ending.start()
        ending.join(END_SECONDS)
        _say(f"varkd: {self.loss}\n")  # the last line, whatever was said meanwhile
        self._force(1)


class _Sentences(io.TextIOWrapper):
    """stdout and stderr for the last words of a command: progress, warnings, and what Ray's threads
    print of a lost node are no cause."""

    def write(self, text: str, /) -> int:
        return super().write(text) if text.lstrip().startswith(OURS) else len(text)


def _sentences(descriptor: int, encoding: str, errors: str | None) -> _Sentences:
    to = os.fdopen(os.dup(descriptor), "wb")
    return _Sentences(to, encoding, errors, line_buffering=True)


def _say(sentence: str) -> None:
    """To stderr, which from then on has such sentences alone, as stdout has: Ray may end this
    process whenever it likes, with whatever was said last."""
    said = sys.stderr
    if said is sys.__stderr__ and said.fileno() == STDERR:
        if said.isatty():
            said.write(SHOW_CURSOR)  # a progress bar hides it, and gets no further word
        said.flush()
        if (printed := sys.stdout) is sys.__stdout__ and printed is not None:  # Ray prints there
            with suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
                printed.flush()
                sys.stdout = _sentences(STDOUT, printed.encoding, printed.errors)
        said = _sentences(STDERR, said.encoding, said.errors)
        with open(os.devnull, "wb") as nothing:  # for libraries, which write to the descriptor
            os.dup2(nothing.fileno(), STDERR)
    said.write(sentence)
    said.flush()
    sys.stderr = said


def require_head(*, now: bool = False) -> None:
    """Called again and again by whoever uses the cluster; with `now`, by who was let down by it:
    what lives in a cluster dies with its head, and may be missed first.

    Raises:
        RunFailed: a process of the cluster's head is gone; its name and what to do.
    """
    for watch in _watches:
        if now:
            watch.look()
        if watch.loss is not None:
            raise RunFailed(watch.loss)


def give_up(sentence: str) -> None:
    """The command has the time to end in order that it has without its cluster's head: what it
    calls on its way out may never answer."""
    for watch in _watches:
        watch.give_up(sentence)
