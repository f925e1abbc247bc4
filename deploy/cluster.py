"""Starts a private local Ray cluster, or joins the one that a job was submitted to."""

import importlib
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from deploy.config import RunConfig

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the controller's default poll costs 2 s a report
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "OMP_NUM_THREADS": "1",
    "RAY_worker_maximum_startup_concurrency": "4",  # else Ray warns of our dozen small actors
}


@contextmanager
def cluster(config: RunConfig, cpus: int | None = None) -> Iterator[None]:
    """A Ray connection for the block; a cluster that was started here is shut down after it.

    It offers `cpus`, by default what the roles of one run need.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    joined = bool(os.environ.get("RAY_ADDRESS"))
    if not joined:
        secure_environment()
    import ray

    if ray.is_initialized():  # somebody else's connection, e.g. a test session's
        yield
        return
    if joined:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        folder = None
    else:
        folder = tempfile.mkdtemp(prefix="vk-", dir="/tmp" if os.path.isdir("/tmp") else None)
        ray.init(
            address="local",
            num_cpus=cpus or logical_cpus(config),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=int(config.cluster.object_store_mb * 2**20),
            _temp_dir=folder,  # sockets live below: the path must be short
        )
    try:
        yield
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


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
    """Ray's servers listen on every interface: let in only who knows this run's random token."""
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def logical_cpus(config: RunConfig) -> int:
    """CPUs that a private cluster must offer so that every actor starts, however few there are."""
    needed = (
        config.rollout.workers * config.rollout.cpus
        + config.teacher.replicas * config.teacher.cpus
        + config.learner.ranks * config.learner.cpus
    )
    return max(os.cpu_count() or 1, int(needed) + 2)
