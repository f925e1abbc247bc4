"""A module's state as the parts of one safetensors file, of which none is copied before it is sent.

The safetensors library copies every tensor three times on the way (to bytes, into the file, out of
it), which for a student of a gigabyte is more than the transfer. The layout is its own: eight bytes
with the header's length, the header in JSON, the tensors one after the other.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from common.exchange.views import memory_of
from common.exchange.weights import Payload

STORED = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in STORED.items()}
ALIGNED = 64
"""Tensors begin at multiples of this, as vector instructions like it."""


class Packing:
    """Packs one module's state again and again; takes memory for what it converts only once."""

    def __init__(self, state: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
        """`state` is the module's, whose tensors stay where they are; those that `dtypes` names
        travel in its types, the others as they are."""
        self._state = state
        self._dtypes = dtypes
        self._converted: dict[str, Tensor] = {}

    def parts(self) -> Payload:
        """The header, then a part for every tensor that is not empty: its own memory, where its
        type and device allow it. Whoever keeps them copies them before the module changes."""
        state = self._state
        kinds = {name: self._dtypes.get(name, value.dtype) for name, value in state.items()}
        # Wide ones first: so every offset is a multiple of its tensor's item.
        names = sorted(state, key=lambda name: -kinds[name].itemsize)
        header, end = {}, 0
        for name in names:
            size = state[name].numel() * kinds[name].itemsize
            header[name] = {
                "dtype": NAMES[kinds[name]],
                "shape": list(state[name].shape),
                "data_offsets": [end, end + size],
            }
            end += size
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % ALIGNED)
        head = np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)
        tensors = [self._sent(name, state[name].detach(), kinds[name]) for name in names]
        return [head, *(_bytes(tensor) for tensor in tensors if tensor.numel())]

    def _sent(self, name: str, value: Tensor, kind: torch.dtype) -> Tensor:
        if value.dtype == kind and value.device.type == "cpu" and value.is_contiguous():
            return value
        if name not in self._converted:
            self._converted[name] = torch.empty(value.shape, dtype=kind)
        return self._converted[name].copy_(value)


def pack(module: nn.Module, dtype: torch.dtype) -> Payload:
    """A module's state, once: what travels to rollout workers; `Packing.parts`. Parameters travel
    in `dtype`; buffers as they are (a quantiser must stay exact)."""
    dtypes = {name: dtype for name, _ in module.named_parameters()}
    return Packing(module.state_dict(), dtypes).parts()


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.reshape(-1).view(torch.uint8).numpy()


def unpack(payload: Payload) -> dict[str, Tensor]:
    """The tensors by name: views of the payload, which may be shared memory. Nobody writes to them.

    No tensor lies in two parts of it; all of them may be in one.

    Raises:
        ValueError: these are not the parts of such a file.
    """
    head, *rest = [np.frombuffer(part, np.uint8) for part in payload]
    body = 8 + int.from_bytes(head[:8].tobytes(), "little")
    header = json.loads(head[8:body].tobytes())
    parts = [head[body:], *rest]
    starts = [0, *accumulate(len(part) for part in parts)]
    found = {}
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        dtype, (first, last) = STORED[facts["dtype"]], facts["data_offsets"]
        at = bisect_right(starts, first) - 1
        whole = last - first == prod(facts["shape"]) * dtype.itemsize
        if not whole or (last > first and (at == len(parts) or last > starts[at + 1])):
            raise ValueError(f"packed weights: {name} lies outside their {starts[-1]} bytes")
        if last > first:
            data = parts[at][first - starts[at] : last - starts[at]]
            flat = torch.frombuffer(memory_of(data), dtype=dtype)
        else:
            flat = torch.empty(0, dtype=dtype)
        found[name] = flat.view(facts["shape"])
    return found
