"""How busy learner, teacher and rollout are, and which of them is the bottleneck of a run.

Each is a share of wall-clock time from 0 to 1: what the learner spends in its steps and not waiting
for a batch; what the replicas of the teacher and of other scorers compute; what the rollout workers
sample and do not wait for a lease. It is read off the rows of metrics that every step posts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

HARDLY_WAITS = 0.9
"""Of the learner's time in its steps: whatever the others do, it is no faster."""
BUSY = 0.7
"""Who is idle for longer than this leaves holds nobody up alone."""
ADVICE = {
    "learner": "more learner.world_size, or larger GPUs, make the run faster",
    "teacher": "more teacher.replicas make the run faster",
    "rollout": "more rollout.workers make the run faster",
    "none": "they wait for one another: a larger learner.max_staleness lets sampling run ahead",
}
TEACHER, OTHERS = "teacher/busy", "busy/"
"""Keys of a row: the teacher's share, and the beginning of that of every other scorer."""


@dataclass(frozen=True, slots=True)
class Load:
    """The busy shares over some steps."""

    learner: float
    scorers: Mapping[str, float]
    """By name, "teacher" first; those that were asked."""
    rollout: float
    steps: int

    @property
    def bottleneck(self) -> str:
        """Who holds the others up; "none" where nobody is busy for most of the time."""
        if self.learner >= HARDLY_WAITS:
            return "learner"
        others = {**self.scorers, "rollout": self.rollout, "learner": self.learner}
        busiest = max(others, key=lambda stage: others[stage])
        return busiest if others[busiest] >= BUSY else "none"

    def sentence(self) -> str:
        """For people: who, how busy everybody is, and what would help."""
        scorers = "".join(f"{name} {share:.0%}, " for name, share in self.scorers.items())
        shares = f"learner {self.learner:.0%}, {scorers}rollout {self.rollout:.0%} busy"
        own = f"more scorers.{self.bottleneck.removeprefix('scorer-')}.replicas make the run faster"
        return f"{self.bottleneck} ({shares}; {ADVICE.get(self.bottleneck, own)})"

    def as_dict(self) -> dict[str, Any]:
        """For files."""
        shares = {"learner": self.learner, **self.scorers, "rollout": self.rollout}
        busy = {stage: round(share, 4) for stage, share in shares.items()}
        return {"bottleneck": self.bottleneck, "busy": busy}


class LoadMeter:
    """Adds up rows of metrics into one `Load`."""

    def __init__(self, world_size: int) -> None:
        """A row has the seconds of one of `world_size` equal parts of its step."""
        self._parts = world_size
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.steps = 0
        self.seconds = 0.0
        self._worked = self._sampled = self._offered = 0.0
        self._scored: dict[str, list[float]] = {"teacher": []}

    def add(self, row: Mapping[str, Any], workers: int) -> None:
        """One step, during which so many workers were there."""
        step, wait = float(row["seconds/step"]), float(row["seconds/wait"])
        self.steps += 1
        self.seconds += step + wait
        self._worked += step
        self._sampled += float(row.get("seconds/rollout", 0.0)) * self._parts
        self._offered += (step + wait) * workers
        for key, share in row.items():
            if share and (key == TEACHER or key.startswith(OTHERS)):
                name = "teacher" if key == TEACHER else key.removeprefix(OTHERS)
                self._scored.setdefault(name, []).append(float(share))

    def load(self) -> Load | None:
        """None before a step was added that took any time."""
        if not self.seconds:
            return None
        return Load(
            learner=self._worked / self.seconds,
            scorers={name: fmean(shares) for name, shares in self._scored.items() if shares},
            rollout=min(1.0, self._sampled / self._offered) if self._offered else 0.0,
            steps=self.steps,
        )
