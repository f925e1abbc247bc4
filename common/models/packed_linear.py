"""Linear layers whose weights are packed for products of few rows, as decoding makes them.

A step of a small batch multiplies 2 to 32 rows by weights of megabytes. The general product reads a
weight in its stored order and reaches half of what memory gives; oneDNN's reads one that was
reordered before, which pays where it is read often enough.

Shape letters: n rows, C channels in, E channels out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from common.large_pages import enlarge
from common.models.products import LEAST, linear

LEAST_ELEMENTS = 2**19
"""Of a weight: smaller ones stay in a cache, where the call itself costs more than it gains."""
MOST_ROWS = 48
"""Beyond these the general product is as fast."""
WIDE = 8192
"""From so many channels out on, as a head has, the packed product wins at more rows."""
MOST_ROWS_WIDE = 256
LEAST_STEPS = 32
"""Packing costs as much as ten products, of which each saves a third."""
LEAST_STEPS_ENLARGED = 128
"""Large pages for the packed weights cost as much as they save in a hundred steps of a few rows."""


@dataclass(frozen=True, slots=True)
class Pack:
    """A reordered copy, and of which values: an update in place counts the version up."""

    weight: Tensor
    version: int
    address: int
    packed: Tensor

    def is_of(self, weight: Tensor) -> bool:
        same = self.weight is weight and self.address == weight.data_ptr()
        return same and self.version == weight._version


_PACKS: "WeakKeyDictionary[Linear, Pack]" = WeakKeyDictionary()


class Linear(nn.Linear):
    """As torch's, by `products.linear`; inside `packed`, without gradients, few rows go through the
    packed weight."""

    _pack: Pack | None = None

    def forward(self, input: Tensor) -> Tensor:
        pack = self._pack
        if pack is None or torch.is_grad_enabled() or not self._is_few(input):
            if input.numel() * self.out_features < LEAST:  # asked here, where it costs least
                return super().forward(input)
            return linear(input, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(input, pack.packed, self.bias, "none", [], "")

    def _is_few(self, input_nC: Tensor) -> bool:
        few = input_nC.numel() <= _most_rows(self) * self.in_features
        return few and input_nC.dtype == self.weight.dtype


@contextmanager
def packed(model: nn.Module, steps: int, rows: int) -> Iterator[None]:
    """Within it, products of few rows use packed weights, if `steps` of `rows` rows or so pay for
    the packing.

    Weights must not change meanwhile. A packed copy is kept as long as its layer, and made again
    when the weights were changed since (by anything but `.data`, which torch does not count).
    """
    layers = [layer for layer in model.modules() if isinstance(layer, Linear) and _gains(layer)]
    taken = [layer for layer in layers if layer._pack is None]  # within another call they are set
    for layer in taken:
        layer._pack = _pack_of(layer, steps if rows <= _most_rows(layer) else 0)
    try:
        yield
    finally:
        for layer in taken:
            layer._pack = None


def _pack_of(layer: Linear, steps: int) -> Pack | None:
    pack, weight = _PACKS.get(layer), layer.weight
    if pack is not None and pack.is_of(weight):
        return pack
    _PACKS.pop(layer, None)  # before the next is made, so that two are never held
    if steps < LEAST_STEPS:
        return None
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    if steps >= LEAST_STEPS_ENLARGED:
        enlarge(torch.ops.mkldnn.data_ptr(reordered), weight.nbytes)
    found = Pack(weight, weight._version, weight.data_ptr(), reordered)
    _PACKS[layer] = found
    return found


def packed_bytes(model: nn.Module, steps: int = LEAST_STEPS) -> int:
    """What packed copies of the model's weights take at most on this machine's CPU, where it
    decodes in so many steps."""
    if steps < LEAST_STEPS:
        return 0
    layers = [layer for layer in model.modules() if isinstance(layer, Linear) and _is_large(layer)]
    return sum(layer.weight.nbytes for layer in layers if _packs(layer.weight.dtype))


def _gains(layer: Linear) -> bool:
    weight = layer.weight
    counted = not weight.is_inference()  # tensors of inference mode do not count their updates
    return weight.device.type == "cpu" and counted and _is_large(layer) and _packs(weight.dtype)


def _most_rows(layer: Linear) -> int:
    return MOST_ROWS_WIDE if layer.out_features >= WIDE else MOST_ROWS


def _is_large(layer: Linear) -> bool:
    return layer.weight.numel() >= LEAST_ELEMENTS


def _packs(dtype: torch.dtype) -> bool:
    """Whether this CPU has packed products of that type that are faster than the general ones."""
    is_x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    if not is_x86 or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return dtype == torch.float32
