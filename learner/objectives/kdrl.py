"""KDRL (arXiv 2506.02208): a reward by policy gradient, and distillation, in one loss.

A rollout's token has the loss

    -min(rho_t A, clip(rho_t, 1 - e, 1 + e) A) + beta_s D_t,    rho_t = q(y_t) / q_old(y_t),

where A says how much better than its group the row did (learner/rewards.py), and D is any other
objective, gate and clusters included, or one of the paper's estimators of the reverse KL. Rows of
data and of the teacher have the second term alone. beta_s follows a schedule: constant, falling
(the paper's best), or distillation first and then the reward alone (arXiv 2609.04108).

With `sequence_level` a token is credited with the divergence of what follows as well. With
advantages that are not divided by anything this is the gradient of E[r] - beta KL(q || p) over
whole sequences, and ends at p(y) exp(r(y) / beta) / Z (docs/method.md, "Rewards").

Shape letters: B sequences, L slots, N tokens of a chunk.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import SerializeAsAny, model_validator
from torch import Tensor

from common.config.plugins import PluginConfig, from_package
from common.config.quantities import RewardOrNone
from common.exchange.provenance import Policy, is_on_policy
from common.exchange.trajectory import TrajectoryBatch
from common.models.backbone import BackboneConfig
from learner.beta import BetaConfig
from learner.divergence import Divergence
from learner.objective import Objective, ObjectiveConfig, Reading, SequenceRows, Student, TokenChunk
from learner.objective_part import Part
from learner.objectives import gkd
from learner.policy_gradient import ESTIMATORS, surrogate
from learner.process_group import ProcessGroup
from learner.resources import Resources
from learner.returns import log_ratio, returns
from learner.rewarded_config import RewardedConfig
from learner.rewards import Rewards, advantages, did_well, read, remember
from learner.teacher_targets import Quantity, token_logprob
from learner.token_weights import ObjectiveState, TokenWeights

AnyInner = Annotated[SerializeAsAny[ObjectiveConfig], from_package("learner.objectives")]
RKL = Divergence(name="rkl")
FULL = {
    "full_rkl": gkd.Config(divergence=RKL),
    "full_fkl": gkd.Config(divergence=Divergence(name="fkl")),
}
INNER = "inner."
"""Before the names of the inner objective's own columns."""
STEP = "kdrl/step"


