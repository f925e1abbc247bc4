"""Attention of several queries to all that is cached, in C (unmasked.c), for a CPU, without
gradient.

Shape letters: B sequences, n queries, S slots, H heads, D head width, C width.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_double, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from common.native.library import native

TYPES = torch.float32, torch.bfloat16
LEAST = 8
"""Queries from which on it is faster than torch's: fewer leave registers empty."""


class _Step(Structure):
    _fields_ = [(name, c_int64) for name in ("sequence", "head", "slot")]


class _Pass(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("query", "key", "value")),
        *((name, _Step) for name in ("query_step", "key_step", "value_step")),
        *((name, c_int64) for name in ("sequences", "heads", "queries", "slots", "channels")),
        *((name, c_int64) for name in ("is_bf16", "threads")),
        ("scale", c_double),
    ]


@cache
def _library() -> ctypes.CDLL | None:
    found = native(Path(__file__).with_name("unmasked.c")).library
    if found is not None:
        found.unmasked.argtypes = [POINTER(_Pass), c_void_p]
        found.unmasked.restype = c_int64
    return found


def mixes(query_BHnD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor) -> bool:
    """Whether the kernel can compute with these, and is faster; a compiler joins torch's operations
    itself."""
    given = query_BHnD, key_BHSD, value_BHSD
    return (
        query_BHnD.shape[2] >= LEAST
        and query_BHnD.is_cpu
        and query_BHnD.dtype in TYPES
        and all(x.dtype == query_BHnD.dtype and x.stride(-1) == 1 for x in given)
        and query_BHnD.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and _library() is not None
    )


def mixed_in_parts(
    query_BHnD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    scale: float,
    parts: Sequence[tuple[int, int]],
) -> Tensor:
    """The same of neighbours that see the first so many of the slots: (queries, slots) each."""
    found, start = [], 0
    for count, seen in parts:
        query = query_BHnD[:, :, start : start + count]
        found.append(mixed(query, key_BHSD[:, :, :seen], value_BHSD[:, :, :seen], scale))
        start += count
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def mixed(query_BHnD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, scale: float) -> Tensor:
    """softmax(scale q k) v as mixed_BnC, with the heads side by side; `scale` is positive."""
    batch, heads, queries, width = query_BHnD.shape
    slots = key_BHSD.shape[2]
    assert key_BHSD.shape == value_BHSD.shape == (batch, heads, slots, width)
    found = query_BHnD.new_empty(batch, queries, heads * width)
    if found.is_meta:
        return found
    given = query_BHnD, key_BHSD, value_BHSD
    of = _Pass(
        *(x.data_ptr() for x in given),
        *(_Step(*x.stride()[:3]) for x in given),
        *(batch, heads, queries, slots, width),
        *(found.dtype == torch.bfloat16, torch.get_num_threads(), scale),
    )
    library = _library()
    assert library is not None
    if not library.unmasked(byref(of), found.data_ptr()):
        raise MemoryError("unmasked: no room for the scores of a thread")
    return found
