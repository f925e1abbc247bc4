"""Imports what the actors of every role need but Ray itself, then forks a worker for each client.

`server.py SOCKET`; ends when its standard input does. Ray's library reads a worker's job from its
environment and seeds its random names when it is loaded: each worker loads it for itself.
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
    "deploy.stages.tokenize",
)


def main(path: str) -> tuple[list[str], socket.socket]:
    """Serve clients; returns, in each worker's process alone, its command and its client."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(64)
        for name in MODULES:  # clients wait meanwhile
            importlib.import_module(name)
        assert "ray" not in sys.modules
        gc.freeze()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
        while True:
            ready, _, _ = select.select([listener, 0], [], [])
            if 0 in ready:
                sys.exit()
            client, _ = listener.accept()
            length, files, _, _ = socket.recv_fds(client, 4, 3)
            with client.makefile("rb") as stream:
                wish = marshal.loads(stream.read(int.from_bytes(length, "big")))
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return become(files, *wish), client
            client.close()
            for number in files:
                os.close(number)


def become(
    files: list[int], command: list[str], variables: dict[str, str], folder: str
) -> list[str]:
    """Take over a client's files, variables and folder; returns the worker's own command."""
    for ours, theirs in enumerate(files):
        os.dup2(theirs, ours)
        os.close(theirs)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    return within_environment(command) if command[0].endswith("/setup_worker.py") else command


def within_environment(command: list[str]) -> list[str]:
    """What Ray's `setup_worker.py` executes, without the new interpreter that it does it with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language")
    given, rest = parser.parse_known_args(command[1:])
    context = json.loads(given.serialized_runtime_env_context)
    variables = context.get("env_vars", {})
    is_odd = context.get("command_prefix") or context.get("override_worker_entrypoint")
    if is_odd or any("$" in value for value in variables.values()):
        os.execv(sys.executable, [sys.executable, *command])
    os.environ.update(variables)
    return rest


if __name__ == "__main__":
    (sys.argv, held) = main(sys.argv[1])
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
