"""`rollout.sampler.draw` as one kernel: sums in float64, the cumulated ones never written out.

Shape letters: R rows, V vocabulary.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 2048
"""Codes that a program reads at a time."""


@triton.jit
def _draw(logprob, noise, token, codes, CHUNK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, CHUNK)
    first = logprob + row * codes
    total = tl.sum(tl.zeros([CHUNK], tl.float64), 0)
    for start in range(0, codes, CHUNK):
        inside = start + at < codes
        value = tl.load(first + start + at, mask=inside, other=float("-inf"))
        total += tl.sum(tl.exp(value.to(tl.float64)), 0)
    target = tl.load(noise + row) * total
    before = total - total
    index = tl.sum(tl.zeros([CHUNK], tl.int64), 0)
    for start in range(0, codes, CHUNK):
        inside = start + at < codes
        value = tl.load(first + start + at, mask=inside, other=float("-inf"))
        probability = tl.exp(value.to(tl.float64))
        reached = (tl.cumsum(probability, 0) + before <= target) & inside
        index += tl.sum(reached.to(tl.int64), 0)
        before += tl.sum(probability, 0)
    tl.store(token + row, tl.minimum(index, codes - 1))


def draw_rows(logprob_BnV: Tensor, noise_Bn: Tensor) -> Tensor:
    """token_Bn: how many codes' cumulated probabilities the uniform's share has reached."""
    logprob_RV = logprob_BnV.flatten(0, -2).contiguous()
    noise_R = noise_Bn.to(torch.float64).flatten().contiguous()
    token_R = torch.empty(len(noise_R), dtype=torch.long, device=logprob_RV.device)
    rows, codes = logprob_RV.shape
    _draw[(rows,)](logprob_RV, noise_R, token_R, codes, CHUNK=CHUNK, num_warps=8)
    return token_R.view(noise_Bn.shape)
