"""What the driver does while a run goes on: rows to disk and screen, requests to stop."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from common.errors import InputError, RunFailed, ServiceDied, Verdict
from common.exchange.metrics import PROFILE, RowLogger
from deploy.backend.supervisor import Supervisor
from deploy.console.faults import GO_ON
from deploy.console.progress import Bar
from deploy.console.stopping import NAMES, StopRequest
from deploy.pipeline import Services
from deploy.run_folder.lock import Tenancy
from deploy.run_folder.workspace import Workspace
from deploy.stages.stall_watch import StallWatch
from deploy.stages.steering import Steering

SHOWN = {
    "loss": "loss",
    "img/s": "images_per_second",
    "version": "version",
    "lag": "lag_mean",
    "buffer": "buffer/fill",
}


GONE_SECONDS = 2.0
HURRIED_SECONDS = 10.0
"""How long anybody may be silent while a run is being ended."""


@dataclass
class Watch:
    """Moves metric rows from the hub to disk and to the screen, and closes the run where somebody
    asked for that, or where rows cannot be written any more: the learner then ends in order. What
    the rows say of the run's balance is for `steering`."""

    log: RowLogger
    bar: Bar
    stop: StopRequest
    target: Console
    steering: Steering
    tenancy: Tenancy
    carried: tuple[dict[str, Any], ...] = ()
    """Rows that came with the snapshot: they are written, once more maybe, before the first new
    ones; before that the folder stays as it was."""
    failure: InputError | None = None
    rows: int = 0
    stall: StallWatch = field(default_factory=StallWatch)
    shown: dict[str, float] = field(default_factory=dict)
    actors: dict[str, int] = field(default_factory=dict)
    """How many of each role were there last."""
    is_closing: bool = False
    closing_since: float | None = None
    gone_since: float | None = None
    """Since when the run folder has not been there."""
    deaths: dict[str, str] = field(default_factory=dict)
    """Who died that a run can do without."""

    def patience(self, seconds: float) -> float:
        """How long anybody may be silent where the learner waits for batches for `seconds`: half of
        it, so that others can still take its place; less while the run is being ended."""
        is_ending = self.is_closing or self.stop.name is not None
        return min(seconds / 2, HURRIED_SECONDS) if is_ending else seconds / 2

    def require_end(self, seconds: float) -> None:
        """Called as long as the learner is at work.

        Raises:
            RunFailed: it was told to end, or has done all its steps, `seconds` ago.
        """
        if not (self.is_closing or self.bar.is_full):
            return
        self.closing_since = self.closing_since or time.monotonic()
        if time.monotonic() - self.closing_since > seconds:
            since = "being told to" if self.is_closing else "its last one"
            raise RunFailed(
                f"the learner did not end its step and store it within {seconds:g} s "
                f"(learner.stop_seconds) of {since}; {GO_ON}"
            )

    def follow(self, services: Services, crew: Supervisor, stop_seconds: float) -> None:
        """As `poll`, of a learner in another process, which must end within `stop_seconds`."""
        self.poll(services, crew)
        self.require_end(stop_seconds)

    def poll(self, services: Services, crew: Supervisor | None = None) -> None:
        """To be called a few times per second; `crew` are the workers, where they have processes
        of their own."""
        self.stop.heed_limit()
        if self.stop.name is not None and not self.is_closing:
            self.is_closing = True
            is_signal = self.stop.name in NAMES.values()
            once_more = "; once more ends at once" if is_signal else ""
            self.target.print(f"{self.stop.name}: stopping after this step{once_more}")
            services.close(f"stopped by {self.stop.name}")
        self._require_folder(services)
        rows = self._new_rows(services)
        self.rows += len(rows)
        steps = [row for row in rows if PROFILE not in row]
        if crew is not None:
            self.actors = {f"actors/{role}": count for role, count in crew.counts.items()}
        for row in steps:
            self.steering.hear(row, crew)
            row |= self.actors
        if rows and self.failure is None:
            self._write([*self.carried, *rows], services)
            self.carried = ()
        if steps:
            for row in steps:  # a step without student rows has no lag: show the last one
                self.shown |= {name: row[key] for name, key in SHOWN.items() if key in row}
            self.bar.show(steps[-1]["step"], self.shown)
        if not self.is_closing and "metrics" not in self.deaths:
            self.stall.look(len(steps), services, self.steering.say)
        if not self.is_closing:
            self.steering.steer(crew)
        self.steering.tell(crew, self.bar.seconds_left, self.deaths)

    def _new_rows(self, services: Services) -> list[dict[str, Any]]:
        if "metrics" in self.deaths:
            return []
        try:
            return services.hub.since(self.rows)
        except ServiceDied as error:
            self.deaths["metrics"] = str(error)
            said = str(error).partition(";")[0]
            self.steering.say(f"warning: {said}; the run goes on without metrics")
            return []

    def _require_folder(self, services: Services) -> None:
        """End the run whose folder was taken away: what is open there can be written, and is lost.
        A file system on the network may be away for a moment."""
        if self.is_closing or not self.tenancy.is_gone():
            self.gone_since = None
            return
        self.gone_since = self.gone_since or time.monotonic()
        if time.monotonic() - self.gone_since >= GONE_SECONDS:
            try:
                self.tenancy.require()
            except InputError as error:
                self._fail(error, services)

    def _write(self, rows: list[dict[str, Any]], services: Services) -> None:
        try:
            self.log.write(rows)
        except InputError as error:  # e.g. a full disk: a last snapshot may still find room
            self._fail(error, services)

    def _fail(self, error: InputError, services: Services) -> None:
        self.failure, self.is_closing = error, True
        services.close(Verdict.of(error))


@contextmanager
def clusters_unless_begun(workspace: Workspace, watch: Watch) -> Iterator[None]:
    """The learner writes its cluster map before the first step: a run that is refused there leaves
    the map of an earlier one as it was."""
    path = workspace.clusters
    before = path.read_bytes() if path.exists() else None
    try:
        yield
    finally:
        if not watch.rows and before is None:
            path.unlink(missing_ok=True)
        elif not watch.rows and before is not None and path.read_bytes() != before:
            path.write_bytes(before)
