"""SinKD (arXiv 2402.17110): a Sinkhorn distance between batches of predictions, beside KD.

For n tokens with rows q_i and p_j softened by temperature 2, costs W_ij = |q_i - p_j|_1 and
K = exp(-W / epsilon); K's rows and columns are normalised 20 times in turn to a transport plan.
The loss is KD + weight * sum_ij plan_ij W_ij, differentiated through the iterations.

The paper's n tokens are a batch of samples. Here they are a group: neighbouring slots of one
sequence, which is never cut, so the loss is exact under any split into chunks, micro-batches and
ranks. Memory is that of the larger of a chunk and a group. The distance is not 0 where the
student equals the teacher: a plan of finite epsilon also moves mass between different rows.

Shape letters: B sequences, L slots, N tokens of a chunk, n tokens of a group, V codes.
"""

import torch
from torch import Tensor

from common.config.quantities import Depth, Factor, Temperature, Tokens, Weight
from common.exchange.trajectory import TrajectoryBatch
from learner.divergence import tempered
from learner.objective import TokenChunk
from learner.objectives import kd
from learner.process_group import ProcessGroup
from learner.token_weights import ObjectiveState, TokenWeights


class Config(kd.Config):
    weight: Weight = 1e-3
    """Weight of the Sinkhorn distance; 8e-4 in the paper's GPT-Neo runs."""
    group: Tokens = 32
    """Tokens that are compared with one another."""
    epsilon: Factor = 0.1
    """Entropic regularisation of the transport plan."""
    iterations: Depth = 20
    """Row and column normalisations."""
    sinkhorn_temperature: Temperature = 2.0
    """Softens both models' rows before they are compared."""

    def reads_entropy(self) -> bool:
        return False

    def token_weights(
        self, batch: TrajectoryBatch, state: ObjectiveState, ranks: ProcessGroup
    ) -> TokenWeights:
        support_BL = self.support(batch)
        block_BL = (support_BL.cumsum(1) - 1).clamp_min(0) // self.group
        row_B = torch.arange(len(batch), device=block_BL.device)
        group_BL = row_B[:, None] * block_BL.shape[1] + block_BL
        return TokenWeights(support_BL.float(), support_BL, support_BL, group_BL=group_BL)

    def token_loss(self, chunk: TokenChunk) -> Tensor:
        sizes = list(chunk.groups) or [len(chunk.token_N)]
        student_NV = tempered(chunk.student_NV, self.sinkhorn_temperature).exp()
        teacher_NV = tempered(chunk.required_teacher_NV, self.sinkhorn_temperature).exp()
        distance_N = torch.cat(
            [
                self._distance(student_nV, teacher_nV)
                for student_nV, teacher_nV in zip(
                    student_NV.split(sizes), teacher_NV.split(sizes), strict=True
                )
            ]
        )
        return super().token_loss(chunk) + self.weight * distance_N

    def _distance(self, student_nV: Tensor, teacher_nV: Tensor) -> Tensor:
        """Each student row's part of the distance, times n: their mean is the distance."""
        cost_nn = torch.cdist(student_nV, teacher_nV, p=1)
        plan_nn = (-cost_nn / self.epsilon).exp()
        for _ in range(self.iterations):
            plan_nn = plan_nn / plan_nn.sum(1, keepdim=True)
            plan_nn = plan_nn / plan_nn.sum(0, keepdim=True)
        return (plan_nn * cost_nn).sum(1) * len(cost_nn)
