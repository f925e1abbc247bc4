"""DistillSpec (arXiv 2310.08461; docs/method.md, "Baselines"): a drafter that the teacher accepts
more often.

Total variation on every context. One minus it is the chance that speculative decoding accepts a
token of the student, and is plotted as `acceptance`. Contexts, and the other divergences of the
paper, are configuration (`contexts.sources`, `divergence.name`).
"""

from typing import ClassVar

from torch import Tensor

from learner.divergence import Divergence, total_variation
from learner.objective import TokenChunk
from learner.objectives import gkd


class Config(gkd.Config):
    diagnosed: ClassVar[tuple[str, ...]] = ("acceptance",)

    divergence: Divergence = Divergence(name="tvd")
    """tvd, or any other of the paper's: fkl, rkl, jsd."""

    def diagnostics(self, chunk: TokenChunk) -> dict[str, Tensor]:
        distance_N = total_variation(chunk.student_NV, chunk.required_teacher_NV)
        return {"acceptance": 1 - distance_N}
