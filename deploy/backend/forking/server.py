"""Imports what the actors of every role need, then forks a worker for each client.

`server.py NUMBER JOBS PATH...`: the open files of a listening socket and of one through which come
those of jobs (job.py), the folders that modules are found in. It reads lines (JSON) from its
standard input, and ends when that does: a list names more modules; an object holds the cluster's
variables, which Ray's library reads when it is loaded, and then it serves clients, too.
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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MODULES = (
    "aiohttp",
    "fsspec",
    "google.protobuf.descriptor_pb2",
    "jsonschema",
    "pandas",
    "requests",
    "yaml",
    "torch.distributed",
    "deploy.stages.evaluate",
    "deploy.stages.generate",
    "deploy.stages.learner_rank",
    "deploy.stages.pretrain",
    "deploy.stages.tokenize",
    "deploy.backend.forking.job",
)
"""Those without which a role works as well (an extra of Ray's) may be missing."""
PACKAGE = "deploy.backend.forking"
READ_AT_START = (
    *("PYTHON", "LD_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "MALLOC_", "GLIBC_"),
    *("TORCH", "PYTORCH", "LANG", "LC_", "RAY_"),
)
"""Variables that begin so count while an interpreter starts or a library loads."""
FORKS_WELL = "jemalloc_bg_thd"
"""pyarrow's allocator, which has handlers of its own for forks, has a thread of this name."""
READ_LATER = {
    "PYTHONPATH",  # `become` heeds it
    "PYTHONBREAKPOINT",  # Ray sets it in a process that is connected
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC",  # Ray Train sets it for its actors, and reads it there
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S",  # read where Ray Train begins to watch its ranks
    "TORCHINDUCTOR_CACHE_DIR",  # torch sets it when it imports a compiler
    *("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"),  # scikit-learn sets them for all that come later
}
"""These begin so too, and do not."""


def main(number: int, jobs: int, folders: list[str]) -> tuple[list[str], socket.socket]:
    """Serve clients; returns, in each worker's process alone, its command and its client."""
    own = dict(os.environ)  # modules set others
    with socket.socket(fileno=number) as listener, socket.socket(fileno=jobs) as asked:
        _import(MODULES, folders)  # clients wait meanwhile
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
        lines = _lines(asked)
        while isinstance(said := next(lines), list):
            _import(said, folders)
        with _modules_of(folders):  # workers start without this server where it fails
            importlib.import_module(f"{PACKAGE}.ray_library").load(said)
        own |= said
        while True:
            ready = _ready([listener, 0], asked)
            if 0 in ready:
                os._exit(0)
            client, _ = listener.accept()
            command = _serve(client, own)
            if command is not None:
                return command, client
            client.close()


@contextmanager
def _modules_of(folders: list[str]) -> Iterator[None]:
    """Modules are found in these folders within the block; what it imported stays for ever, and so
    do folders that it put first."""
    before = list(sys.path)
    sys.path[:] = folders
    yield
    sys.path[:] = sys.path[: -len(folders)] + before
    gc.freeze()


def _import(names: Iterable[str], folders: list[str]) -> None:
    with _modules_of(folders):
        for name in names:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name != name:
                    raise


def _threads() -> set[str]:
    """Names of all threads but this one."""
    others = set(os.listdir("/proc/self/task")) - {str(os.getpid())}
    return {Path(f"/proc/self/task/{number}/comm").read_text().strip() for number in others}


def _ready(files: list[Any], asked: socket.socket) -> list[Any]:
    """Those of `files` that have something to read; jobs are begun meanwhile."""
    while True:
        ready, _, _ = select.select([*files, asked], [], [])
        if asked not in ready:
            return ready
        _, jobs, _, _ = socket.recv_fds(asked, 1, 1)
        if not jobs:
            os._exit(0)
        _begin(jobs[0])


def _begin(job: int) -> None:
    """Fork a process for it; without one more, whoever waits for it hears that it has gone."""
    with suppress(BlockingIOError):
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            sys.modules["numpy"].random.seed()
            sys.modules[f"{PACKAGE}.job"].serve(job)
    os.close(job)


def _lines(asked: socket.socket) -> Iterator[Any]:
    """What the command says; does not go on where that has ended."""
    said = b""
    while True:
        line, found, rest = said.partition(b"\n")
        if found:
            said = rest
            yield json.loads(line)
        elif _ready([0], asked) and (more := os.read(0, 1 << 16)):
            said += more
        else:
            os._exit(0)


def _serve(client: socket.socket, own: dict[str, str]) -> list[str] | None:
    """Fork what the client wishes, if it can be; the worker's command, in its process alone.
    `own` are the variables with which everything was imported."""
    try:
        length, files, _, _ = socket.recv_fds(client, 4, 3)
        with client.makefile("rb") as stream:
            command, variables, folder = marshal.loads(stream.read(int.from_bytes(length, "big")))
    except (OSError, EOFError, ValueError):  # it was killed meanwhile
        return None
    try:
        command, variables = within_environment(command, variables)
        if command and _may_be_forked(variables, own) and os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            become(files, variables, folder, command[0])
            client.sendall(b"+")
            return command
    except BlockingIOError:  # no more processes: the client reports it as Ray would
        pass
    for number in files:
        os.close(number)
    return None


def _may_be_forked(variables: dict[str, str], own: dict[str, str]) -> bool:
    """Whether a new interpreter with these variables would be as this one; what a thread holds is
    held for ever in a fork."""
    alike = _read_at_start(variables) == _read_at_start(own)
    return alike and _threads() <= {FORKS_WELL}


def _read_at_start(variables: dict[str, str]) -> dict[str, str]:
    found = {name for name in variables if name.startswith(READ_AT_START)} - READ_LATER
    return {name: variables[name] for name in found}


def become(files: list[int], variables: dict[str, str], folder: str, script: str) -> None:
    """Take over a client's files, variables, folder and places of modules, in a process group of
    its own."""
    for ours, theirs in enumerate(files):
        os.dup2(theirs, ours)
        os.close(theirs)
    os.setpgid(0, 0)  # Ray ends the whole group of a worker that died, or was told to go
    os.chdir(folder)
    search(script, os.environ.get("PYTHONPATH"), variables.get("PYTHONPATH"))
    os.environ.clear()
    os.environ.update(variables)
    sys.modules["numpy"].random.seed()  # each process has numbers of its own, as if it had started


def search(script: str, before: str | None, now: str | None) -> None:
    """Let modules be found as for that script where PYTHONPATH is `now`; here it was `before`."""
    ours, theirs = (
        [os.path.abspath(path) for path in (paths or "").split(os.pathsep) if path]
        for paths in (before, now)
    )
    own = sys.path.index(os.path.dirname(os.path.abspath(__file__)))
    others = [path for path in sys.path[own + 1 :] if path not in ours]
    sys.path[own:] = dict.fromkeys([os.path.dirname(script), *theirs, *others])


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
    (sys.argv, held) = main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
    runpy.run_path(sys.argv[0], run_name="__main__")
