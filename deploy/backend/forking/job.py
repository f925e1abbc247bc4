"""Runs a function for the command in a process that the fork server forked, and answers.

Both ends hold a `Connection`: first the function comes with the places and variables of the
command, then numbers of signals; its outcome goes back. A process whose command has gone, or wants
it no more, ends.
"""

import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from common.errors import UNDERSTOOD, Verdict
from deploy.console.faults import summary
from deploy.console.stopping import Stopped, stop_request


@dataclass(frozen=True, slots=True)
class Order:
    """A function for another process, and the world in which it is to run."""

    work: bytes
    """(function, arguments), pickled: to be read where their modules are found."""
    path: list[str]
    variables: dict[str, str]
    folder: str
    niceness: int
    """As in `os.nice`: how much the others go first."""

    @classmethod
    def of(cls, function: Callable[..., Any], arguments: tuple, niceness: int) -> "Order":
        """In the world of this process."""
        work = pickle.dumps((function, arguments))
        return cls(work, [*sys.path], dict(os.environ), os.getcwd(), niceness)


@dataclass(frozen=True, slots=True)
class Answer:
    value: Any


@dataclass(frozen=True, slots=True)
class StoppedBy:
    """Ctrl-C or SIGTERM ended the function."""

    name: str


@dataclass(frozen=True, slots=True)
class Fault:
    """What nobody foresaw, as text: its class may be unknown at the other end."""

    summary: str
    trace: str


Outcome = Answer | Verdict | StoppedBy | Fault


def serve(number: int) -> None:
    """Run what comes through the open file of that number; does not return."""
    connection = Connection(number)
    try:
        order: Order = connection.recv()
        threading.Thread(target=_heed, args=(connection,), daemon=True).start()

        def tell(outcome: Outcome) -> None:
            connection.send_bytes(pickle.dumps(outcome))  # torch's own way shares memory and ends

        with _Ending(tell):
            tell(Answer(_done(order)))
    except (EOFError, OSError):  # the command has gone
        os._exit(1)
    os._exit(0)


class _Ending:
    """Tells how the block ended that raised, and lets nothing out of it."""

    def __init__(self, tell: Callable[[Outcome], None]) -> None:
        self._tell = tell

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: object
    ) -> bool:
        if isinstance(error, Stopped):
            self._tell(StoppedBy(error.name))
        elif isinstance(error, UNDERSTOOD):
            self._tell(Verdict.of(error))
        elif error is not None:
            self._tell(Fault(summary(error), "".join(traceback.format_exception(error))))
        return True


def _done(order: Order) -> Any:
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.variables)
    sys.path[:] = order.path
    os.nice(order.niceness)
    sys.modules["torch"].set_num_threads(1)
    with stop_request():
        function, arguments = pickle.loads(order.work)
        return function(*arguments)


def _heed(connection: Connection) -> None:
    """Pass signals on, as long as there is somebody to send them."""
    while True:
        try:
            number = connection.recv()
        except (EOFError, OSError):
            os._exit(1)
        os.kill(os.getpid(), number)
