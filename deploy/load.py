"""How busy learner, teacher and rollout are, and which of them is the bottleneck of a run.

Each is a share of wall-clock time from 0 to 1: what the learner spends in its steps and not waiting
for a batch; what the teacher's replicas compute; what the rollout workers sample and do not wait
for a lease. It is read off the rows of metrics that every step posts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Stage = Literal["learner", "teacher", "rollout", "none"]
HARDLY_WAITS = 0.9
"""Of the learner's time in its steps: whatever the others do, it is no faster."""
BUSY = 0.7
"""Who is idle for longer than this leaves holds nobody up alone."""
ADVICE: Mapping[Stage, str] = {
    "learner": "more learner.world_size, or larger GPUs, make the run faster",
    "teacher": "more teacher.replicas make the run faster",
    "rollout": "more rollout.workers make the run faster",
    "none": "they wait for one another: a larger learner.max_staleness lets sampling run ahead",
}


@dataclass(frozen=True, slots=True)
class Load:
    """The busy shares over some steps."""

    learner: float
    teacher: float | None
    """None where nobody was asked."""
    rollout: float
    steps: int

    @property
    def bottleneck(self) -> Stage:
        """Who holds the others up; "none" where nobody is busy for most of the time."""
        if self.learner >= HARDLY_WAITS:
            return "learner"
        others: dict[Stage, float] = {"teacher": self.teacher or 0.0, "rollout": self.rollout}
        others["learner"] = self.learner
        busiest = max(others, key=lambda stage: others[stage])
        return busiest if others[busiest] >= BUSY else "none"

    def sentence(self) -> str:
        """For people: who, how busy everybody is, and what would help."""
        teacher = "" if self.teacher is None else f"teacher {self.teacher:.0%}, "
        shares = f"learner {self.learner:.0%}, {teacher}rollout {self.rollout:.0%} busy"
        return f"{self.bottleneck} ({shares}; {ADVICE[self.bottleneck]})"

    def as_dict(self) -> dict[str, Any]:
        """For files."""
        shares = {"learner": self.learner, "teacher": self.teacher, "rollout": self.rollout}
        busy = {stage: round(share, 4) for stage, share in shares.items() if share is not None}
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
        self._worked = self._sampled = self._offered = self._scored = 0.0
        self._asked = 0

    def add(self, row: Mapping[str, Any], workers: int) -> None:
        """One step, during which so many workers were there."""
        step, wait = float(row["seconds/step"]), float(row["seconds/wait"])
        self.steps += 1
        self.seconds += step + wait
        self._worked += step
        self._sampled += float(row.get("seconds/rollout", 0.0)) * self._parts
        self._offered += (step + wait) * workers
        if busy := float(row.get("teacher/busy", 0.0)):
            self._scored += busy
            self._asked += 1

    def load(self) -> Load | None:
        """None before a step was added that took any time."""
        if not self.seconds:
            return None
        return Load(
            learner=self._worked / self.seconds,
            teacher=self._scored / self._asked if self._asked else None,
            rollout=min(1.0, self._sampled / self._offered) if self._offered else 0.0,
            steps=self.steps,
        )
