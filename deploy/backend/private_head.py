"""The processes of a Ray cluster that a command starts for itself: those that it has a use for."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray._private import ray_constants
from ray._private.node import Node
from ray._private.parameter import RayParams

from deploy.backend.forking.fork_server import ForkServer, of_ray

DASHBOARD = "ray.dashboard.optional_deps"
"""Ray imports it, for most of a second, to see whether the raylet's agent can serve a dashboard."""
ADDED = {"RAY_JOB_ID": "01000000", "RAY_LD_PRELOAD_ON_WORKERS": "0"}
"""What the raylet adds to its own variables, for a cluster's first job; workers with other ones are
not forked."""
AGENTS_SECONDS = 10.0
LOOK_SECONDS = 0.02


class PrivateHead(Node):
    """Ray's store of facts and raylet, without what serves people and other machines: the
    dashboard (for which `ray.init` would wait), the autoscaler, and the reader of logs, as nobody
    is shown them. Each is a process that imports for one to two CPU seconds."""

    def __init__(
        self, *, cpus: int, store_bytes: int, folder: Path, workers: ForkServer | None
    ) -> None:
        """`folder` is private; `workers` forks them, else they start as Ray has it.

        Raises:
            OSError, RuntimeError, ValueError: a process does not start.
        """
        self._workers = workers
        self._interpreter = workers and workers.interpreter(folder)
        wanted = RayParams(
            num_cpus=cpus,
            object_store_memory=store_bytes,
            include_dashboard=False,
            no_monitor=True,
            temp_dir=str(folder),
        )
        wanted.update(include_log_monitor=False)  # declared as text there
        super().__init__(wanted, head=True, shutdown_at_exit=False, ray_init_cluster=True)

    def start_api_server(self, **settings: Any) -> None:
        """Nothing: there is no dashboard."""

    def start_raylet(self, *places: Any, **settings: Any) -> None:
        with run_by(self._interpreter), without(DASHBOARD):
            super().start_raylet(*places, **settings)
        raylet = self.all_processes[ray_constants.PROCESS_TYPE_RAYLET][0].process
        if self._workers is not None:
            self._workers.serve(of_ray() | ADDED | {"RAY_RAYLET_PID": str(raylet.pid)})
        self._wait_for_agents(raylet)

    def _wait_for_agents(self, raylet: subprocess.Popen[bytes]) -> None:
        """Until the raylet's last agent says where it is: then the raylet registers, for which Ray
        looks once a second. What a raylet that ended means, Ray says."""
        said = Path(self.get_session_dir_path(), f"runtime_env_agent_port_{self.node_id}")
        end = time.monotonic() + AGENTS_SECONDS
        while raylet.poll() is None and not said.exists() and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)

    def end(self) -> None:
        """End its processes, and wait for them."""
        self.kill_all_processes(check_alive=False, allow_graceful=True)


@contextmanager
def run_by(interpreter: Path | None) -> Iterator[None]:
    """Ray makes the command of its workers of `sys.executable`."""
    before = sys.executable
    if interpreter is not None:
        sys.executable = str(interpreter)
    try:
        yield
    finally:
        sys.executable = before


@contextmanager
def without(module: str) -> Iterator[None]:
    """Within it this module cannot be imported."""
    before = sys.modules.get(module)
    sys.modules[module] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules[module]
        if before is not None:
            sys.modules[module] = before
