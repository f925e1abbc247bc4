"""The structures of token_step.c, field by field."""

import ctypes
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p
from typing import Any


def _fields(kind: Any, *names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names]


class LayerPointers(Structure):
    _fields_ = [
        *_fields(c_void_p, "attention_norm", "ffn_norm", "wqkv", "wo", "w13", "w2"),
        *_fields(c_void_p, "key", "value"),
    ]


class ModelPointers(Structure):
    _fields_ = [
        *_fields(c_int64, "width", "heads", "inner", "vocab", "depth", "capacity", "is_bf16"),
        ("eps", c_float),
        *_fields(c_void_p, "turn", "norm", "head"),
        ("layers", POINTER(LayerPointers)),
    ]


class ScratchPointers(Structure):
    _fields_ = _fields(c_void_p, "x", "h", "fused", "rounded")


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """With the types of its functions' arguments, which ctypes would guess from small numbers."""
    library.register_floats.restype = library.multiplies_bf16.restype = c_int64
    library.pack.argtypes = [c_void_p, c_int64, c_int64, c_void_p, c_int64]
    library.pack.restype, library.token_step.restype = None, c_int64
    library.token_step.argtypes = [
        *(POINTER(ModelPointers), c_void_p, c_int64, c_void_p, c_int64, c_int64),
        *(POINTER(ScratchPointers), c_void_p, c_int64),
    ]
    return library
