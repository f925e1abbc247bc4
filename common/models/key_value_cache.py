"""Preallocated key-value caches of layers, and where new slots go in them.

Shape letters: B sequences, n new slots, S cached slots, H heads, D head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Placement:
    """Where n new slots belong in a cache, and which of its first S slots each one attends to.

    Both may begin with an axis of sequences: (B, n) and (B, 1, n, S).
    """

    slot_n: Tensor
    visible_nS: Tensor

    @classmethod
    def windows(cls, slot_Bn: Tensor) -> "Placement":
        """Causal, behind as many slots as each sequence has; what it wrote further on is hidden
        till it is written again."""
        cached_S = torch.arange(int(slot_Bn.max()) + 1, device=slot_Bn.device)
        return cls(slot_Bn, (cached_S <= slot_Bn[..., None])[:, None])


@dataclass(slots=True)
class KeyValueCache:
    """Keys and values of one layer, allocated once; what it returns are views, never copies."""

    capacity: int
    filled: int = 0
    key_BHSD: Tensor | None = None
    value_BHSD: Tensor | None = None

    def append(self, key_BHnD: Tensor, value_BHnD: Tensor) -> tuple[Tensor, Tensor]:
        if self.key_BHSD is None or self.value_BHSD is None:
            self.key_BHSD = key_BHnD.new_empty(self._shape(key_BHnD))
            self.value_BHSD = torch.empty_like(self.key_BHSD)
        end = self.filled + key_BHnD.shape[2]
        self.key_BHSD[:, :, self.filled : end] = key_BHnD
        self.value_BHSD[:, :, self.filled : end] = value_BHnD
        self.filled = end
        return self.key_BHSD[:, :, :end], self.value_BHSD[:, :, :end]

    def place(
        self, placement: Placement, key_BHnD: Tensor, value_BHnD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write anywhere, over what was there; slots that were never written are zeros."""
        if self.key_BHSD is None or self.value_BHSD is None:
            self.key_BHSD = key_BHnD.new_zeros(self._shape(key_BHnD))
            self.value_BHSD = torch.zeros_like(self.key_BHSD)
        slot_n, end = placement.slot_n, placement.visible_nS.shape[-1]
        for cached, new in ((self.key_BHSD, key_BHnD), (self.value_BHSD, value_BHnD)):
            if slot_n.ndim == 1:
                cached.index_copy_(2, slot_n, new)
            else:
                cached.scatter_(2, slot_n[:, None, :, None].expand_as(new), new)
        return self.key_BHSD[:, :, :end], self.value_BHSD[:, :, :end]

    def rows(self, chosen: Tensor) -> "KeyValueCache":
        """A cache of some of the sequences."""
        if self.key_BHSD is None or self.value_BHSD is None:
            raise ValueError("nothing was cached yet")
        parts = self.key_BHSD[chosen], self.value_BHSD[chosen]
        return KeyValueCache(self.capacity, self.filled, *parts)

    def joined(self, other: "KeyValueCache") -> "KeyValueCache":
        """One cache of the sequences of both, which have as many slots."""
        assert self.filled == other.filled, "sequences join at the same slot"
        found = KeyValueCache(self.capacity, self.filled)
        found.key_BHSD = _stacked(self.key_BHSD, other.key_BHSD, self.filled)
        found.value_BHSD = _stacked(self.value_BHSD, other.value_BHSD, self.filled)
        return found

    def _shape(self, key_BHnD: Tensor) -> tuple[int, int, int, int]:
        batch, heads, _, width = key_BHnD.shape
        return batch, heads, self.capacity, width


def _stacked(first: Tensor | None, second: Tensor | None, filled: int) -> Tensor:
    """Of two caches, with room as before and the first slots copied."""
    if first is None or second is None:
        raise ValueError("nothing was cached yet")
    found = first.new_empty(len(first) + len(second), *first.shape[1:])
    found[: len(first), :, :filled] = first[:, :, :filled]
    found[len(first) :, :, :filled] = second[:, :, :filled]
    return found
