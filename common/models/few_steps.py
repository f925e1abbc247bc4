"""Sampling along the trajectories of Distilled Decoding 1 (arXiv 2412.17153, algorithms 3 and 4).

A trajectory leads from noise in all slots to data in all slots, a step of the teacher's at a time;
the student F jumps from any trained point of it to its end. Both algorithms take any F, so that
they can be checked with one that is exact.

Shape letters: B sequences, L slots, n given slots, D code width, V codes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from common.device import autocast
from common.models.generator import Generated

Jump = Callable[[Tensor, int], Generated]
"""F: (vector_BLD, how many leading slots are data) to whole sequences; data stay as they are."""
Continue = Callable[[Tensor, int], Tensor]
"""Part of a teacher's sampling: (token_Bn, stop) to the tokens of the slots before `stop`, of which
the first n are given."""


def few_steps(jump: Jump, noise_BLD: Tensor, known: Sequence[int]) -> Generated:
    """Algorithm 3: one jump for each entry of `known`, the slots that are data before it.

    Behind them is the noise of the beginning, never what an earlier jump made of it: a slot's data
    are a function of its own noise and of the data before it.
    """
    if not known or known[0] != 0:
        raise ValueError(f"a trajectory begins where no slot is data, not at {list(known)}")
    made, vector_BLD = None, noise_BLD
    for count in known:
        vector_BLD = torch.cat([vector_BLD[:, :count], noise_BLD[:, count:]], dim=1)
        made = jump(vector_BLD, count)
        vector_BLD = made.vector_BLD
    assert made is not None
    return made


def teacher_inserted(
    jump: Jump,
    teacher: Continue,
    noise_BLD: Tensor,
    codebook_VD: Tensor,
    *,
    start: int,
    stop: int,
) -> Generated:
    """Algorithm 4: the slots from `start` to `stop` are the teacher's own draws, between two jumps.

    What the first jump makes of the slots before `start` is snapped to codes, for a teacher reads
    nothing else; it is left out where there are none. The slots after `stop` get their noise back,
    which the paper leaves out and the released code does.
    """
    if not 0 <= start < stop <= noise_BLD.shape[1]:
        raise ValueError(f"slots {start} to {stop} of {noise_BLD.shape[1]} are no part to insert")
    token_Bn = torch.zeros(len(noise_BLD), 0, dtype=torch.long, device=noise_BLD.device)
    if start:
        token_Bn = nearest(jump(noise_BLD, 0).vector_BLD[:, :start], codebook_VD)
    token_Bn = teacher(token_Bn, stop)
    code_BnD = F.embedding(token_Bn, codebook_VD)
    return jump(torch.cat([code_BnD, noise_BLD[:, stop:].to(code_BnD)], dim=1), stop)


def nearest(vector_BnD: Tensor, codebook_VD: Tensor) -> Tensor:
    """token_Bn with the smallest Euclidean distance, in the precision of the codes also under
    autocast; |vector|^2 is the same for all codes."""
    half_norm_V = codebook_VD.square().sum(-1) / 2
    with autocast(codebook_VD.device, torch.float32):
        return (vector_BnD.to(codebook_VD) @ codebook_VD.T - half_norm_V).argmax(-1)
