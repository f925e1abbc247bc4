"""Starts a private local Ray cluster, or joins the one that a job was submitted to."""

import importlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

from rich.console import Console

from common.config.plugin_path import VARIABLE, plugin_folders
from common.errors import RunFailed
from deploy.backend.bundles import run_bundles
from deploy.backend.early_imports import ENVIRONMENT, PRIVATE_ENVIRONMENT, begun_imports
from deploy.backend.joined_cluster import joined_address, refused, require_cluster
from deploy.backend.private_cluster import private_folder, require_limits, worker_environment
from deploy.backend.role import limits_of
from deploy.config import RunConfig
from deploy.console.progress import Bar, busy
from deploy.console.stopping import handlers_kept, hangups_ignored


@contextmanager
def cluster(
    config: RunConfig,
    cpus: int | None = None,
    told: Bar | Console | None = None,
    needed: str | None = None,
) -> Iterator[None]:
    """A Ray connection for the block; a cluster that was started here is shut down after it.

    It offers `cpus`, by default what the roles of one run need. `told` hears what is waited for.
    `needed` is a module that the block will import; it is, while Ray starts.

    Raises:
        InputError: RAY_ADDRESS names no cluster that can be joined, or the machine's limits are
            too low for a private one.
        RunFailed: Ray does not start.
    """
    address = joined_address()
    for name, value in (ENVIRONMENT | (PRIVATE_ENVIRONMENT if address is None else {})).items():
        os.environ.setdefault(name, value)
    if address is None:
        secure_environment()
    import ray

    if ray.is_initialized():  # somebody else's connection, e.g. a test session's
        yield
        return
    with ExitStack() as stack:
        with _importing(needed) if needed else nullcontext():
            if address is None:
                _start(config, cpus, told, stack)
            else:
                _join(address, told, stack)
        yield


@contextmanager
def _importing(module: str) -> Iterator[None]:
    """Import it beside the block, which ends no sooner; whoever needs it hears what went wrong."""

    def load() -> None:
        with suppress(ImportError):
            importlib.import_module(module)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _join(address: str, told: Bar | Console | None, stack: ExitStack) -> None:
    import ray
    from ray.exceptions import RayError

    from deploy.backend.head_watch import HeadWatch, JoinedHead

    with _waiting(told, f"joining the Ray cluster at {address} (RAY_ADDRESS)") as say:
        require_cluster(address, say)
        stack.callback(ray.shutdown)
        try:
            with handlers_kept():
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    runtime_env=plugin_environment(other_machines=True),
                )
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise refused(address, str(error).strip().partition("\n")[0]) from error
    stack.enter_context(HeadWatch(JoinedHead(address, _ask_head)))
    stack.callback(ray.shutdown)  # which may hang: still watched


def _ask_head(seconds: float) -> None:
    """Return once the connected cluster's store of facts has answered.

    Raises:
        Exception: one of Ray's own, after so many seconds.
    """
    from ray._private import worker

    connection: Any = worker.global_worker
    connection.gcs_client.internal_kv_exists(b"varkd", None, timeout=seconds)


def _start(
    config: RunConfig, cpus: int | None, told: Bar | Console | None, stack: ExitStack
) -> None:
    import ray
    from ray.exceptions import RayError

    from deploy.backend.head_watch import HeadWatch, PrivateProcesses
    from deploy.backend.private_head import PrivateHead

    with _waiting(told, "starting a private Ray cluster") as say:
        warning = require_limits(config.cluster.object_store_mb)
        if warning:
            say(f"warning: {warning}")
        folder = stack.enter_context(private_folder())
        try:
            with handlers_kept():  # Ray's end the process at once
                with hangups_ignored():
                    head = PrivateHead(
                        cpus=cpus or logical_cpus(config),
                        store_bytes=int(config.cluster.object_store_mb * 2**20),
                        folder=folder,
                        workers=begun_imports(stack),
                    )
                processes = PrivateProcesses(head)
                stack.enter_context(HeadWatch(processes))  # until all has been ended
                stack.callback(processes.end)
                stack.callback(ray.shutdown)
                ray.init(
                    address=head.gcs_address,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    runtime_env=worker_environment() | plugin_environment(),
                )
        except (OSError, RuntimeError, ValueError, RayError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise RunFailed(f"Ray does not start on this machine: {reason}") from error


@contextmanager
def _waiting(told: Bar | Console | None, what: str) -> Iterator[Callable[[str], object]]:
    """Say `what`, again and again where there is nothing else to see; yields what says more."""
    if isinstance(told, Bar):
        told.say(what)
        yield told.say
    elif told is not None:
        with busy(told, what):
            yield told.print
    else:
        yield lambda more: None


def plugin_environment(*, other_machines: bool = False) -> dict[str, Any]:
    """Ray's `runtime_env` by which every process finds the user's plug-ins before it unpickles a
    config; other machines are sent the folders (`py_modules`)."""
    folders = plugin_folders()
    if not folders:
        return {}
    variables = {VARIABLE: os.environ[VARIABLE]}
    if other_machines:
        return {"env_vars": variables, "py_modules": [str(folder) for folder in folders]}
    path = [str(folder.parent) for folder in folders]
    path += filter(None, [os.environ.get("PYTHONPATH")])
    return {"env_vars": variables | {"PYTHONPATH": os.pathsep.join(path)}}


def warm_up(config: RunConfig) -> None:
    """Let idle worker processes import what the roles need, while this process does other work.

    Ray gives such a process to the next actor, which then starts at once instead of spending
    seconds on imports. Returns immediately.
    """
    import ray

    modules = ("rollout.worker", "teacher_server.teacher")
    task = ray.remote(num_cpus=0)(import_modules)
    for _ in range(config.rollout.workers + config.teacher.replicas):
        task.remote(modules)


def import_modules(names: tuple[str, ...]) -> None:
    """Import `names`, then hold the process for a moment so that its siblings get others."""
    for name in names:
        importlib.import_module(name)
    time.sleep(1.0)


def secure_environment() -> None:
    """Let nobody else in: Ray's servers, of which three know no password, listen to this machine
    only (a setting that its name promises to other systems), and want this run's random token."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    wants_token = os.environ.setdefault("RAY_AUTH_MODE", "token") == "token"
    if wants_token and not os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def logical_cpus(config: RunConfig) -> int:
    """CPUs that a private cluster must offer so that every actor starts, however few there are."""
    needed = sum(bundles.count * bundles.cpus for bundles in run_bundles(config))
    each = {bundles.section: bundles.cpus for bundles in run_bundles(config)}
    for limits in limits_of(config).values():  # for who comes later
        if limits.is_elastic:
            needed += (limits.most - limits.count) * each[limits.section]
    return max(os.cpu_count() or 1, int(needed) + 2)
