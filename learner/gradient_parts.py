"""What of a step's gradient is whose: coefficients of its losses, and how large the gradients of an
objective's parts are beside each other.
"""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from common.exchange.trajectory import TrajectoryBatch
from learner.objective import Objective
from learner.reduction import Coefficients, coefficients, sequence_coefficients
from learner.token_weights import TokenWeights

NormOf = Callable[[Objective, Coefficients], float]
"""Norm of the gradient of one objective alone, from a pass over the step's rows."""


def step_coefficients(
    objective: Objective,
    batch: TrajectoryBatch,
    token_weights: TokenWeights,
    known: tuple[str, ...],
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> Coefficients:
    """Of tokens and, where the objective has a loss of these, of whole rows; `known` are all of the
    run's contexts."""
    config = objective.config
    of_tokens = coefficients(config.reduction, token_weights, batch.context, known, sum_over_ranks)
    if not objective.has_sequence_loss:
        return Coefficients(of_tokens)
    weight_B = token_weights.sequence_B
    if weight_B is None:
        weight_B = batch.rows_where(config.uses).float()
    return Coefficients(of_tokens, sequence_coefficients(weight_B, sum_over_ranks))


def compare_parts(objective: Objective, factors: Coefficients, norm_of: NormOf) -> dict[str, float]:
    """Norms by part, as "KIND/grad_norm_PART", and the first over the second, "KIND/grad_ratio",
    unless that is none: at the student's weights before the step, before anything is clipped."""
    kind, norms = objective.config.kind, list[float]()
    metrics: dict[str, float] = {}
    for name, part in objective.parts().items():
        of_tokens = factors if part.has_sequence_loss else replace(factors, sequence_B=None)
        norms.append(norm_of(part, of_tokens))
        metrics[f"{kind}/grad_norm_{name}"] = norms[-1]
    if norms and norms[1] > 0:
        metrics[f"{kind}/grad_ratio"] = norms[0] / norms[1]
    return metrics
