"""A number over a run of any length in little memory: neighbours are merged as it goes on."""

import math
from dataclasses import dataclass, field

MOST = 300
"""Points of a curve, at which half as many are made of them."""


@dataclass(slots=True)
class Curve:
    """Means of so many values each, in the order in which they came."""

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    width: int = 1
    """Values in a point."""
    _sums: tuple[float, float, int] = (0.0, 0.0, 0)

    def add(self, step: float, value: float) -> None:
        """One more value; what is not finite is left out."""
        if not math.isfinite(value):
            return
        at, total, count = self._sums
        self._sums = at + step, total + value, count + 1
        if count + 1 == self.width:
            self._close()
            if len(self.steps) >= MOST:
                self.steps, self.values = _pairs(self.steps), _pairs(self.values)
                self.width *= 2

    def points(self) -> list[tuple[float, float]]:
        """(step, value), the unfinished one too."""
        found = list(zip(self.steps, self.values, strict=True))
        at, total, count = self._sums
        return [*found, (at / count, total / count)] if count else found

    def _close(self) -> None:
        at, total, count = self._sums
        self.steps.append(at / count)
        self.values.append(total / count)
        self._sums = 0.0, 0.0, 0


def _pairs(numbers: list[float]) -> list[float]:
    return [(a + b) / 2 for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
