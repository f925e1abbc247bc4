"""Lays tensors one behind the other, so that what sends them has few parts to send."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from common.exchange.weights import ALIGNED

MEMORY = 256 * 2**20
"""Most bytes of one memory, unless a tensor alone has more: so many are there twice for a while."""


@torch.no_grad()
def lay_together(tensors: Iterable[Tensor], most: int = MEMORY) -> None:
    """Give them memory that they share, in their order; they keep their values and stay the same
    objects. Ray copies each part of an object by threads that it starts for it, which for parts of
    some megabytes takes longer than the copy.

    Left where they are: tensors that are not on a CPU, that are views or not contiguous, and those
    behind which the next one would not begin at a multiple of 64 bytes, as products round by that.
    """
    for group in _groups({id(tensor): tensor for tensor in tensors}.values(), most):
        sizes = [tensor.numel() for tensor in group]
        memory = torch.empty(sum(sizes), dtype=group[0].dtype)
        for place, tensor in zip(memory.split(sizes), group, strict=True):
            tensor.data = place.view(tensor.shape).copy_(tensor)


def _groups(tensors: Iterable[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Of one type each."""
    found: list[Tensor] = []
    for tensor in filter(_fits, tensors):
        is_full = sum(t.nbytes for t in found) + tensor.nbytes > most
        if found and (is_full or found[0].dtype != tensor.dtype):
            yield found
            found = []
        found.append(tensor)
    if found:
        yield found


def _fits(tensor: Tensor) -> bool:
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor.is_cpu and whole and tensor.nbytes > 0 and tensor.nbytes % ALIGNED == 0
