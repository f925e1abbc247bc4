"""Which leases are trained: all before the first one that is not, and some beyond it."""

from collections.abc import Iterable
from typing import Any

NOTHING: dict[str, Any] = {"step": 0, "frontier": 0, "beyond": []}
"""The state that a run begins with."""


class Frontier:
    """Holds what lies beyond the frontier alone, so it stays as small as what is outstanding."""

    def __init__(self, state: dict[str, Any]) -> None:
        """`state` as `state()` gave it, from JSON as well."""
        self.step: int = state["step"]
        """Steps that are done."""
        self._first: int = state["frontier"]
        self._beyond: set[int] = set(state["beyond"])

    def add(self, step: int, numbers: Iterable[int]) -> None:
        """`numbers` were trained and `step` steps are done."""
        self.step = step
        self._beyond.update(numbers)
        while self._first in self._beyond:
            self._beyond.remove(self._first)
            self._first += 1

    def next_open(self, number: int) -> int:
        """The first lease from `number` on that is not trained."""
        number = max(number, self._first)
        while number in self._beyond:
            number += 1
        return number

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON: steps done, frontier, trained beyond it."""
        return {"step": self.step, "frontier": self._first, "beyond": sorted(self._beyond)}
