"""How much a token counts: teacher confidence and the gate (VarKD eqs. 8-10, docs/method.md,
"Gate").

Every gate is a score per slot and a threshold tau: a slot is open where score >= tau. So one
quantile calibrates tau in any mode, and a control is another score at the same survival.

Shape letters: B sequences, L slots, N slots of all ranks.
"""

import math
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from common.config.quantities import Count, Fraction, Nats, SomeProbability, Tokens
from common.config.schema import Config
from common.errors import InputError
from common.exchange.trajectory import TrajectoryBatch
from common.randomness import derive_seed
from learner.process_group import ProcessGroup, gather
from learner.token_weights import ObjectiveState, TokenWeights

LEAST_SURVIVAL = 0.01
"""Below this, on the first rollouts, the student would hardly see its own samples."""


class GateConfig(Config):
    mode: Literal["first_hit", "running_mean", "per_token", "speculative", "none"] = "first_hit"
    """What closes a slot. first_hit: an earlier confidence below tau; running_mean: an earlier
    mean of the last `window` confidences below tau; per_token: its own confidence below tau;
    speculative: the product of min(1, p/q) of the sampled codes before it, below tau; none."""
    tau: Fraction = 0.1
    """The threshold; 0 switches the gate off. The same tau means another entropy for another
    vocabulary, since confidence is 1 - H / log V."""
    window: Tokens = 8
    """Slots that running_mean averages."""
    keep_hit: bool = True
    """The slot that closes the sequence keeps its own (small) weight; not in per_token."""
    scope: Literal["suffix", "all"] = "suffix"
    """Where hits are looked for: in the rollout, or in its ground-truth prefix too."""
    entropy_space: Literal["V", "C"] = "V"
    """Confidence over the codes, or over the clusters of codebook relaxation."""
    survival_target: SomeProbability | None = None
    """Instead of tau: the share of suffix slots that should stay open."""
    calibrate_on: Count = 1024
    """Rollouts on which survival_target sets tau; from then on tau stays."""
    control: Literal["none", "random", "truncate"] = "none"
    """Close as many slots as the gate would, but others. random: drawn at random; truncate: the
    last ones of every suffix (as Fast OPD, arXiv 2602.15260), to a slot. If a control does as well
    as the gate, it is not confidence that helps."""
    weight: Literal["entropy", "maxprob", "none"] = "entropy"
    """entropy: confidence is the weight; maxprob: the teacher's largest probability is; none:
    every open slot counts 1."""
    power: Nats = 1.0
    """Exponent of the weight."""

    @property
    def closes(self) -> bool:
        """Whether any slot can be closed."""
        return self.mode != "none" and (self.tau > 0 or self.survival_target is not None)

    def reads(self) -> frozenset[str]:
        """Teacher quantities that `token_weights` needs in batch.signal, beside the entropy."""
        names = {
            "token_logprob": self.mode == "speculative",
            "cluster_confidence": self.entropy_space == "C",
            "max_prob": self.weight == "maxprob",
        }
        return frozenset(name for name, needed in names.items() if needed)

    @property
    def reads_confidence(self) -> bool:
        """Whether a threshold or a weight is one of confidence."""
        looks = self.closes and self.mode != "speculative"
        return looks or self.weight == "entropy"

    @property
    def reads_entropy(self) -> bool:
        """Whether `token_weights` needs the teacher's entropy over the codes."""
        return self.reads_confidence and self.entropy_space == "V"

    @model_validator(mode="after")
    def _something_to_calibrate_and_to_control(self) -> Self:
        if self.mode == "none" and self.survival_target is not None:
            raise ValueError("survival_target sets the tau of a gate, but mode is none; choose one")
        if self.control != "none" and not self.closes:
            raise ValueError(
                f"control={self.control} copies the survival of a gate, but this one closes "
                "nothing; give it a mode, and a tau or a survival_target"
            )
        return self


def confidence(entropy_BL: Tensor, vocab_size: int) -> Tensor:
    """alpha = 1 - H / log V, from the untempered teacher's entropy in nats.

    A single code leaves no doubt: 1, as of any teacher that is sure.
    """
    return 1 - entropy_BL.float() / math.log(max(vocab_size, 2))


def token_weights(
    config: GateConfig,
    batch: TrajectoryBatch,
    gated_BL: Tensor,
    state: ObjectiveState,
    ranks: ProcessGroup,
) -> TokenWeights:
    """w = sg[alpha^power * open] on the gated slots, 0 elsewhere.

    Exact under any split into micro-batches and ranks: thresholds come from the slots of all
    ranks. Survival counts rollout suffixes alone, also where data sequences are gated too.

    Raises:
        InputError: tau leaves (almost) nothing of the first rollouts open.
    """
    if config.entropy_space == "C":
        alpha_BL = batch.signal["cluster_confidence"]
    elif not config.reads_confidence:
        alpha_BL = torch.ones_like(gated_BL, dtype=torch.float32)  # of no consequence
    else:
        alpha_BL = confidence(batch.signal["entropy"], batch.spec.vocab_size)
    open_BL = gated_BL
    if config.closes:
        suffix_BL = gated_BL & batch.rollout_BL
        search_BL = torch.ones_like(gated_BL) if config.scope == "all" else gated_BL
        score_BL = scores(config, alpha_BL, batch, search_BL)
        tau = config.tau
        if config.survival_target is not None:
            tau = calibrated(config, score_BL, suffix_BL, state, ranks)
        open_BL = (score_BL >= tau) & gated_BL
        refuse_closed(tau, open_BL & suffix_BL, suffix_BL, state, ranks)
        if config.control != "none":
            open_BL = control(config, open_BL, gated_BL, batch, ranks)
    weight_BL = open_BL.float()
    if config.weight != "none":
        trust_BL = alpha_BL if config.weight == "entropy" else batch.signal["max_prob"]
        # Rounding can put a uniform teacher's confidence at -1e-7.
        weight_BL = weight_BL * trust_BL.clamp_min(0) ** config.power
    return TokenWeights(weight_BL.detach(), open_BL, gated_BL)


