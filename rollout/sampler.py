"""Decode a batch with a backbone: pure functions, no processes.

Every slot of every image has its own uniform (or Gaussian vector, rollout/flow_draw.py), so a
sequence depends on its noise and on the weights alone, not on who shares the batch; and the same
noise under two decoders is comparable.

Shape letters: B sequences, L slots, n slots in the current step, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor

from common.device import steady_attention
from common.errors import Diverged, InputError
from common.exchange.condition import Conditions
from common.finite import is_finite
from common.flow.laws import FlowCodes
from common.flow.solver import AnySolver, SolverConfig
from common.models.backbone import Backbone
from common.models.decoding import AnyDecoding, DecodingConfig
from common.models.filters import FilterConfig
from common.models.guidance import Guidance
from common.models.jacobi import JacobiConfig
from common.models.packed_linear import packed
from common.models.plan import DecodePlan
from common.models.token_steps import token_steps
from rollout.flow_draw import FlowDraw
from rollout.inverse_cdf import Draw, draw, drawn
from rollout.jacobi_window import JacobiWindow
from rollout.lineup import Lineup, entries
from rollout.model_draft import Draft, ModelDraft
from rollout.speculation import Acceptance, Rows, speculate
from rollout.stepper import Stepper
from rollout.window_stepper import WindowStepper


class SamplingConfig(FilterConfig):
    """Guidance, temperature, top-k, top-p, in this order (docs/backbones.md, "LlamaGen
    sampling")."""

    guidance: Guidance | None = None
    """Classifier-free guidance, a scale or a table; without it the conditional model runs alone."""
    decoding: AnyDecoding = DecodingConfig()
    """The order, as far as the model's family leaves a choice."""
    flow: AnySolver | None = None
    """Draw by carrying one Gaussian vector for each token to a code of the tokenizer, with this
    solver (Distilled Decoding); without it, by a uniform."""

    @model_validator(mode="after")
    def _guesses_are_checked_by_chance(self) -> Self:
        if self.flow and self.decoding.speculation:
            raise ValueError(
                "flow carries noise to one code, but decoding.sjd draws codes by rejection; leave "
                "one out"
            )
        return self

    @property
    def is_plain(self) -> bool:
        """Whether codes come from the model's own conditional distribution."""
        exact = self.decoding.is_exact and (not self.flow or self.flow.is_exact)
        return exact and not self.is_filtered and self.guidance is None


@dataclass(frozen=True, slots=True)
class Decoded:
    """token_BL and the log-probability of each draw (0 on given slots).

    Under approximate decoding (ZipAR) it is the one that the token was drawn with, from the cells
    decoded by then: not the backbone's probability in raster order, by which it is scored.
    """

    plan: DecodePlan
    token_BL: Tensor
    logprob_BL: Tensor
    acceptance: Acceptance | None = field(default=None, kw_only=True)
    """Where several slots were read in a pass: what became of the guesses."""

    @property
    def cell_BL(self) -> Tensor:
        """The tokens by grid position."""
        return self.plan.to_grid(self.token_BL)


def noise(seeds: Sequence[int], length: int, device: torch.device | str = "cpu") -> Tensor:
    """float64 uniforms noise_BL in [0, 1), one CPU generator per image."""
    generator = torch.Generator()
    rows = [
        torch.rand(length, generator=generator.manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(rows).to(device)


def sample(
    backbone: Backbone,
    label_B: Tensor,
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    order_seeds: Sequence[int] | None = None,
    cell_BL: Tensor | None = None,
    prefix_B: Tensor | None = None,
    conditions: Conditions | None = None,
    codes: FlowCodes | None = None,
    draft: Draft | None = None,
) -> Decoded:
    """One sequence per label and seed, on the backbone's device: a function of weights, label and
    seed alone, which gives order and noise; `order_seeds` give the orders instead, where given.

    Labels are ids in the table `conditions`, by default the classes themselves. The first prefix_B
    slots of that order are copied from cell_BL (by grid position). `codes` are the tokenizer's,
    where sampling.flow carries noise to them. `draft` guesses ahead, which leaves the law as it is.

    Raises:
        InputError: `sampling` asks for what the family cannot do, or `codes` are no vocabulary of
            the backbone's.
        Diverged: the logits are not finite.
    """
    device = next(backbone.parameters()).device
    plan = backbone.plan(order_seeds or seeds, sampling.decoding)
    draws, slot_noise = _noise_and_draw(backbone, seeds, plan, sampling.flow, codes)
    return decode(
        backbone,
        label_B.to(device),
        sampling=sampling,
        noise_BL=slot_noise.to(device),
        draws=draws,
        plan=plan,
        given_BL=None if cell_BL is None else plan.to_slots(cell_BL).to(device),
        prefix_B=None if prefix_B is None else prefix_B.to(device),
        conditions=conditions,
        draft=draft,
    )


def _noise_and_draw(
    backbone: Backbone,
    seeds: Sequence[int],
    plan: DecodePlan,
    solver: SolverConfig | None,
    codes: FlowCodes | None,
) -> tuple[Draw, Tensor]:
    if solver is None:
        return draw, noise(seeds, backbone.spec.length)
    if codes is None:
        raise ValueError("sampling.flow is set, but whoever samples was given no codes")
    found, wanted = len(codes.code_VD), backbone.spec.vocab_size
    if found != wanted:
        raise InputError(
            f"sampling.flow carries noise to {found} codes, but the model has a vocabulary of "
            f"{wanted}; take the tokenizer that the model was trained with"
        )
    draws = FlowDraw(solver, codes.to(next(backbone.parameters()).device))
    return draws, draws.slot_noise(seeds, plan)


@torch.no_grad()  # not inference_mode: the learner differentiates through these tensors
def decode(
    backbone: Backbone,
    label_B: Tensor,
    *,
    sampling: SamplingConfig,
    noise_BL: Tensor,
    plan: DecodePlan,
    given_BL: Tensor | None = None,
    prefix_B: Tensor | None = None,
    conditions: Conditions | None = None,
    draws: Draw | None = None,
    draft: Draft | None = None,
) -> Decoded:
    """Sample one sequence per label, as `sample`; the first prefix_B slots are from given_BL.

    noise_BL is what `draws` reads, by default `draw`: any shape (B, L, ...).

    Each prefix is read in one pass, and its sequence joins the others about where it ends
    (docs/method.md, "Rollouts"). All is in the order of `plan`, however slots are filled.
    """
    if given_BL is None or prefix_B is None:
        given_BL = torch.zeros(noise_BL.shape[:2], dtype=torch.long, device=noise_BL.device)
        prefix_B = torch.zeros_like(label_B)
    if draft or sampling.decoding.speculation:
        rows = Rows(label_B, given_BL, prefix_B, noise_BL)
        return _speculated(backbone, plan, rows, sampling, conditions, draft)
    device = label_B.device
    drawing = backbone.drawing_plan(plan, sampling.decoding, given=int(prefix_B.min()))
    may_join = backbone.joins and drawing.is_same(plan)
    entry_B, row_B = entries(drawing, prefix_B, may_join).sort(stable=True)
    slot_BL, drawing = plan.slots_in(drawing)[row_B], drawing.rows(row_B)
    is_given_BL = slot_BL < prefix_B.cpu()[row_B, None]
    row_B, slot_BL = row_B.to(device), slot_BL.to(device)
    noise_BL, given_BL = (_in_slots(of[row_B], slot_BL) for of in (noise_BL, given_BL))
    lineup = Lineup(label_B[row_B], drawing, noise_BL, given_BL, is_given_BL, entry_B)
    with _fast(backbone, lineup, 1 + bool(sampling.guidance)):
        token_BL, logprob_BL = _fill(backbone, lineup, sampling, conditions, draws or draw)
    _require_finite(logprob_BL)
    back_B, back_BL = row_B.argsort(), slot_BL.argsort(1)
    return Decoded(plan, *(of.gather(1, back_BL)[back_B] for of in (token_BL, logprob_BL)))


@contextmanager
def _fast(backbone: Backbone, lineup: Lineup, copies: int) -> Iterator[None]:
    """With what makes steps of so few rows cheap."""
    steps = lineup.steps()
    singly = steps if max(lineup.plan.step_sizes) == 1 else 0
    with token_steps(backbone, singly, copies * len(lineup.entry_B)) as lent:
        weights = packed(backbone, 0 if lent else steps, copies * lineup.rows_a_step())
        with weights, steady_attention(lineup.label_B.device):
            yield


def _speculated(
    backbone: Backbone,
    plan: DecodePlan,
    rows: Rows,
    sampling: SamplingConfig,
    conditions: Conditions | None,
    draft: Draft | None,
) -> Decoded:
    """Several slots are read in a pass."""
    if draft is not None:
        proposals = ModelDraft(draft, sampling, conditions, rows.length)
    else:
        config = sampling.decoding.speculation or JacobiConfig()
        proposals = JacobiWindow(config, backbone.spec.vocab_size, rows.length)
    copies = 1 + bool(sampling.guidance)
    slots = copies * len(rows.at_R) * proposals.width
    with packed(backbone, rows.length, slots), steady_attention(rows.at_R.device):
        stepper = WindowStepper(backbone, sampling, sampling.guidance, conditions)
        token_BL, logprob_BL, acceptance = speculate(stepper, proposals, rows)
    _require_finite(logprob_BL)
    return Decoded(plan, token_BL, logprob_BL, acceptance=acceptance)


def _in_slots(value_BL: Tensor, slot_BL: Tensor) -> Tensor:
    """Values (B, L, ...) of these slots."""
    return value_BL.take_along_dim(slot_BL.view(*slot_BL.shape, *[1] * (value_BL.ndim - 2)), 1)


def _fill(
    backbone: Backbone,
    lineup: Lineup,
    sampling: SamplingConfig,
    conditions: Conditions | None,
    draws: Draw,
) -> tuple[Tensor, Tensor]:
    """token_BL, and logprob_BL of what was drawn (0 elsewhere)."""
    device, plan = lineup.label_B.device, lineup.plan
    token_BL = lineup.given_BL.clone()
    logprob_BL, is_given_BL = torch.zeros(token_BL.shape, device=device), lineup.is_given_BL
    is_given_BL, has_given, rows_S = is_given_BL.to(device), lineup.has_given(), lineup.rows()
    first, last = int(lineup.entry_B[0]), len(plan.step_sizes)
    if first == last:  # whole data sequences
        return token_BL, logprob_BL
    stepper = Stepper(
        backbone,
        lineup.label_B,
        sampling.guidance,
        plan,
        lineup.given_BL,
        first,
        conditions,
        rows=rows_S[first],
    )
    for step in range(first, last):
        part = slice(rows_S[step]), plan.slots(step)
        stepper.admit(rows_S[step])
        token_Bn, logprob_Bn = drawn(stepper.logits(), lineup.noise_BL[part], sampling, draws)
        if any(has_given[part[1]]):
            token_Bn = torch.where(is_given_BL[part], lineup.given_BL[part], token_Bn)
        token_BL[part] = token_Bn
        logprob_BL[part] = logprob_Bn
        stepper.commit(token_Bn)
    return token_BL, logprob_BL.masked_fill_(is_given_BL, 0.0)


def _require_finite(logprob_BL: Tensor) -> None:
    """Refuse a model whose logits are NaN, or too large to give a distribution.

    Once per batch, so that a device is waited for once.

    Raises:
        Diverged: in any step of any sequence.
    """
    if not is_finite(logprob_BL):
        raise Diverged(
            "the model's log-probabilities are not finite while it is sampled: its weights have "
            "diverged; take weights from before"
        )
