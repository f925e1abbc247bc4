"""Starts the fork server and makes the interpreter of a raylet that uses it."""

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from deploy.backend.forking.job import Order

HERE = Path(__file__).parent


class ForkServer:
    """A process that imports from now on, and serves once it is told to.

    It ends when `close` is called or this process ends, however that does.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        """`environment` is what workers will have: those that start with another are not forked.

        Raises:
            OSError: no process can be started.
        """
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._jobs, asked = socket.socketpair()
        numbers = [self._listener.fileno(), asked.fileno()]
        words = [sys.executable, HERE / "server.py", *numbers, *map(os.path.abspath, sys.path)]
        self._process = subprocess.Popen(
            [str(word) for word in words],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=numbers,
            start_new_session=True,  # Ctrl-C is for this process
        )
        asked.close()

    def interpreter(self, folder: Path) -> Path:
        """A program in `folder`, which nobody else can enter, to be taken for Python's; workers
        that begin before the server serves wait for it."""
        path = folder / "fork"
        self._listener.bind(str(path))
        self._listener.listen(64)
        words = [sys.executable, "-I", "-S", HERE / "client.py", sys.executable, path]
        program = folder / "python"
        program.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
        program.chmod(0o700)
        return program

    def also_import(self, modules: Sequence[str]) -> None:
        """These too, before it serves."""
        self._tell(list(modules))

    def begin(self, order: Order) -> Connection:
        """Have a process forked for it, as soon as what comes first is imported; gives what its
        `Outcome` comes through. It ends where that is closed."""
        ours, theirs = Pipe()
        with suppress(BrokenPipeError):  # the server has gone: so has whoever answers
            socket.send_fds(self._jobs, [b"j"], [theirs.fileno()])
        theirs.close()
        with suppress(BrokenPipeError):
            ours.send(order)
        return ours

    def serve(self, variables: Mapping[str, str]) -> None:
        """Workers, as soon as everything is imported; Ray's library is with the cluster's
        `variables`."""
        self._tell(dict(variables))
        self._listener.close()

    def _tell(self, what: object) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it could not import; clients notice
            pass

    def close(self) -> None:
        """End it; workers and jobs that it forked live on."""
        self._listener.close()
        self._jobs.close()
        self._process.kill()
        self._process.communicate()


def of_ray() -> dict[str, str]:
    """This process's variables that Ray's library reads."""
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
