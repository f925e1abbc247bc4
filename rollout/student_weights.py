"""The student in a worker, and which version of its weights is loaded."""

from collections.abc import Callable

from common.exchange.packed_weights import load
from common.exchange.schedule import Lease
from common.exchange.weights import Weights, WeightSource
from common.models.backbone import Backbone
from common.models.canary import require
from common.models.generator import Generator

WEIGHTS_SECONDS = 60.0
"""How long a version is waited for."""
LOOK_SECONDS = 2.0
"""Between two looks whether the lease is wanted still."""


class Withdrawn(Exception):
    """The lease is nobody's any more: its learner began again before the version was there."""


class StudentWeights:
    def __init__(
        self, student: Backbone | Generator | None, source: WeightSource, name: str
    ) -> None:
        """`student` is None where nobody samples it; `name` is the worker's, for messages."""
        self._student = student
        self._source = source
        self._name = name
        self._loaded = (-1, -1)  # generation and version

    @property
    def version(self) -> int:
        """The one that is loaded, -1 before the first."""
        return self._loaded[1]

    def load(self, lease: Lease, is_wanted: Callable[[], bool]) -> None:
        """Load the lease's version, or the newest one; skip what is loaded already.

        Raises:
            Withdrawn: `is_wanted` came to say no while the version was waited for.
            Closed, TimeoutError: of `WeightSource`.
        """
        wanted = lease.version
        if wanted is None:
            wanted = self._source.newest(WEIGHTS_SECONDS)
        if (lease.generation, wanted) == self._loaded:
            return
        if self._student is not None:
            weights = self._awaited(wanted, is_wanted)
            load(weights, self._student)
            if weights.canary is not None and isinstance(self._student, Backbone):
                value, rounding = weights.canary
                require(self._student, value, f"{self._name}, version {wanted}", rounding)
        self._loaded = (lease.generation, wanted)

    def _awaited(self, version: int, is_wanted: Callable[[], bool]) -> Weights:
        """A version of a future that is lost may never come, and nobody wants what it would sample:
        so whoever waits looks up now and then."""
        for _ in range(round(WEIGHTS_SECONDS / LOOK_SECONDS) - 1):
            try:
                return self._source.get(version, LOOK_SECONDS)
            except TimeoutError:
                if not is_wanted():
                    raise Withdrawn from None
        return self._source.get(version, LOOK_SECONDS)
