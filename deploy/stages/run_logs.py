"""Where a run's rows go: its own files first, then whoever else listens, of whom none can hold up
the run or end it."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from rich.console import Console

from common.exchange.metrics import MetricsLog, RowLogger
from deploy.backend.ray_metrics import RayMetrics
from deploy.config import RunConfig
from deploy.logger import LoggedRun
from deploy.report.html_page import NAME, PageLogger
from deploy.run_folder.workspace import Workspace

Rows = list[dict[str, Any]]
MOST_WAITING = 1000
"""Batches of rows that a slow logger may owe; it misses what comes then."""
CLOSE_SECONDS = 10.0
"""For all of them together, once a run is over: it may be on its way out."""


class RunLogs:
    """A `RowLogger` of several: the first may refuse, the others are told what it took."""

    def __init__(self, own: Sequence[RowLogger], others: Sequence["Aside"]) -> None:
        """`own` are told in the caller's thread."""
        self._own, self._others = own, others

    def write(self, rows: Rows) -> None:
        """As `MetricsLog.write`."""
        for logger in (*self._own, *self._others):
            logger.write(rows)

    def close(self) -> None:
        """As `MetricsLog.close`; the others get CLOSE_SECONDS for what they owe."""
        with ExitStack() as stack:  # all of them, whatever the first one says
            deadline = time.monotonic() + CLOSE_SECONDS
            for other in self._others:
                stack.callback(lambda other=other: other.close(deadline - time.monotonic()))
            for logger in self._own:
                stack.callback(logger.close)


class Aside:
    """A logger in a thread of its own, which is opened there with the first rows."""

    def __init__(
        self, name: str, start: Callable[[], RowLogger], say: Callable[[str], object]
    ) -> None:
        self._name, self._start, self._say = name, start, say
        self._waiting: queue.Queue[Rows | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"logger {name}", daemon=True)
        self._missed = 0
        self._failed = False

    def write(self, rows: Rows) -> None:
        """Hand rows over; never waits."""
        if not self._thread.ident:
            self._thread.start()
        if self._failed:
            return
        try:
            self._waiting.put_nowait([dict(row) for row in rows])
        except queue.Full:
            self._missed += len(rows)

    def close(self, seconds: float) -> None:
        """Wait up to `seconds` for what was handed over."""
        if not self._thread.ident:
            return
        seconds = max(seconds, 0.1)
        try:
            self._waiting.put(None, timeout=seconds)
        except queue.Full:
            self._missed += self._waiting.qsize()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._say(f"warning: {self._name} was still busy {seconds:.1f} s after the last step")
        if self._missed:
            self._say(f"warning: {self._name} was too slow for {self._missed} rows")

    def _work(self) -> None:
        try:
            logger = self._start()
            while (rows := self._waiting.get()) is not None:
                logger.write(rows)
            logger.close()
        except Exception as error:  # noqa: BLE001  of somebody else's package: whatever it raises
            self._failed = True
            first = str(error).strip().partition("\n")[0]
            self._say(
                f"warning: {self._name} failed ({type(error).__name__}: {first}); the run goes on "
                "without it"
            )


def run_logs(config: RunConfig, workspace: Workspace, target: Console) -> RunLogs:
    """The files of the run folder, its page, Ray's metrics, and the loggers of the config."""

    def say(words: str) -> None:
        target.print(words, markup=False)

    run = LoggedRun.of(workspace.root, config.model_dump(mode="json"))
    others = [
        Aside(f"loggers.{kind}", lambda logger=logger: logger.open(run), say)
        for kind, logger in config.loggers.items()
    ]
    others.insert(0, Aside(NAME, lambda: PageLogger(config, workspace), say))
    return RunLogs([MetricsLog(workspace.root), RayMetrics(run.id)], others)
