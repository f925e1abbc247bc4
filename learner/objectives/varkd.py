"""VarKD (arXiv 2606.06078, eqs. 7-12; docs/method.md, "VarKD as published"): gated, relaxed
divergence on student suffixes.

Data steps continue stage 1: full vocabulary, no gate. The paper contradicts itself on the
divergence (docs/method.md, "Contradictions"), so both readings are presets.

Losses are per token; the gate's thresholds and counts are over all ranks: exact under any split.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from common.config.quantities import Weight
from common.errors import InputError
from common.exchange.provenance import Policy, is_on_policy
from common.exchange.trajectory import TrajectoryBatch
from learner.divergence import Divergence, filled
from learner.gate import GateConfig, token_weights
from learner.objective import Objective, ObjectiveConfig, TokenChunk
from learner.process_group import ProcessGroup
from learner.relaxation import (
    ClusterMap,
    RelaxationConfig,
    chain_rule,
    cluster_confidence,
    relaxed,
)
from learner.resources import Resources
from learner.teacher_targets import Quantity, max_prob, token_logprob
from learner.token_weights import ObjectiveState, TokenWeights

PRESETS = {
    "paper_eq": (Divergence(name="rkl"), Divergence(name="fkl")),
    "paper_text": (Divergence(name="jsd", beta=0.5), Divergence(name="jsd", beta=0.5)),
}
"""Divergences on (student, data) contexts: as the equations, or as the training section says."""


class Config(ObjectiveConfig):
    diagnosed: ClassVar[tuple[str, ...]] = ("between_clusters", "within_clusters")
    preset_gives: ClassVar[frozenset[str]] = frozenset({"student", "data"})

    preset: Literal["paper_eq", "paper_text"] = "paper_eq"
    """paper_eq: reverse KL on student contexts, forward KL on data; paper_text: JSD(0.5)."""
    student: Divergence = PRESETS["paper_eq"][0]
    """Divergence on student contexts; set by the preset unless given."""
    data: Divergence = PRESETS["paper_eq"][1]
    """Divergence on data and teacher contexts; set by the preset unless given."""
    data_apply: Literal["none", "relax", "gate", "both"] = "none"
    """What of the method data and teacher contexts have too."""
    cross_entropy: Weight = 0.0
    """mu: weight of -log q(x_t) on data and teacher contexts."""
    gate: GateConfig = GateConfig()
    """Confidence weight and gate on student contexts."""
    relaxation: RelaxationConfig = RelaxationConfig()
    """Codebook relaxation on student contexts."""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: dict[str, Any]) -> dict[str, Any]:
        student, data = PRESETS.get(values.get("preset", "paper_eq"), PRESETS["paper_eq"])
        return values | {
            "student": filled(student, values.get("student")),
            "data": filled(data, values.get("data")),
        }

    def reads_entropy(self) -> bool:
        return self.gate.reads_entropy

    def resources(self) -> frozenset[str]:
        return frozenset() if self.relaxation.factor == 1 else frozenset({"clusters"})

    def build(self, resources: Resources) -> "VarKD":
        clusters = None
        if self.relaxation.factor > 1:
            clusters = resources.clusters(self.relaxation)
        return VarKD(self, clusters)

    def check(self, shares: Mapping[Policy, float]) -> None:
        super().check(shares)
        fine_data = self.data_apply not in ("relax", "both") or self.cross_entropy > 0
        taught = any(share for policy, share in shares.items() if not is_on_policy(policy))
        if not self.relaxation.anchored and not (taught and fine_data):
            raise InputError(
                f"objective.relaxation.factor is {self.relaxation.factor}, and no loss sees single "
                "codes, so nothing holds the student's distribution inside a cluster; set "
                "objective.relaxation.mix below 1, or give contexts.sources.data a ratio and leave "
                "objective.data_apply at none or gate"
            )


class VarKD(Objective):
    """The loss with the clusters of its relaxation."""

    def __init__(self, config: Config, clusters: ClusterMap | None) -> None:
        self._config = config
        self._clusters = clusters

    @property
    def config(self) -> Config:
        return self._config

    def reads(self) -> Mapping[str, Quantity]:
        quantities = {
            "token_logprob": token_logprob,
            "max_prob": max_prob,
            "cluster_confidence": cluster_confidence(self._clusters),
        }
        return {name: quantities[name] for name in self._config.gate.reads()}

    def token_weights(
        self, batch: TrajectoryBatch, state: ObjectiveState, ranks: ProcessGroup
    ) -> TokenWeights:
        support_BL = self.support(batch)
        gates_data = self._config.data_apply in ("gate", "both")
        gated_BL = support_BL if gates_data else batch.rollout_BL
        gated = token_weights(self._config.gate, batch, gated_BL, state, ranks)
        plain_BL = support_BL & ~gated_BL
        weight_BL = gated.weight_BL.masked_fill(plain_BL, 1.0)
        return TokenWeights(weight_BL, gated.open_BL | plain_BL, support_BL)

    def token_loss(self, chunk: TokenChunk) -> Tensor:
        config, pair = self._config, (chunk.student, chunk.required_teacher)
        mix = config.relaxation.mix
        if chunk.is_on_policy:
            return relaxed(config.student, *pair, self._clusters, mix)
        clusters = self._clusters if config.data_apply in ("relax", "both") else None
        loss_N = relaxed(config.data, *pair, clusters, mix)
        if config.cross_entropy:
            loss_N = loss_N - config.cross_entropy * chunk.student_token_N
        return loss_N

    def diagnostics(self, chunk: TokenChunk) -> dict[str, Tensor]:
        if self._clusters is None or not chunk.is_on_policy:
            return {}
        pair = chunk.student, chunk.required_teacher
        between_N, within_N = chain_rule(self._config.student, *pair, self._clusters)
        return {"between_clusters": between_N, "within_clusters": within_N}

    def owned(self) -> dict[str, dict[str, Any]]:
        if self._clusters is None:
            return {}
        cluster_V = self._clusters.cluster_V.to("cpu", torch.int32)
        return {"clusters": {"cluster_V": cluster_V, "digest": self._clusters.digest}}
