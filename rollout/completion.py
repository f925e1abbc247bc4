"""Who samples in a worker, and the rows of a lease that each of them completes.

Shape letters: B sequences of a lease, L slots, D code width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import Diverged
from common.models.plan import DecodePlan
from rollout.context import RolloutRequest
from rollout.drawn import Drawn, Sampler
from rollout.one_pass_sampler import OnePassSampler

AnySampler = Sampler | OnePassSampler


@dataclass(frozen=True, slots=True)
class Completed:
    """The rows of a lease in the slots of its plan."""

    token_BL: Tensor
    logprob_BL: Tensor
    seed_B: Tensor | None
    """Noise seeds of pairs, and of what a one-pass student made; -1 of other rows."""
    vector_BLD: Tensor | None = None
    """Where a one-pass student made rows: what it means, and of other rows their codes."""
    input_token_BL: Tensor | None = None
    """What is read in every slot, where rows are not read as they are."""


def complete(
    samplers: Mapping[str, AnySampler],
    work: RolloutRequest,
    seeds: Sequence[int],
    order_seeds: Sequence[int],
    plan: DecodePlan,
    diverged: Callable[[str], str],
) -> Completed:
    """What is read, with every sampler's rows put in their places; `samplers` by the way that they
    make rows (`ContextConfig.way`).

    Raises:
        Diverged: in the words of `diverged`, where a sampler's numbers are not finite.
    """
    token_BL = plan.to_slots(work.cell_BL)
    done = Completed(token_BL, torch.zeros(token_BL.shape), work.seed_B)
    reading: list[tuple[Tensor, Tensor]] = []
    for way, sampler in samplers.items():
        rows = work.rows_of(way)
        if not len(rows):
            continue
        own, orders = ([of[row] for row in rows.tolist()] for of in (seeds, order_seeds))
        try:
            if isinstance(sampler, OnePassSampler):
                done = _with_whole_rows(done, sampler, work, rows, own)
                continue
            drawn = sampler(work.rows(rows), own, plan.rows(rows), orders)
        except Diverged as error:
            raise Diverged(diverged(way)) from error
        _put(done, rows, drawn, reading)
    return done if not reading else replace(done, input_token_BL=_read(done.token_BL, reading))


def _put(done: Completed, rows: Tensor, drawn: Drawn, reading: list[tuple[Tensor, Tensor]]) -> None:
    """A sampler's rows in their places; what is read of them in `reading`, if it is not they."""
    done.token_BL[rows], done.logprob_BL[rows] = drawn.token_BL, drawn.logprob_BL
    if drawn.input_token_BL is not None:
        reading.append((rows, drawn.input_token_BL))


def _read(token_BL: Tensor, reading: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The tokens, but what is read instead of some rows."""
    input_BL = token_BL.clone()
    for rows, value_nL in reading:
        input_BL[rows] = value_nL
    return input_BL


def _with_whole_rows(
    done: Completed,
    sampler: OnePassSampler,
    work: RolloutRequest,
    rows: Tensor,
    seeds: Sequence[int],
) -> Completed:
    """`done` with the rows that a one-pass student makes; the plan is the tokenizer's order."""
    done.token_BL[rows], made_nLD = sampler(work.label_B[rows], seeds)
    vector_BLD = F.embedding(done.token_BL, sampler.generator.codebook_VD.cpu())
    vector_BLD[rows] = made_nLD
    seed_B = torch.full_like(work.id_B, -1) if done.seed_B is None else done.seed_B.clone()
    seed_B[rows] = torch.tensor(seeds)
    return replace(done, seed_B=seed_B, vector_BLD=vector_BLD)