class Config(RewardedConfig, BetaConfig):
    columns: ClassVar[tuple[str, ...]] = ("advantage", "behaviour", "beta")
    diagnosed: ClassVar[tuple[str, ...]] = ("reverse_kl",)

    kd: Literal["full_rkl", "full_fkl", "k1", "k2", "k3"] = "k2"
    """full_rkl, full_fkl: the divergence over all codes, without the noise of one sample. Of the
    sampled code: k2, whose gradient is that of the reverse KL (the paper's); k3, whose gradient is
    that of the forward one; k1, as part of the advantage (its own expected gradient is 0)."""
    inner: AnyInner | None = None
    """Instead of `kd`, any other objective, e.g. inner.kind=varkd with its gate."""
    mask: Literal["none", "response", "group"] = "none"
    """Whom distillation leaves out: nobody; rows that did well; all rows of groups in which any
    did. Such tokens stay in the denominator."""
    correct: RewardOrNone = None
    """The least weighted reward of a row that did well; by default its group's mean."""
    sequence_level: bool = False
    """Credit a token with the divergence of all that follows; needs kd=k1 or full_rkl."""

    @model_validator(mode="before")
    @classmethod
    def _one_distillation(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("inner") is not None and "kd" in values:
            raise ValueError("kd and inner both say what distillation is; give one of them")
        return values

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.reduction == "weight_norm":
            raise ValueError(
                "reduction is weight_norm, but reward and distillation have weights of their own; "
                "choose suffix_mean or seq_mean"
            )
        if self.sequence_level and (self.inner is not None or self.kd not in ("k1", "full_rkl")):
            given = self.kd if self.inner is None else self.inner.kind
            raise ValueError(
                f"sequence_level credits with the reverse KL of what follows, but distillation is "
                f"{given}; set kd to k1 or full_rkl"
            )
        if self.mask == "group" and self.correct is None:
            raise ValueError(
                "mask=group leaves out groups in which a row did well, but some row reaches its "
                "group's mean in every group; set correct to the least reward that is good"
            )
        return self

    @model_validator(mode="after")
    def _inner_is_a_token_loss(self) -> Self:
        inner = self.inner
        if inner is None:
            return self
        is_other = inner.phases() or inner.students is not BackboneConfig
        if is_other or inner.rewarded() or inner.learns_labels:
            raise ValueError(
                f"inner.kind={inner.kind} is not a loss of students that decode token by token, "
                "has rewards of its own, or takes samples for labels; choose another one"
            )
        if inner.reduction != self.reduction and "reduction" in inner.model_fields_set:
            raise ValueError(
                f"inner.reduction is {inner.reduction}, but both parts are reduced by the outer "
                f"one, which is {self.reduction}; leave it out"
            )
        return self

    @property
    def distillation(self) -> ObjectiveConfig | None:
        """The objective behind the second term; None where that is an estimator."""
        return self.inner or FULL.get(self.kd)

    def within(self) -> tuple[ObjectiveConfig, ...]:
        return () if self.distillation is None else (self.distillation,)

    def reads_entropy(self) -> bool:
        return self.distillation is not None and self.distillation.reads_entropy()

    def build(self, resources: Resources) -> "Kdrl":
        inner = self.distillation
        return Kdrl(self, None if inner is None else inner.build(resources))

    def check(self, shares: Mapping[Policy, float]) -> None:
        super().check(shares)
        if self.distillation is not None:
            self.distillation.check(shares)

    def check_student(self, student: PluginConfig) -> None:
        super().check_student(student)
        if self.distillation is not None:
            self.distillation.check_student(student)

    def uses(self, policy: Policy) -> bool:
        inner = self.distillation
        return is_on_policy(policy) or (inner is not None and inner.uses(policy))


class Kdrl(Objective):
    """The loss with the distillation inside it."""

    def __init__(self, config: Config, inner: Objective | None) -> None:
        self._config = config
        self._inner = inner

    @property
    def config(self) -> Config:
        return self._config

    def reads(self) -> Mapping[str, Quantity]:
        inner = {} if self._inner is None else self._inner.reads()
        in_advantage = self._config.kd == "k1" and self._inner is None
        own = {"token_logprob": token_logprob}
        return {**inner, **(own if in_advantage or self._config.sequence_level else {})}

    def token_weights(
        self, batch: TrajectoryBatch, state: ObjectiveState, ranks: ProcessGroup
    ) -> TokenWeights:
        config, step = self._config, state.get(STEP, 0.0)
        state[STEP] = step + 1
        gain, beta = config.weights_at(int(step))
        state["kdrl/beta"] = beta
        rewards = read(batch, config.rewards, per_token=config.per_token)
        remember(state, batch, rewards, config.rewards, ranks)
        distilled = self._distilled(batch, state, ranks)
        left_out_B1 = (batch.on_policy_B & ~rewards.kept_B)[:, None]
        beta_BL = beta * distilled.weight_BL
        beta_BL = beta_BL.masked_fill(self._masked(batch, rewards)[:, None], 0)
        advantage_BX = gain * advantages(config.advantage, rewards, ranks)
        ahead_BL = beta_BL * self._ahead(batch)
        advantage_BL = advantage_BX.view(len(batch), -1) + ahead_BL
        support_BL = distilled.support_BL & ~left_out_B1
        advantage_BL = advantage_BL.masked_fill(~(batch.rollout_BL & support_BL), 0)
        weight_BL = ((beta_BL != 0) | (advantage_BL != 0)) & support_BL
        column = {"advantage": advantage_BL, "behaviour": batch.logprob_BL, "beta": beta_BL}
        column["ahead"] = ahead_BL.masked_fill(~(batch.rollout_BL & support_BL), 0)
        column |= {INNER + name: value for name, value in distilled.column.items()}
        sequence_B = distilled.sequence_B
        if sequence_B is None:
            sequence_B = batch.rows_where(config.uses).float()
        return replace(
            distilled,
            weight_BL=weight_BL.float(),
            open_BL=distilled.open_BL & support_BL,
            support_BL=support_BL,
            column=column,
            sequence_B=beta * sequence_B.masked_fill(left_out_B1[:, 0], 0),
        )

    def _distilled(
        self, batch: TrajectoryBatch, state: ObjectiveState, ranks: ProcessGroup
    ) -> TokenWeights:
        """What the inner objective says; of an estimator, that all counts alike."""
        if self._inner is not None:
            return self._inner.token_weights(batch, state, ranks)
        return super().token_weights(batch, state, ranks)

    def _masked(self, batch: TrajectoryBatch, rewards: Rewards) -> Tensor:
        """True for rows of the student that are not distilled."""
        config = self._config
        if config.mask == "none":
            return torch.zeros_like(batch.on_policy_B)
        good_B = did_well(rewards, config.correct, whole_groups=config.mask == "group")
        return good_B & batch.on_policy_B

    def _ahead(self, batch: TrajectoryBatch) -> Tensor | float:
        """The divergence that is in the advantage: what follows a token, and its own by k1."""
        config = self._config
        if not config.sequence_level:
            return log_ratio(batch, batch.rollout_BL) if self._estimator == "k1" else 0.0
        ratio_BL = log_ratio(batch, batch.rollout_BL)
        ahead_BL = returns(ratio_BL, 1.0)
        return ahead_BL if self._estimator == "k1" else ahead_BL - ratio_BL

    @property
    def _estimator(self) -> str | None:
        return self._config.kd if self._inner is None else None

    def read(self, student: Student, condition_B: Tensor, batch: TrajectoryBatch) -> Reading:
        reader = super() if self._inner is None else self._inner
        return reader.read(student, condition_B, batch)

    def token_loss(self, chunk: TokenChunk) -> Tensor:
        loss_N = chunk.column["beta"] * self._distillation(chunk)
        if not chunk.is_on_policy:
            return loss_N
        return loss_N + self._gained(chunk, chunk.column["advantage"])

    def parts(self) -> dict[str, Objective]:
        """Distillation, with what of it is in the advantage, and the reward."""
        reward = Part(self, self._reward_alone, of_sequences=False)
        return {"kd": Part(self, self._distillation_alone), "reward": reward}

    def _distillation_alone(self, chunk: TokenChunk) -> Tensor:
        loss_N = chunk.column["beta"] * self._distillation(chunk)
        return loss_N + self._gained(chunk, chunk.column["ahead"])

    def _reward_alone(self, chunk: TokenChunk) -> Tensor:
        return self._gained(chunk, chunk.column["advantage"] - chunk.column["ahead"])

    def _gained(self, chunk: TokenChunk, advantage_N: Tensor) -> Tensor:
        if not chunk.is_on_policy:
            return 0 * chunk.student_token_N
        ratio_N = (chunk.student_token_N - chunk.column["behaviour"]).exp()
        return -surrogate(ratio_N, advantage_N, self._config.clip)

    def _distillation(self, chunk: TokenChunk) -> Tensor:
        if self._inner is not None:
            return self._inner.token_loss(_for_inner(chunk))
        if self._estimator in (None, "k1"):
            return 0 * chunk.student_token_N
        token_N1 = chunk.token_N[:, None]
        teacher_N = chunk.required_teacher_NV.gather(-1, token_N1)[:, 0]
        return ESTIMATORS[self._config.kd](chunk.student_token_N, teacher_N)

    @property
    def has_sequence_loss(self) -> bool:
        return self._inner is not None and self._inner.has_sequence_loss

    def sequence_loss(self, rows: SequenceRows) -> Tensor:
        if self._inner is None:
            return super().sequence_loss(rows)
        return self._inner.sequence_loss(replace(rows, column=_unprefixed(rows.column)))

    def diagnostics(self, chunk: TokenChunk) -> dict[str, Tensor]:
        found = {} if self._inner is None else self._inner.diagnostics(_for_inner(chunk))
        own = RKL.between(chunk.student, chunk.required_teacher) if chunk.is_on_policy else None
        return found if own is None else found | {"reverse_kl": own}

    def update_state(self, state: ObjectiveState, mean: Mapping[str, float]) -> None:
        if self._inner is not None:
            self._inner.update_state(state, mean)

    def owned(self) -> dict[str, dict[str, Any]]:
        return {} if self._inner is None else self._inner.owned()


def _for_inner(chunk: TokenChunk) -> TokenChunk:
    return replace(chunk, column=_unprefixed(chunk.column))


def _unprefixed(column: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(INNER): v for n, v in column.items() if n.startswith(INNER)}
