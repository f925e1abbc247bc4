"""The run's side of RUN/control: says how it goes, and hears what is asked of it."""

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, Self

from common.background import Background
from common.errors import UNDERSTOOD
from deploy.console.faults import summary
from deploy.console.stopping import StopRequest
from deploy.control.rendezvous import Answer, Rendezvous, Request

STOP = "varkd stop"
BEAT_SECONDS = 1.0
POLL_SECONDS = 0.25
MOST_EVENTS = 20


class Checkpoints(Protocol):
    """The run's snapshots."""

    def newest_step(self) -> int | None: ...
    def folder(self, step: int) -> Path: ...


class LiveRun(Background):
    """Keeps status.json fresh from a thread of its own, so that a driver that waits for a cluster,
    or hangs, can be asked as well; requests to stop are as good as the signal.

    A run that ends before it has begun leaves nothing.
    """

    def __init__(
        self,
        root: Path,
        stop: StopRequest,
        checkpoints: Checkpoints,
        line: Callable[[], str],
        steps: int,
    ) -> None:
        """`line` is what the driver's screen says now; `steps` are all of the run."""
        super().__init__("control")
        self._rendezvous = Rendezvous(root)
        self._stop = stop
        self._checkpoints = checkpoints
        self._line = line
        self._lock = threading.Lock()
        host, now = socket.gethostname(), time.time()
        self._facts = {"state": "starting", "pid": os.getpid(), "host": host, "began": now}
        self._facts |= {"steps": steps, "cause": None, "events": []}
        self._requests: list[Request] = []
        self._is_begun = False
        self._beats = 0

    def __enter__(self) -> Self:
        self._before = None
        with suppress(OSError):  # a run goes on where nobody can ask it anything
            self._rendezvous.folder.mkdir(exist_ok=True)
            self._rendezvous.clear()
        with suppress(OSError, ValueError):
            self._before = self._rendezvous.status()
        self._put()
        return super().__enter__()

    def _finish(self, error: BaseException | None) -> None:
        if error is not None:
            failed = not isinstance(error, KeyboardInterrupt)
            said = str(error) if isinstance(error, UNDERSTOOD) else summary(error)
            self.tell(cause=said, failed=failed)
        self.tell(state="ended")
        for request in [*self._requests, *self._rendezvous.requests()]:
            self._rendezvous.answer(request, Answer("the run has ended", is_refused=True))
        if self._is_begun:
            self._put()
        elif self._before is not None:
            with suppress(OSError):
                self._rendezvous.put_status(self._before)
        else:
            shutil.rmtree(self._rendezvous.folder, ignore_errors=True)

    def begin(self) -> None:
        """It has done a step: from now on the folder is this run's."""
        self._is_begun = True
        self.tell(state="running")

    def tell(self, **facts: Any) -> None:
        """How it goes."""
        with self._lock:
            self._facts |= facts

    def note(self, sentence: str) -> None:
        """Something that happened."""
        with self._lock:
            events = [*self._facts["events"], [time.time(), sentence]]
            self._facts["events"] = events[-MOST_EVENTS:]

    def requests(self) -> list[Request]:
        """What was asked since the last call, but for requests to stop."""
        with self._lock:
            found, self._requests = self._requests, []
        return found

    def answer(self, request: Request, answer: Answer) -> None:
        self._rendezvous.answer(request, answer)

    def _work(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(POLL_SECONDS):
            for request in self._rendezvous.requests():
                if request.command == "stop":
                    self._end(request)
                else:
                    with self._lock:
                        self._requests.append(request)
            if time.monotonic() - last >= BEAT_SECONDS:
                last = time.monotonic()
                self._put()

    def _end(self, request: Request) -> None:
        self._rendezvous.answer(request, Answer(self._stop.name or STOP))
        if self._stop.name is None:
            self.tell(state="stopping")
            self._stop.ask(STOP)

    def _put(self) -> None:
        self._beats += 1
        with self._lock:
            status = {**self._facts, "beat": self._beats, "time": time.time()}
        status |= {"line": self._line(), "checkpoint": self._checkpoint()}
        with suppress(OSError):
            self._rendezvous.put_status(status)

    def _checkpoint(self) -> dict[str, float] | None:
        with suppress(OSError):
            step = self._checkpoints.newest_step()
            if step is not None:
                folder = self._checkpoints.folder(step)
                return {"step": step, "time": folder.stat().st_mtime}
        return None
