"""Steps of one token a row that a decoding borrows, with memory of their own for what is cached.

Shape letters: R rows (sequences, and their twins under guidance), V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from common.models.key_value_cache import KeyValueCache


class TokenSteps(ABC):
    """One model's steps, for one decoding of up to `rows` rows at a time."""

    rows: int
    owner: "StaticCaches | None" = None

    def adopt(self, caches: Sequence[KeyValueCache]) -> "StaticCaches":
        """These caches in the steps' own memory."""
        self._begin(caches)
        self.owner = StaticCaches(self, self.take(caches, 0), caches[0].filled)
        return self.owner

    def _begin(self, caches: Sequence[KeyValueCache]) -> None:
        if self.owner is not None:
            raise ValueError("steps serve one decoding at a time")
        self._make_room(caches)

    def predict(self, model: Any, state: Any) -> Tensor | None:
        """logit_R1V of a state's current step, where there is one token a row to feed; None before
        anything is cached."""
        if not isinstance(state.cache, StaticCaches):
            if state.cache[0].filled == 0:
                return None
            state.cache = self.adopt(state.cache)
        if state.cache is not self.owner:
            raise ValueError("what was decoded is over, and its memory is others'")
        state.cache.filled += 1
        slot = state.slots.start
        return self(model, state.token_BL[:, slot - 1], slot)[:, None]

    def release(self) -> None:
        """The decoding is over."""
        self.owner = None

    @abstractmethod
    def serves(self, model: Any, rows: int) -> bool:
        """Whether they can go on with the model as it is now, and so many rows find room."""

    @abstractmethod
    def take(self, caches: Sequence[KeyValueCache], first: int) -> int:
        """Copy what is cached to the rows from `first` on; how many rows it is."""

    @abstractmethod
    def __call__(self, model: Any, token_R: Tensor, slot: int) -> Tensor:
        """logit_RV of the step that feeds these tokens at this slot; the next call overwrites
        them."""

    @abstractmethod
    def _make_room(self, caches: Sequence[KeyValueCache]) -> None:
        """For whole sequences of what such caches hold."""


@dataclass(slots=True)
class StaticCaches:
    """The caches of a state whose keys and values are the steps': their first rows."""

    steps: TokenSteps
    rows: int
    filled: int

    def admit(self, caches: Sequence[KeyValueCache]) -> None:
        """The sequences of these caches as well, after those that are there."""
        self.rows += self.steps.take(caches, self.rows)


def cached(of: Tensor | None) -> Tensor:
    """What is in a cache that was written to."""
    if of is None:
        raise ValueError("nothing was cached yet")
    return of
