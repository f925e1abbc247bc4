"""The processes of a Ray cluster that a command starts for itself: those that it has a use for."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray._private.node import Node
from ray._private.parameter import RayParams


class PrivateHead(Node):
    """Ray's store of facts and raylet, without what serves people and other machines: the
    dashboard (for which `ray.init` would wait), the autoscaler, and the reader of logs, as nobody
    is shown them. Each is a process that imports for one to two CPU seconds."""

    def __init__(
        self, *, cpus: int, store_bytes: int, folder: Path, interpreter: Path | None
    ) -> None:
        """`interpreter` starts the workers, by default this process's own.

        Raises:
            OSError, RuntimeError, ValueError: a process does not start.
        """
        self._interpreter = interpreter
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
        with run_by(self._interpreter):
            super().start_raylet(*places, **settings)

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
