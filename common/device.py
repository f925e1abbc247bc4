"""Where tensors live and how precise they are, from a config's words."""

import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.errors import InputError


def place(name: str) -> torch.device:
    """`auto` prefers CUDA where there is one, where float32 then means float32: by default cuDNN
    rounds what it convolves to ten bits.

    Raises:
        InputError: CUDA was asked for and is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but torch sees no CUDA device; set device=auto or cpu")
    if name == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def precision(name: str) -> torch.dtype:
    """`auto` is what suits this machine's device best (`fastest_precision`)."""
    if name == "auto":
        name = fastest_precision(place("auto"))[0]
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def fastest_precision(device: torch.device) -> tuple[str, str]:
    """(name, why): bfloat16 where the device multiplies it faster than float32."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", f"{name} accelerates it"
        return "float32", f"{name} does not accelerate bfloat16"
    if torch.cpu._is_amx_tile_supported():
        return "bfloat16", "this CPU accelerates it (AMX)"
    if torch.cpu._is_avx512_bf16_supported():
        return "bfloat16", "this CPU accelerates it (AVX-512)"
    return "float32", "this CPU does not accelerate bfloat16"


def runs_kernels(value: Tensor) -> bool:
    """Whether kernels of our own can compute with it: they run on the current GPU, and are compiled
    by Triton, which torch's builds for CUDA bring."""
    return value.is_cuda and value.device.index == torch.cuda.current_device() and _has_triton()


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def steady_attention(device: torch.device) -> AbstractContextManager[object]:
    """For sequences that grow: without cuDNN's attention, which plans anew for every length, tens
    of milliseconds each."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Matrix products in `dtype`; float32 switches an outer autocast off.

    The meta device, where nothing is computed, has no autocast.
    """
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@contextmanager
def rounded_products(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """float32 products of a GPU from factors of ten bits (TF32), several times as fast, where what
    they are compared with was computed in `dtype` of fewer bits; sums and results stay float32.

    The setting is the process's: another thread's products meanwhile are rounded, too.
    """
    if device.type != "cuda" or dtype == torch.float32:
        yield
        return
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, True
    try:
        yield
    finally:
        matmul.allow_tf32 = before
