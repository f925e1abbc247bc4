"""`rollout.inverse_cdf.draw` as one kernel: sums in float64, and nothing of a vocabulary's size
written out.

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
def _shares(logit, start, at, codes, most):
    """e^(logit - most) of a chunk in float64, and its logits."""
    value = tl.load(logit + start + at, mask=start + at < codes, other=float("-inf"))
    return tl.exp(value.to(tl.float64) - most), value.to(tl.float64)


@triton.jit
def _draw(logit, noise, token, logprob, codes, chunks, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    """The first code whose cumulated share exceeds the noise: sums of whole chunks say which chunk
    it is in, so that one chunk alone is cumulated code by code."""
    row = tl.program_id(0).to(tl.int64)
    logit += row * codes
    at, number = tl.arange(0, CHUNK), tl.arange(0, CHUNKS)
    most_C = tl.full([CHUNK], float("-inf"), tl.float32)
    for start in range(0, codes, CHUNK):
        value = tl.load(logit + start + at, mask=start + at < codes, other=float("-inf"))
        most_C = tl.maximum(most_C, value.to(tl.float32))
    most = tl.max(most_C, 0).to(tl.float64)
    sums = tl.zeros([CHUNKS], tl.float64)
    for chunk in range(0, chunks):
        share, _ = _shares(logit, chunk * CHUNK, at, codes, most)
        sums = tl.where(number == chunk, tl.sum(share, 0), sums)
    total = tl.sum(sums, 0)
    target = tl.load(noise + row) * total
    last = tl.max(tl.where(sums > 0, number, 0), 0)
    is_before = (tl.cumsum(sums, 0) <= target) & (number < last)
    chunk = tl.sum(is_before.to(tl.int32), 0)
    before = tl.sum(tl.where(number < chunk, sums, 0.0), 0)
    share, value = _shares(logit, chunk * CHUNK, at, codes, most)
    reached = tl.sum((tl.cumsum(share, 0) + before <= target).to(tl.int32), 0)
    # Sums of chunks round otherwise than code by code: what has no share is never drawn.
    first = tl.min(tl.where(share > 0, at, CHUNK), 0)
    found = tl.max(tl.where((share > 0) & (at <= reached), at, 0), 0)
    found = tl.where(first == CHUNK, 0, tl.maximum(found, first))  # of NaN, some code
    tl.store(token + row, (chunk * CHUNK + found).to(tl.int64))
    logit_of_it = tl.sum(tl.where(at == found, value, 0.0), 0)
    tl.store(logprob + row, (logit_of_it - most - tl.log(total)).to(tl.float32))


def drawn_rows(logit_BnV: Tensor, noise_Bn: Tensor) -> tuple[Tensor, Tensor]:
    """token_Bn of the uniforms, and the log-probability of each; NaN in the logits gives NaN."""
    logit_RV = logit_BnV.flatten(0, -2).contiguous()
    noise_R = noise_Bn.to(torch.float64).flatten().contiguous()
    token_R = torch.empty(len(noise_R), dtype=torch.long, device=logit_RV.device)
    logprob_R = torch.empty(len(noise_R), dtype=torch.float32, device=logit_RV.device)
    rows, codes = logit_RV.shape
    chunks = triton.cdiv(codes, CHUNK)
    _draw[(rows,)](
        logit_RV,
        noise_R,
        token_R,
        logprob_R,
        codes,
        chunks,
        CHUNK=CHUNK,
        CHUNKS=triton.next_power_of_2(chunks),
        num_warps=8,
    )
    return token_R.view(noise_Bn.shape), logprob_R.view(noise_Bn.shape)
