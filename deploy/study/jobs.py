"""What a cell of a study is asked for, and what it found: one file, known by all it depends on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from common.errors import InputError
from common.files.made_from import difference
from common.files.paths import read_json
from deploy.config import RunConfig
from deploy.study.analysis.results import CellFacts, Measurement

HARMLESS = ("out", "images", "tokens", "pretrain", "buffer", "sample", "cluster")
"""Sections that change nothing a cell finds: what was made by them counts, and where it runs."""
RESERVATIONS = frozenset({"cpus", "gpus"})


@dataclass(frozen=True)
class Job:
    """All that a process needs to run one cell; it travels to wherever there is room."""

    method: str
    seed: int
    config: RunConfig
    start: Path
    """The run folder of the shared start."""
    folder: Path
    """The cell's own."""
    scales: tuple[float, ...]
    fixed: float
    weights: Literal["student", "student_ema"]
    contents: Mapping[str, str | None] = field(default_factory=dict)
    """Digests of the start's files, by what they are (deploy/study/start.py)."""
    threads: int = 1
    after: "Job | None" = None
    """The cell with whose student (its average) this one begins."""

    @property
    def made_from(self) -> dict[str, Any]:
        """All that decides what the cell finds, for people and for `request`."""
        tree = self.config.model_dump(mode="json", exclude=set(HARMLESS))
        for role in ("rollout", "teacher", "learner"):
            tree[role] = {key: v for key, v in tree[role].items() if key not in RESERVATIONS}
        for role in ("teacher", "learner"):
            tree[role].pop("weights")  # its contents count
        asked = {"scales": self.scales, "fixed": self.fixed, "weights": self.weights}
        found = {**tree, "measured": asked, "start": dict(self.contents)}
        return found | ({"after": self.after.request} if self.after else {})

    @property
    def request(self) -> str:
        """Changes whenever the cell would have to be run anew."""
        canonical = json.dumps(self.made_from, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def result(self) -> Path:
        return self.folder / "cell.json"

    @property
    def begun(self) -> Path:
        """Which request the folder's unfinished run is for."""
        return self.folder / "begun.json"


@dataclass(frozen=True)
class Found:
    """What a cell found."""

    facts: CellFacts
    measurements: list[Measurement]
    commit: str


def read_cell(job: Job) -> Found | None:
    """What this very cell found earlier; None where there is work to do."""
    stored = _stored(job)
    if stored is None or stored.get("request") != job.request:
        return None
    try:
        rows = [Measurement(**row) for row in stored["measurements"]]
        return Found(CellFacts(**stored["facts"]), rows, stored["commit"])
    except (KeyError, TypeError):
        return None


def why_again(job: Job) -> str | None:
    """Why a cell that has a result is not done; None where it has none."""
    if not job.result.exists():
        return None
    stored = _stored(job)
    if stored is None or stored.get("request") == job.request:
        return f"{job.result} is damaged"
    return difference(stored.get("made_from", {}), job.made_from)


def _stored(job: Job) -> dict[str, Any] | None:
    """The cell's file; None where there is none, or none that a cell wrote."""
    try:
        stored = read_json(job.result, "the result of a cell")
    except (FileNotFoundError, InputError):
        return None
    return stored if isinstance(stored, dict) else None
