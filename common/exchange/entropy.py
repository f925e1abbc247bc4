"""Entropies of a head's distributions, in nats.

Shape letters: B sequences, L slots, N tokens, n tokens of a chunk, C width, V vocabulary.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from common.native.library import native

CHUNK = 256
"""Tokens whose logits exist at a time: so few that a CPU's cache holds them."""


def entropy_of(logprob: Tensor) -> Tensor:
    """Entropy in nats over the last axis (VarKD eq. 8); 0 log 0 is its limit 0."""
    probability = logprob.exp()
    return -(probability * logprob.masked_fill(probability == 0, 0)).sum(-1)


@torch.no_grad()
def entropies(hidden_BLC: Tensor, head: nn.Linear, chunk: int = CHUNK) -> Tensor:
    """entropy_BL of the head's distributions; memory grows with `chunk`, not with B * L * V."""
    parts = [_of_logits(head(part).float()) for part in hidden_BLC.flatten(0, 1).split(chunk)]
    return torch.cat(parts).view(hidden_BLC.shape[:2])


@torch.no_grad()
def entropies_of(logprob_BLV: Tensor) -> Tensor:
    """entropy_BL of distributions that are there already."""
    parts = [_of_logits(part) for part in logprob_BLV.flatten(0, 1).split(CHUNK)]
    return torch.cat(parts).view(logprob_BLV.shape[:2])


def _of_logits(logit_nV: Tensor) -> Tensor:
    """entropy_n, on a CPU in one pass after that for the largest; NaN where logits are. Logits
    without content (a plan's) give none."""
    in_c = logit_nV.is_cpu and logit_nV.dtype == torch.float32
    library = _library() if in_c else None
    if library is None:
        return entropy_of(logit_nV.log_softmax(-1))
    logit_nV, found_n = logit_nV.contiguous(), logit_nV.new_empty(len(logit_nV))
    sizes = *logit_nV.shape, found_n.data_ptr(), torch.get_num_threads()
    if not found_n.is_meta:
        library.entropies(logit_nV.data_ptr(), *sizes)
    return found_n


@cache
def _library() -> ctypes.CDLL | None:
    found = native(Path(__file__).with_name("entropy.c")).library
    if found is not None:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        found.entropies.argtypes = [pointer, size, size, pointer, size]
        found.entropies.restype = None
    return found
