"""Imports what the actors of every role need but Ray itself, then forks a worker for each client.

`server.py NUMBER PATH...`: the open file of a listening socket, the folders that modules are found
in. Serves once there is a line on its standard input, ends when that does. Ray's library reads a
worker's job from its environment and seeds its random names when it is loaded: each worker loads it
for itself.
"""

import argparse
import gc
import importlib
import json
import marshal
import os
import runpy
import select
import signal
import socket
import sys
from pathlib import Path

MODULES = (
    "aiohttp",
    "fsspec",
    "google.protobuf.descriptor_pb2",
    "jsonschema",
    "pandas",
    "requests",
    "yaml",
    "torch.distributed",
    "torch._dynamo",  # an optimizer imports it
    "deploy.stages.evaluate",
    "deploy.stages.generate",
    "deploy.stages.learner_rank",
    "deploy.stages.tokenize",
)
"""Those without which a role works as well (an extra of Ray's) may be missing."""
READ_AT_START = (
    *("PYTHON", "LD_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "MALLOC_", "GLIBC_"),
    *("TORCH", "PYTORCH", "LANG", "LC_"),
)
"""Variables that begin so count while an interpreter starts or a library loads."""
FORKS_WELL = "jemalloc_bg_thd"
"""pyarrow's allocator, which has handlers of its own for forks, has a thread of this name."""
READ_LATER = {"PYTHONBREAKPOINT", "TORCHINDUCTOR_CACHE_DIR"}
"""Ray sets the one in a process that is connected, torch the other when it imports a compiler."""


def main(number: int, folders: list[str]) -> tuple[list[str], socket.socket]:
    """Serve clients; returns, in each worker's process alone, its command and its client."""
    with socket.socket(fileno=number) as listener:
        _import(folders)  # clients wait meanwhile
        own = _read_at_start(dict(os.environ))
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
        if not os.read(0, 1):
            os._exit(0)
        while True:
            ready, _, _ = select.select([listener, 0], [], [])
            if 0 in ready:
                os._exit(0)
            client, _ = listener.accept()
            command = _serve(client, own)
            if command is not None:
                return command, client
            client.close()


def _import(folders: list[str]) -> None:
    before = list(sys.path)
    sys.path[:] = folders
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    sys.path[:] = before
    assert "ray" not in sys.modules
    assert _threads() <= {FORKS_WELL}, "what a thread holds is held for ever in a fork"
    gc.freeze()


def _threads() -> set[str]:
    """Names of all threads but this one."""
    others = set(os.listdir("/proc/self/task")) - {str(os.getpid())}
    return {Path(f"/proc/self/task/{number}/comm").read_text().strip() for number in others}


def _serve(client: socket.socket, own: dict[str, str]) -> list[str] | None:
    """Fork what the client wishes, if it can be; the worker's command, in its process alone."""
    try:
        length, files, _, _ = socket.recv_fds(client, 4, 3)
        with client.makefile("rb") as stream:
            command, variables, folder = marshal.loads(stream.read(int.from_bytes(length, "big")))
    except (OSError, EOFError, ValueError):  # it was killed meanwhile
        return None
    try:
        command, variables = within_environment(command, variables)
        if command and _read_at_start(variables) == own and os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            become(files, variables, folder)
            client.sendall(b"+")
            return command
    except BlockingIOError:  # no more processes: the client reports it as Ray would
        pass
    for number in files:
        os.close(number)
    return None


def _read_at_start(variables: dict[str, str]) -> dict[str, str]:
    found = {name for name in variables if name.startswith(READ_AT_START)} - READ_LATER
    return {name: variables[name] for name in found}


def become(files: list[int], variables: dict[str, str], folder: str) -> None:
    """Take over a client's files, variables and folder, in a process group of its own."""
    for ours, theirs in enumerate(files):
        os.dup2(theirs, ours)
        os.close(theirs)
    os.setpgid(0, 0)  # Ray ends the whole group of a worker that died, or was told to go
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.modules["numpy"].random.seed()  # each process has numbers of its own, as if it had started


def within_environment(
    command: list[str], variables: dict[str, str]
) -> tuple[list[str], dict[str, str]]:
    """What Ray's `setup_worker.py` executes, without the new interpreter that it does it with, and
    the variables there; no command where that takes more."""
    if not command[0].endswith("/setup_worker.py"):
        return command, variables
    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language")
    given, rest = parser.parse_known_args(command[1:])
    context = json.loads(given.serialized_runtime_env_context)
    more = context.get("env_vars", {})
    is_odd = context.get("command_prefix") or context.get("override_worker_entrypoint")
    if is_odd or any("$" in value for value in more.values()) or rest[0].startswith("-"):
        return [], variables
    return rest, variables | more


if __name__ == "__main__":
    (sys.argv, held) = main(int(sys.argv[1]), sys.argv[2:])
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
