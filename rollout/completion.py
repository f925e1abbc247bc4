"""Who samples in a worker, and the rows of a lease that each of them completes.

Shape letters: B sequences of a lease, L slots, D code width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import Diverged
from common.exchange.trajectory import GUESSES, KEPT
from common.models.plan import DecodePlan
from rollout.context import RolloutRequest
from rollout.drawn import Drawn, Sampler
from rollout.one_pass_sampler import OnePassSampler
from rollout.speculation import Acceptance

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
    history_B: Tensor | None = None
    """As `DecodePlan.history_B`, where rows differ from what the plan says."""
    acceptance: Mapping[str, Acceptance] = field(default_factory=dict)
    """What became of guesses, by the way that their rows were made."""

    @property
    def facts(self) -> dict[str, str]:
        """For the record's metadata."""
        counts = {GUESSES: "guesses", KEPT: "kept"}
        return {
            f"{start}{way}": str(getattr(found, name))
            for way, found in self.acceptance.items()
            for start, name in counts.items()
        }


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
    parts: list[tuple[Tensor, Drawn]] = []
    guesses: dict[str, Acceptance] = {}
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
        parts.append((rows, drawn))
        if drawn.acceptance is not None:
            guesses[way] = drawn.acceptance
    return replace(_with_parts(done, parts, plan), acceptance=guesses)


def _with_parts(
    done: Completed, parts: Sequence[tuple[Tensor, Drawn]], plan: DecodePlan
) -> Completed:
    """`done` with what samplers drew for some rows each, and how these are read."""
    for rows, drawn in parts:
        done.token_BL[rows], done.logprob_BL[rows] = drawn.token_BL, drawn.logprob_BL
    input_BL, history_B = done.token_BL.clone(), plan.history()
    for rows, drawn in parts:
        if drawn.input_token_BL is not None:
            input_BL[rows] = drawn.input_token_BL
        if drawn.history is not None:
            history_B[rows] = drawn.history
    own_input = any(drawn.input_token_BL is not None for _, drawn in parts)
    own_history = any(drawn.history is not None for _, drawn in parts)
    return replace(
        done,
        input_token_BL=input_BL if own_input else None,
        history_B=history_B if own_history else None,
    )


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
