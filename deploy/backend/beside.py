"""Work that other processes do while this one goes on."""

import pickle
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from common.errors import InputError, RunFailed, Verdict
from deploy.backend.forking.fork_server import ForkServer
from deploy.backend.forking.job import Answer, Fault, Order, Outcome, StoppedBy
from deploy.console.stopping import NAMES, Stopped, StopRequest, stop_request

LOOK_SECONDS = 0.2
STOP_SECONDS = 30.0


class Job:
    """A function that a process of its own runs, with one thread."""

    def __init__(self, name: str, connection: Connection) -> None:
        self._name, self._connection = name, connection
        self._outcome: Outcome | None = None

    @property
    def waited_for(self) -> Sequence[Any]:
        """What can be read when it has ended."""
        return [] if self._outcome else [self._connection]

    def result(self) -> Any:
        """What the function returned; waits for it.

        Raises:
            Stopped: it was.
            InputError, RunFailed: as it was raised there; also if the process died.
            RuntimeError: what nobody foresaw, with the traceback as a note.
        """
        if self._outcome is None:
            self._outcome = self._received()
        match self._outcome:
            case Answer(value):
                return value
            case Verdict():
                raise self._outcome.error()
            case StoppedBy(name):
                raise Stopped(name)
            case Fault(summary, trace):
                error = RuntimeError(f"{self._name}: {summary}")
                error.add_note(trace)
                raise error

    def _received(self) -> Outcome:
        try:
            return pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            words = f"the process of {self._name} died; is there enough memory?"
            return Verdict.of(RunFailed(words))

    def stop(self, number: int) -> None:
        """Send it a signal; what it has to end in order, it ends."""
        try:
            self._connection.send(number)
        except OSError:  # it has ended
            return

    def end(self) -> None:
        """At once, if it has not ended."""
        self._connection.close()


class Here:
    """A function that this process runs when its result is asked for."""

    waited_for: Sequence[Any] = ()

    def __init__(self, function: Callable[..., Any], arguments: tuple) -> None:
        self._call = function, arguments

    def result(self) -> Any:
        function, arguments = self._call
        return function(*arguments)

    def stop(self, number: int) -> None:
        """Nothing: who asks for the result is told."""

    def end(self) -> None:
        """Nothing: it has not begun, or it is over."""


class Beside:
    """Begins jobs, in forks of `server`; where there is none, this process does them in turn."""

    def __init__(self, server: ForkServer | None) -> None:
        self._server = server
        self._begun: list[Job | Here] = []

    def begin(
        self, name: str, function: Callable[..., Any], *arguments: Any, niceness: int = 0
    ) -> Job | Here:
        """Run `function(*arguments)`, which a module has, after what is less nice; `name` is for
        messages. It ends with the block of `beside`, if not before."""
        job: Job | Here = Here(function, arguments)
        if self._server is not None:
            job = Job(name, self._server.begin(Order.of(function, arguments, niceness)))
        self._begun.append(job)
        return job

    def stop(self, number: int) -> None:
        """Send all of them a signal, and give them `STOP_SECONDS` to end in order."""
        for job in self._begun:
            job.stop(number)
        end = time.monotonic() + STOP_SECONDS
        while running := {file: job for job in self._begun for file in job.waited_for}:
            if time.monotonic() > end:
                return
            for file in wait(list(running), LOOK_SECONDS):
                with suppress(Stopped, InputError, RunFailed, RuntimeError):
                    running[file].result()

    def end(self) -> None:
        for job in self._begun:
            job.end()


@contextmanager
def beside(server: ForkServer | None) -> Iterator[Beside]:
    """Jobs beside the block; those that go on when it ends, however it does, end with it: in order
    where somebody stopped it."""
    begun = Beside(server)
    try:
        yield begun
    except KeyboardInterrupt as error:  # or Stopped, which is one
        names = {name: number for number, name in NAMES.items()}
        begun.stop(names.get(getattr(error, "name", ""), signal.SIGINT))
        raise
    finally:
        begun.end()


def wait_for(jobs: Sequence[Job | Here]) -> str | None:
    """Return when all of them have ended that other processes run. Ctrl-C or SIGTERM is passed on:
    they end in order; its name, if somebody sent one.

    Raises:
        InputError, RunFailed, Stopped, RuntimeError: of the first one that ended so, at once.
            Those that were stopped are waited for.
    """
    told = False
    with stop_request() as request:
        request.poll_from_here()
        while running := {file: job for job in jobs for file in job.waited_for}:
            for file in wait(list(running), LOOK_SECONDS):
                with suppress(Stopped) if told else nullcontext():
                    running[file].result()
            if request.name is not None and not told:
                told = True
                _tell(jobs, request)
        return request.name


def _tell(jobs: Sequence[Job | Here], request: StopRequest) -> None:
    (number,) = [number for number, name in NAMES.items() if name == request.name]
    for job in jobs:
        job.stop(number)
