"""VarKD (arXiv 2606.06078, eqs. 7-12; method.md 2): gated, relaxed divergence on student suffixes.

Data steps continue stage 1: full vocabulary, no gate. The paper contradicts itself on the
divergence (method.md C1), so both readings are presets.
"""

from typing import Any, Literal

from pydantic import model_validator
from torch import Tensor

from common.trajectory import OFF_POLICY, TrajectoryBatch
from learner.divergence import Divergence
from learner.gate import GateConfig, Weighing, confidence, weigh
from learner.objective import ObjectiveConfig, TokenChunk, off_policy, support
from learner.relaxation import RelaxationConfig, cluster_logprob

PRESETS = {
    "paper_eq": (Divergence(name="rkl"), Divergence(name="fkl")),
    "paper_text": (Divergence(name="jsd", beta=0.5), Divergence(name="jsd", beta=0.5)),
}
"""Divergences on (student, data) contexts: as the equations, or as the training section says."""


class Config(ObjectiveConfig):
    preset: Literal["paper_eq", "paper_text"] = "paper_eq"
    """paper_eq: reverse KL on student contexts, forward KL on data; paper_text: JSD(0.5)."""
    student: Divergence = PRESETS["paper_eq"][0]
    """Divergence on student contexts; set by the preset unless given."""
    data: Divergence = PRESETS["paper_eq"][1]
    """Divergence on data contexts; set by the preset unless given."""
    gate: GateConfig = GateConfig()
    """Confidence weight and first-hit gate on student contexts."""
    relaxation: RelaxationConfig = RelaxationConfig()
    """Codebook relaxation on student contexts."""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: dict[str, Any]) -> dict[str, Any]:
        student, data = PRESETS.get(values.get("preset", "paper_eq"), PRESETS["paper_eq"])
        return {"student": student, "data": data} | values

    def relaxation_config(self) -> RelaxationConfig:
        return self.relaxation

    def weigh(self, batch: TrajectoryBatch) -> Weighing:
        alpha_BL = confidence(batch.signal["entropy"], batch.spec.vocab_size)
        gated = weigh(self.gate, alpha_BL, batch.suffix_BL)
        plain_B1 = off_policy(batch)[:, None]
        return Weighing(
            gated.weight_BL.masked_fill(plain_B1, 1.0), gated.open_BL | plain_B1, support(batch)
        )

    def __call__(self, chunk: TokenChunk) -> Tensor:
        student_NV, teacher_NV = chunk.student_NV, chunk.required_teacher_NV
        if chunk.context == OFF_POLICY:
            return self.data(student_NV, teacher_NV)
        if chunk.clusters is None:
            return self.student(student_NV, teacher_NV)
        student_NC = cluster_logprob(student_NV, chunk.clusters)
        return self.student(student_NC, cluster_logprob(teacher_NV, chunk.clusters))
