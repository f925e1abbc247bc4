"""A run's rows as metrics of Ray, which every node's agent offers to Prometheus.

The names are documented in docs/metrics.md, "Series". Every series has the label `run`.
"""

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from common.exchange.metrics import PROFILE, UNPLOTTED
from deploy.backend.joined_cluster import joined_address

PREFIX = "varkd_"
RUN = "run"
NOTHING = sys.float_info.min
"""What a counter begins with: a rate misses the first event of a series that begins with it, and
Ray's counters take no zero."""


@dataclass(frozen=True, slots=True)
class Series:
    """One metric of Ray's."""

    name: str
    """Without PREFIX; Ray puts `ray_` before it, and `_total` behind counters."""
    kind: Literal["gauge", "counter"]
    meaning: str
    label: str | None = None
    """What the part of a row's key behind the slash is a value of."""

    @property
    def exported(self) -> str:
        """As Prometheus knows it."""
        return f"ray_{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


def _gauge(name: str, meaning: str, label: str | None = None) -> Series:
    return Series(name, "gauge", meaning, label)


def _counter(name: str, meaning: str) -> Series:
    return Series(name, "counter", meaning)


SERIES: dict[str, Series] = {
    "step": _gauge("step", "Learner steps done"),
    "version": _gauge("version", "Newest weight version that was published"),
    "images_total": _counter("images", "Images trained"),
    "images": _gauge("step_images", "Images of the step"),
    "images_per_second": _gauge("images_per_second", "Images trained a second, over 20 steps"),
    "loss": _gauge("loss", "Loss that was minimised"),
    "grad_norm": _gauge("grad_norm", "Norm of the gradient before clipping"),
    "lr": _gauge("learning_rate", "Learning rate"),
    "lag_mean": _gauge("lag_mean_steps", "Age of the weights that sampled, mean"),
    "lag_max": _gauge("lag_max_steps", "Age of the weights that sampled, oldest"),
    "seconds/": _gauge("stage_seconds", "Seconds of the step by stage", "stage"),
    "buffer/images": _gauge("buffer_images", "Scored images that wait for the learner"),
    "buffer/bytes": _gauge("buffer_bytes", "Bytes of them"),
    "buffer/fill": _gauge("buffer_fill", "Share of what may be outstanding that waits, 0 to 1"),
    "buffer/dropped": _counter("buffer_dropped", "Images dropped because they were too old"),
    "buffer/duplicates": _counter("buffer_duplicates", "Records that arrived twice"),
    "buffer/lost": _counter("buffer_lost", "Records lost with their node"),
    "teacher/busy": _gauge("teacher_busy", "Share of its time in which a teacher replica scored"),
    "teacher/waiting": _gauge("teacher_waiting", "Records that waited for a replica"),
    "busy/": _gauge("scorer_busy", "Share of its time in which a scorer worked", "scorer"),
    "lease_seconds/": _gauge("lease_seconds", "Seconds of sampling a lease", "worker"),
    "late_leases/": _gauge(
        "late_leases", "Leases of the step that another worker sampled instead", "worker"
    ),
    "actors/": _gauge("actors", "Workers and replicas that are there", "role"),
    "gate/": _gauge("gate", "State of the gate", "quantity"),
    "horizon/": _gauge("horizon", "State of the horizon", "quantity"),
    "reward/": _gauge(
        "reward", "Rewards: means, spread within groups, groups left out", "quantity"
    ),
    "kdrl/": _gauge(
        "kdrl",
        "Weight of distillation beside rewards; gradient norms of both in profiled steps",
        "quantity",
    ),
    "vapi/": _gauge(
        "vapi", "Gradient norms of regulariser and reward in profiled steps", "quantity"
    ),
    "share/": _gauge("context_share", "Share of the step's rows by context", "context"),
    "divergence/": _gauge("divergence_nats", "Divergence of open tokens", "context"),
    "between_clusters/": _gauge("between_clusters_nats", "Its part between clusters", "context"),
    "within_clusters/": _gauge("within_clusters_nats", "Its part within clusters", "context"),
    "confidence/": _gauge("confidence", "The teacher's confidence, 1 - H / log V", "context"),
    "teacher_entropy/": _gauge("teacher_entropy_nats", "The teacher's entropy", "context"),
    "student_entropy/": _gauge("student_entropy_nats", "The student's, open slots", "context"),
    "survival/": _gauge("survival", "Share of slots that the gate left open", "context"),
    "open_length/": _gauge("open_length_slots", "Open slots of a row", "context"),
    "acceptance/": _gauge("acceptance", "Share of tokens that the teacher accepts", "context"),
    "reverse_kl/": _gauge("reverse_kl_nats", "Of student and teacher, beside rewards", "context"),
    "draft_acceptance/": _gauge(
        "draft_acceptance", "Share of tokens guessed ahead that were kept", "context"
    ),
    "regulariser/": _gauge("regulariser_nats", "What keeps rewarded draws near data", "context"),
    "clipped/": _gauge("clipped", "Share of ratios of probability beyond the clip", "context"),
    "weight/": _gauge("token_weight", "Mean weight of open tokens", "context"),
    "sequence_loss/": _gauge("sequence_loss", "Loss of whole rows", "context"),
    "milestone/": _gauge("milestone", "What was measured of a student that stays", "quantity"),
    "milestone_ema/": _gauge("milestone_ema", "The same of its average", "quantity"),
}
"""By a row's key, or by its part up to the slash where the rest is a label."""


def series_of(key: str) -> tuple[Series, dict[str, str]]:
    """The metric of a row's key and its labels; a key that no table knows, of a plug-in, becomes
    a gauge of its own name."""
    first, slash, rest = key.partition("/")
    if (found := SERIES.get(key)) is not None:
        return found, {}
    found = SERIES.get(f"{first}/") if slash else None
    found = found or Series(_spelt(first), "gauge", "Of a plug-in", "context" if slash else None)
    return found, {found.label: rest} if found.label else {}


def _spelt(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)


class RayMetrics:
    """A `RowLogger`: the newest row of a run, for as long as the driver is connected.

    A private cluster has no agent that offers metrics, so there is nothing to tell.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._made: dict[str, Any] = {}
        self._counted: dict[str, float] = {}

    def write(self, rows: list[dict[str, Any]]) -> None:
        if joined_address() is None:
            return
        import ray  # not above: the driver sets Ray's environment before it first imports it

        if not ray.is_initialized():
            return
        for row in rows:
            if PROFILE not in row:
                self._tell(row)

    def close(self) -> None:
        """Nothing: the series end with the driver."""

    def _tell(self, row: Mapping[str, Any]) -> None:
        for key, value in row.items():
            is_plotted = key not in UNPLOTTED or key in SERIES
            if not is_plotted or not isinstance(value, int | float):
                continue
            series, labels = series_of(key)
            metric = self._metric(series)
            if series.kind == "gauge":
                metric.set(float(value), tags=labels)
                continue
            if key not in self._counted:
                self._counted[key] = 0
                metric.inc(NOTHING, tags=labels)
            if (more := value - self._counted[key]) > 0 and math.isfinite(more):
                self._counted[key] = value
                metric.inc(more, tags=labels)

    def _metric(self, series: Series) -> Any:
        if series.name not in self._made:
            from ray.util.metrics import Counter, Gauge

            kind = {"gauge": Gauge, "counter": Counter}[series.kind]
            labels = (RUN, series.label) if series.label else (RUN,)
            made = kind(PREFIX + series.name, series.meaning, labels)
            self._made[series.name] = made.set_default_tags({RUN: self._run})
        return self._made[series.name]
