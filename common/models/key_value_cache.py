"""Key-value caches of layers, and where new slots go in them.

Shape letters: B sequences, n new slots, S cached slots, H heads, D head width.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

FEW = 32
"""Slots by which a cache grows on a CPU."""
LARGE = 2**19
"""Bytes of keys from which on two products with a softmax between them, of memory without gaps, are
faster there than the fused kernel: less stays in a core's cache, where calls cost more."""
HUGE = 4
"""Times as many bytes, from which on values are kept by channel: writing a slot costs more then."""


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
    """Keys and values of one layer; what it returns are views, never copies.

    On a CPU it has room for what there is and a few more slots, and is copied when it grows: it is
    read from end to end with every token, and where that leaves out the end of each head's slots,
    memory is read at half the speed, however short the gap is. Elsewhere all is allocated once.
    """

    capacity: int
    filled: int = 0
    key_BHSD: Tensor | None = None
    value_BHSD: Tensor | None = None
    large: int = field(default=LARGE, kw_only=True)
    """Bytes of keys from which on it is read without gaps."""

    def append(self, key_BHnD: Tensor, value_BHnD: Tensor) -> tuple[Tensor, Tensor]:
        start, end = self.filled, self.filled + key_BHnD.shape[2]
        key_BHSD, value_BHSD = self._grown(key_BHnD, end)
        key_BHSD[:, :, start:end] = key_BHnD
        value_BHSD[:, :, start:end] = value_BHnD
        self.filled = end
        return key_BHSD[:, :, :end], value_BHSD[:, :, :end]

    def attended(self, query_BH1D: Tensor) -> Tensor:
        """What one query of each sequence and head mixes of all that is cached, (B, H, 1, D)."""
        assert self.key_BHSD is not None
        assert self.value_BHSD is not None
        is_exact = query_BH1D.dtype in (torch.float32, torch.float64)
        if not query_BH1D.is_cpu or not is_exact or self.key_BHSD.nbytes < self.large:
            seen = self.key_BHSD[:, :, : self.filled], self.value_BHSD[:, :, : self.filled]
            return F.scaled_dot_product_attention(query_BH1D, *seen)
        mix = self._by_slot if self.key_BHSD.nbytes < HUGE * self.large else self._by_channel
        query_R1D = query_BH1D.flatten(0, 1) * query_BH1D.shape[-1] ** -0.5
        return mix(self.key_BHSD.flatten(0, 1), query_R1D).view_as(query_BH1D)

    def _by_slot(self, key_RSD: Tensor, query_R1D: Tensor) -> Tensor:
        assert self.value_BHSD is not None
        score_R1S = torch.bmm(query_R1D, key_RSD.mT)
        score_R1S[..., self.filled :] = -torch.inf
        return torch.bmm(score_R1S.softmax(-1), self.value_BHSD.flatten(0, 1))

    def _by_channel(self, key_RSD: Tensor, query_R1D: Tensor) -> Tensor:
        """Each channel of all values in one piece, which is how they stay where it grows, and keys
        before queries: memory is read at one and a half times the speed so."""
        assert self.value_BHSD is not None
        if not self.value_BHSD.mT.is_contiguous():
            self.value_BHSD = self.value_BHSD.mT.contiguous().mT
        score_R1S = torch.bmm(key_RSD, query_R1D.mT).mT
        score_R1S[..., self.filled :] = -torch.inf
        return torch.bmm(self.value_BHSD.mT.flatten(0, 1), score_R1S.softmax(-1).mT)

    def _grown(self, new_BHnD: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Both, with room for `end` slots like the new ones."""
        key, value = self.key_BHSD, self.value_BHSD
        if key is not None and value is not None and key.shape[2] >= end:
            return key, value
        room = self.capacity
        if new_BHnD.is_cpu and not new_BHnD.is_meta:  # a plan counts what there is in the end
            room = end if new_BHnD.shape[2] > FEW else min(-(-end // FEW) * FEW, room)
        batch, heads, _, width = new_BHnD.shape

        def wider(old: Tensor | None) -> Tensor:
            found = new_BHnD.new_empty(batch, heads, room, width)
            if old is not None:
                if old.mT.is_contiguous():
                    found = new_BHnD.new_empty(batch, heads, width, room).mT
                found[:, :, : self.filled] = old[:, :, : self.filled]
            found[:, :, end:] = 0  # has no weight, but NaN would count even so
            return found

        self.key_BHSD, self.value_BHSD = found = wider(key), wider(value)
        return found

    def place(
        self, placement: Placement, key_BHnD: Tensor, value_BHnD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write anywhere, over what was there; slots that were never written are zeros."""
        if self.key_BHSD is None or self.value_BHSD is None:
            batch, heads, _, width = key_BHnD.shape
            self.key_BHSD = key_BHnD.new_zeros(batch, heads, self.capacity, width)
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
        return KeyValueCache(self.capacity, self.filled, *parts, large=self.large)

    def joined(self, other: "KeyValueCache") -> "KeyValueCache":
        """One cache of the sequences of both, which have as many slots."""
        assert self.filled == other.filled, "sequences join at the same slot"
        found = KeyValueCache(self.capacity, self.filled, large=self.large)
        found.key_BHSD = _stacked(self.key_BHSD, other.key_BHSD, self.filled)
        found.value_BHSD = _stacked(self.value_BHSD, other.value_BHSD, self.filled)
        return found


def _stacked(first: Tensor | None, second: Tensor | None, filled: int) -> Tensor:
    """Of two caches, with the room of the larger one and the first slots copied."""
    if first is None or second is None:
        raise ValueError("nothing was cached yet")
    heads, _, width = first.shape[1:]
    room = max(first.shape[2], second.shape[2])
    found = first.new_zeros(len(first) + len(second), heads, room, width)
    found[: len(first), :, :filled] = first[:, :, :filled]
    found[len(first) :, :, :filled] = second[:, :, :filled]
    return found