def scores(
    config: GateConfig, alpha_BL: Tensor, batch: TrajectoryBatch, search_BL: Tensor
) -> Tensor:
    """score_BL by mode; the first-hit modes take the lowest value so far, so that everything
    after the first value below tau is below tau too.

    A hit inside the ground-truth prefix says nothing about drift and does not count, unless it
    is searched (docs/method.md, "Gate").
    """
    if config.mode == "per_token":
        return alpha_BL
    if config.mode == "speculative":
        log_ratio_BL = (batch.signal["token_logprob"] - batch.logprob_BL).clamp_max(0)
        lowest_BL = log_ratio_BL.masked_fill(~search_BL, 0).cumsum(1).exp()
    else:
        if config.mode == "running_mean":
            alpha_BL = trailing_mean(alpha_BL, search_BL, config.window)
        lowest_BL = alpha_BL.masked_fill(~search_BL, torch.inf).cummin(1).values
    if config.keep_hit:
        lowest_BL = torch.cat(
            [torch.full_like(lowest_BL[:, :1], torch.inf), lowest_BL[:, :-1]], dim=1
        )
    return lowest_BL


def trailing_mean(alpha_BL: Tensor, search_BL: Tensor, window: int) -> Tensor:
    """Mean of the last `window` searched slots up to and with each one; fewer at the start."""
    value_BL = alpha_BL.double().masked_fill(~search_BL, 0).cumsum(1)
    count_BL = search_BL.cumsum(1)

    def last(total_BL: Tensor) -> Tensor:
        before_BL = torch.nn.functional.pad(total_BL, (window, 0))[:, : total_BL.shape[1]]
        return total_BL - before_BL

    return (last(value_BL) / last(count_BL).clamp_min(1)).to(alpha_BL.dtype)


def calibrated(
    config: GateConfig,
    score_BL: Tensor,
    suffix_BL: Tensor,
    state: ObjectiveState,
    ranks: ProcessGroup,
) -> float:
    """tau that reaches survival_target on the first `calibrate_on` rollouts, then fixed.

    Until then it is the mean over the batches so far, weighted by their rollouts.
    """
    seen = state.get("gate/rollouts", 0.0)
    if seen < config.calibrate_on and config.survival_target is not None:
        rows = float(ranks.sum_(suffix_BL.any(1).sum().double()))
        score_N = gather(ranks, score_BL, suffix_BL)
        if rows:
            wanted = max(1, round(config.survival_target * len(score_N)))
            found = float(threshold(score_N, wanted).clamp_max(1.0))
            before = state.get("gate/tau", 0.0) * seen
            state["gate/tau"] = (before + found * rows) / (seen + rows)
            state["gate/rollouts"] = seen + rows
    return state.get("gate/tau", 0.0)


def threshold(score_N: Tensor, wanted: int) -> Tensor:
    """The largest value that at least `wanted` scores reach."""
    return score_N.kthvalue(len(score_N) - wanted + 1).values


def refuse_closed(
    tau: float, open_BL: Tensor, suffix_BL: Tensor, state: ObjectiveState, ranks: ProcessGroup
) -> None:
    """Look at the first rollouts: is anything left after the first slot of the suffix?

    Raises:
        InputError: less than 1 %.
    """
    if "gate/first_survival" in state:
        return
    later_BL = suffix_BL & (suffix_BL.cumsum(1) > 1)
    counts = torch.stack([(open_BL & later_BL).sum(), later_BL.sum()]).double()
    left, slots = ranks.sum_(counts).tolist()
    if not slots:
        return
    state["gate/first_survival"] = left / slots
    if left < LEAST_SURVIVAL * slots:
        raise InputError(
            f"objective.gate.tau {tau:.4g} closes {1 - left / slots:.1%} of what follows the first "
            "slot of the first rollouts, so the student would not learn from its own samples; "
            "lower it, or let objective.gate.survival_target choose it"
        )


def control(
    config: GateConfig,
    open_BL: Tensor,
    gated_BL: Tensor,
    batch: TrajectoryBatch,
    ranks: ProcessGroup,
) -> Tensor:
    """As many open slots, over all ranks, as the gate leaves, chosen without the teacher.

    random draws every slot by image id, so neither ranks nor batches change it. truncate keeps
    the first n slots of every sequence, and one more of as many sequences, drawn by image id, as
    make the number exact.
    """
    wanted = int(ranks.sum_(open_BL.sum().double()))
    score_BL = torch.stack([_uniforms(int(i), gated_BL.shape[1]) for i in batch.id_B])
    score_BL = score_BL.to(gated_BL.device)
    if config.control == "truncate":
        score_BL = score_BL[:, :1] - gated_BL.cumsum(1)
    score_N = gather(ranks, score_BL, gated_BL)
    if not wanted:
        return open_BL
    return (score_BL >= threshold(score_N, wanted)) & gated_BL


def _uniforms(image: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(0, "gate", image))
    return torch.rand(length, generator=generator, dtype=torch.double)
