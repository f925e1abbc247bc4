"""Lets the workers of a cluster that is about to be started be imported for, while a command reads
and checks. Imports nothing heavy itself."""

import os
import sys
from contextlib import ExitStack
from typing import Any

from deploy.backend.forking.fork_server import ForkServer
from deploy.backend.joined_cluster import joined_address

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the controller's default poll costs 2 s a report
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "OMP_NUM_THREADS": "1",
    "RAY_worker_maximum_startup_concurrency": "4",  # else Ray warns of our dozen small actors
}
"""Of every process that speaks with Ray."""
PRIVATE_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process that watches for nodes to be reclaimed
    # Every call of every actor is a task: the GCS would keep the last 100,000, of 3 KB each.
    "RAY_task_events_max_num_task_in_gcs": "10000",
    "RAY_prestart_worker_first_driver": "0",  # they know no job, so a fork server for them alone
}
"""For a cluster that is started here."""
OF_WORKERS = {"PYTHONUNBUFFERED": "1"}
"""What a raylet adds that is read while Python starts."""
_begun: list[ForkServer] = []
"""Before there is a cluster to use it; at most one."""


def begin_imports(stack: ExitStack) -> ForkServer | None:
    """Start the fork server of the private cluster that this command will start, if it will and
    the system can; it ends with the stack."""
    if not _begun and (server := _fork_server(stack)) is not None:
        _begun.append(server)
        stack.callback(_begun.clear)
        return server
    return None


def also_import(*modules: str) -> None:
    """What only some commands need of their workers; where nothing was begun, they import it."""
    for server in _begun:
        server.also_import(modules)


def begun_imports(stack: ExitStack) -> ForkServer | None:
    """The fork server of the cluster that is about to be started, which ends with the stack; None
    where workers start as Ray has it."""
    return _begun.pop() if _begun else _fork_server(stack)


def _fork_server(stack: ExitStack) -> ForkServer | None:
    ray: Any = sys.modules.get("ray")
    is_connected = ray is not None and ray.is_initialized()  # and starts no other cluster
    if sys.platform != "linux" or is_connected or joined_address() is not None:
        return None
    try:
        server = ForkServer({**ENVIRONMENT, **os.environ, **OF_WORKERS})
    except OSError:  # no process to spare: Ray says so, if it finds none either
        return None
    stack.callback(server.close)
    return server
