"""What the learner offers the workers: its versions, and after a restart the earlier ones again.

In `ordered` mode a lease says with which version it is sampled, and the leases of the next steps
are pinned to versions that are older than the step a snapshot is of. So a snapshot holds those.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

from torch import Tensor

from common.exchange.schedule import Schedule
from common.exchange.views import view_of
from common.exchange.weights import Weights

CHECKED_EVERY = 16
"""Of so many versions one comes with what the learner computes with it."""


class RewindableWeights(Protocol):
    def publish(self, weights: Weights) -> None: ...
    def rewind(self) -> None: ...


class Published(Protocol):
    """Who has a student to publish."""

    @property
    def steps_done(self) -> int: ...
    def published(self, dtype: str, *, checked: bool = False) -> Weights: ...


class Publisher:
    """Of one run, on rank 0, or on all of them where the student is spread."""

    def __init__(
        self,
        sink: RewindableWeights | None,
        schedule: Schedule,
        dtype: str | None,
        *,
        beside: bool = False,
    ) -> None:
        """Without a `dtype` versions are numbers alone, for nobody samples the student. Without a
        `sink` another rank offers what is published; this one has its part in making it.
        `beside` lets the learner go on while a version is sent whose bytes are not its own: not in
        one process, where workers sample while the learner waits, by the same versions always."""
        self._sink = sink
        self._schedule = schedule
        self._dtype = dtype
        self._pinned: dict[int, Weights] = {}
        self._pool = ThreadPoolExecutor(1, "publish") if beside else None
        self._sending: Future[None] | None = None
        self.version = -1
        """The newest one."""
        self.count = 0
        """Versions that were published for the first time."""

    def begin(self, learner: Published, kept: Mapping[str, Tensor]) -> list[int]:
        """Offer what there was when the learner had done its steps, and nothing else; `kept` is
        what `kept()` gave then. Returns the versions before the learner's that are there."""
        if self._sink is not None:
            self._sink.rewind()
        self._pinned.clear()
        wanted = self._schedule.earlier_versions(learner.steps_done)
        there = [version for version in wanted if str(version) in kept]
        for version in there:
            self._offer(Weights.of(version, [kept[str(version)].numpy()]))
        # Of a snapshot that does not know them, or by a schedule that was changed since: the next.
        if there != wanted or self._schedule.is_published(learner.steps_done) or not there:
            self.publish(learner)
        return there

    def publish(self, learner: Published, then: Callable[[], object] = lambda: None) -> None:
        """Offer the student as it is now; `then` is called when it is there, or could not be.

        Raises:
            whatever the offer before this one failed with, or this one unless it is sent beside.
        """
        sending = False
        try:
            self.settle()  # where it lies, the next version will be
            weights = self._packed(learner)
            self.count += 1
            if self._pool is not None and weights.is_apart and not self._schedule.pins_earlier:
                self.version = weights.version
                self._sending = self._pool.submit(self._send, weights, then)
                sending = True
            else:
                self._offer(weights)
        finally:
            if not sending:
                then()

    def settle(self) -> None:
        """Wait for the version that is being sent.

        Raises:
            whatever that failed with, once.
        """
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.result()

    def close(self) -> None:
        """Send none any more; the one on its way gets its time."""
        if self._sending is not None:
            wait([self._sending])
        if self._pool is not None:
            self._pool.shutdown()

    def _packed(self, learner: Published) -> Weights:
        if self._dtype is None:
            return Weights.of(learner.steps_done, ())
        is_checked = self.count % CHECKED_EVERY == 0
        return learner.published(self._dtype, checked=is_checked)

    def _send(self, weights: Weights, then: Callable[[], object]) -> None:
        try:
            self._offer(weights)
        finally:
            then()

    def kept(self, step: int) -> dict[str, Tensor]:
        """Bytes of the versions before `step` that leases from there on are pinned to."""
        wanted = self._schedule.earlier_versions(step)
        return {
            str(version): view_of(self._pinned[version].joined())
            for version in wanted
            if version in self._pinned
        }

    def _offer(self, weights: Weights) -> None:
        self.version = weights.version
        if self._sink is None:
            return
        if self._schedule.pins_earlier:
            weights = weights.copied()
        self._sink.publish(weights)
        if self._schedule.pins_earlier:
            oldest = self._schedule.pinned_version(weights.version)
            kept = {at: held for at, held in self._pinned.items() if at >= oldest}
            self._pinned = {**kept, weights.version: weights}
