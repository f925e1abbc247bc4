"""What the driver does while a run goes on: rows to disk and screen, requests to stop."""

import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from common.errors import InputError, RunFailed, ServiceDied, Verdict
from common.exchange.metrics import PROFILE, RowLogger
from deploy.console.faults import GO_ON
from deploy.console.progress import Bar
from deploy.console.stopping import LIMIT, StopRequest
from deploy.pipeline import Services
from deploy.stages.stall_watch import StallWatch

SHOWN = {
    "loss": "loss",
    "img/s": "images_per_second",
    "version": "version",
    "lag": "lag_mean",
    "buffer": "buffer/fill",
}


HURRIED_SECONDS = 10.0
"""How long anybody may be silent while a run is being ended."""


@dataclass
class Watch:
    """Moves metric rows from the hub to disk and to the screen, and closes the run where somebody
    asked for that, or where rows cannot be written any more: the learner then ends in order."""

    log: RowLogger
    bar: Bar
    stop: StopRequest
    target: Console
    carried: tuple[dict[str, Any], ...] = ()
    """Rows that came with the snapshot: they are written, once more maybe, before the first new
    ones; before that the folder stays as it was."""
    failure: InputError | None = None
    rows: int = 0
    stall: StallWatch = field(default_factory=StallWatch)
    shown: dict[str, float] = field(default_factory=dict)
    is_closing: bool = False
    closing_since: float | None = None
    deaths: dict[str, str] = field(default_factory=dict)
    """Who died that a run can do without."""

    def patience(self, seconds: float) -> float:
        """How long anybody may be silent: `seconds`, and less while the run is being ended."""
        is_ending = self.is_closing or self.stop.name is not None
        return min(seconds, HURRIED_SECONDS) if is_ending else seconds

    def require_end(self, seconds: float) -> None:
        """Called as long as the learner is at work.

        Raises:
            RunFailed: it was told to end `seconds` ago.
        """
        if not self.is_closing:
            return
        self.closing_since = self.closing_since or time.monotonic()
        if time.monotonic() - self.closing_since > seconds:
            raise RunFailed(
                f"the learner did not end its step and store it within {seconds:g} s "
                f"(learner.stop_seconds) of being told to; {GO_ON}"
            )

    def follow(self, services: Services, stop_seconds: float) -> None:
        """As `poll`, of a learner in another process, which must end within `stop_seconds`."""
        self.poll(services)
        self.require_end(stop_seconds)

    def poll(self, services: Services) -> None:
        self.stop.heed_limit()
        if self.stop.name is not None and not self.is_closing:
            self.is_closing = True
            once_more = "" if self.stop.name == LIMIT else "; once more ends at once"
            self.target.print(f"{self.stop.name}: stopping after this step{once_more}")
            services.close(f"stopped by {self.stop.name}")
        rows = self._new_rows(services)
        self.rows += len(rows)
        steps = [row for row in rows if PROFILE not in row]
        if rows and self.failure is None:
            self._write([*self.carried, *rows], services)
            self.carried = ()
        if steps:
            for row in steps:  # a step without student rows has no lag: show the last one
                self.shown |= {name: row[key] for name, key in SHOWN.items() if key in row}
            self.bar.show(steps[-1]["step"], self.shown)
        if not self.is_closing and "metrics" not in self.deaths:
            self.stall.look(len(steps), services, self.target.print)

    def _new_rows(self, services: Services) -> list[dict]:
        if "metrics" in self.deaths:
            return []
        try:
            return services.hub.since(self.rows)
        except ServiceDied as error:
            self.deaths["metrics"] = str(error)
            said = str(error).partition(";")[0]
            self.target.print(f"warning: {said}; the run goes on without metrics")
            return []

    def _write(self, rows: list[dict], services: Services) -> None:
        try:
            self.log.write(rows)
        except InputError as error:  # e.g. a full disk: a last snapshot may still find room
            self.failure = error
            self.is_closing = True
            services.close(Verdict.of(error))
