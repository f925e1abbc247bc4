"""The formulas of VarKD (arXiv 2606.06078) as literally as they can be written: the tests' oracle.

Slow and plain on purpose, and independent of the product: it imports nothing of it.
tests/oracles/test_varkd_math.py holds it to its own definitions.

B sequences, T positions, V codes, C clusters, K either of the two. Logits at [:, t] are of token t
given the class and the tokens before t: already aligned, with no further shift.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def cluster_logprobs(logp: Tensor, cluster_V: Tensor, clusters: int) -> Tensor:
    """logp (..., V), normalised -> (..., C): the log of the summed probability of each cluster."""
    index = cluster_V.expand_as(logp)
    shape = (*logp.shape[:-1], clusters)
    top = torch.full(shape, -torch.inf, dtype=logp.dtype)
    top = top.scatter_reduce(-1, index, logp.detach(), "amax")
    top = torch.where(torch.isinf(top), 0.0, top)  # a cluster whose codes are all impossible
    total = torch.zeros_like(top).scatter_add(-1, index, (logp - top.gather(-1, index)).exp())
    return total.clamp_min(torch.finfo(total.dtype).tiny).log() + top


def divergence(lq: Tensor, lp: Tensor, kind: str = "rkl", beta: float = 0.5) -> Tensor:
    """lq of the student, lp of the teacher, log-probabilities (..., K) -> (...)."""
    if kind == "fkl":
        return (lp.exp() * (lp - lq)).sum(-1)
    if kind == "rkl":
        return (lq.exp() * (lq - lp)).sum(-1)
    if kind == "tvd":
        return 0.5 * (lp.exp() - lq.exp()).abs().sum(-1)
    if kind != "jsd":
        raise ValueError(kind)
    lm = torch.logaddexp(lp + math.log(beta), lq + math.log1p(-beta))
    return beta * (lp.exp() * (lp - lm)).sum(-1) + (1 - beta) * (lq.exp() * (lq - lm)).sum(-1)


def confidence(lp: Tensor) -> Tensor:
    """lp (B, T, V) -> alpha (B, T) = 1 - H / log V."""
    return 1 + (lp.exp() * lp).sum(-1) / math.log(lp.shape[-1])


def gate(
    alpha: Tensor, suffix: Tensor, tau: float = 0.1, *, keep_hit: bool = True
) -> tuple[Tensor, Tensor]:
    """(weight, open), both (B, T), of alpha and of suffix (bool): the first position of the suffix
    with alpha < tau closes everything strictly after it."""
    low = ((alpha < tau) & suffix).int()
    hits = low.cumsum(1)
    is_open = ((hits - low) == 0) if keep_hit else (hits == 0)
    return (alpha * is_open * suffix).detach(), is_open & suffix


def varkd_loss(
    zs: Tensor,
    zt: Tensor,
    k: Tensor,
    cluster_V: Tensor | None = None,
    clusters: int = 0,
    kind: str = "rkl",
    *,
    beta: float = 0.5,
    tau: float = 0.1,
    reduction: str = "suffix_mean",
    keep_hit: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits zs, zt (B, T, V) of student and teacher on the same tokens with the same class; k (B,)
    is the length of each row's prefix, which has no loss."""
    ls = F.log_softmax(zs.float(), -1)
    with torch.no_grad():
        lt = F.log_softmax(zt.float(), -1)
        suffix = torch.arange(zs.shape[1])[None] >= k[:, None]
        weight, is_open = gate(confidence(lt), suffix, tau, keep_hit=keep_hit)
        if cluster_V is not None:
            lt = cluster_logprobs(lt, cluster_V, clusters)
    if cluster_V is not None:
        ls = cluster_logprobs(ls, cluster_V, clusters)
    weighted = weight * divergence(ls, lt, kind, beta)
    loss = {
        "suffix_mean": lambda: weighted.sum() / suffix.sum(),
        "seq_mean": lambda: (weighted.sum(1) / suffix.sum(1)).mean(),
        "weight_norm": lambda: weighted.sum() / weight.sum().clamp_min(1e-8),
    }[reduction]()
    return loss, {"survival": is_open.sum() / suffix.sum()}
