"""A module's state as the bytes of one safetensors file, written and read with a single copy.

The safetensors library copies every tensor three times on the way (to bytes, into the file, out of
it), which for a student of a gigabyte is more than the transfer. The layout is its own: eight bytes
with the header's length, the header in JSON, the tensors one after the other.
"""

import json
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


def pack(module: nn.Module, dtype: torch.dtype) -> memoryview:
    """A module's state as safetensors bytes: what travels to rollout workers.

    Parameters travel in `dtype`; buffers as they are (a quantiser must stay exact).
    """
    parameters = dict(module.named_parameters())
    state = module.state_dict()
    kinds = {name: dtype if name in parameters else value.dtype for name, value in state.items()}
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
    packed = np.empty(8 + len(text) + end, np.uint8).data  # a bytearray is filled with zeros first
    packed[: 8 + len(text)] = len(text).to_bytes(8, "little") + text
    for name, value in unpack(packed).items():
        value.copy_(state[name].detach())
    return packed


def unpack(payload: Payload) -> dict[str, Tensor]:
    """The tensors by name: views of the payload, which may be shared memory. Nobody writes to them.

    Raises:
        ValueError: the bytes are not such a file.
    """
    data = np.frombuffer(payload, np.uint8)
    body = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:body].tobytes())
    memory = memory_of(data)
    found = {}
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        dtype, (first, last) = STORED[facts["dtype"]], facts["data_offsets"]
        count = prod(facts["shape"])
        if last - first != count * dtype.itemsize or body + last > len(data):
            raise ValueError(f"packed weights: {name} lies outside their {len(data)} bytes")
        if count:
            flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=body + first)
        else:
            flat = torch.empty(0, dtype=dtype)
        found[name] = flat.view(facts["shape"])
    return found
