"""One number by which two processes see that they compute the same with the same weights.

A digest says that the bytes arrived. That they mean the same in another process, on another device,
in another precision and with another version of a library, only their use says. Sampling says
nothing when it goes wrong: it draws from another distribution and goes on.
"""

import torch

from common.errors import RunFailed
from common.models.backbone import Backbone

ROWS = 2
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Nats a token that two machines may differ by, where one rounds weights and sums to this type."""


@torch.no_grad()
def canary(model: Backbone) -> float:
    """Mean log-probability of a fixed batch, in nats a token, without dropout; the mode of the
    model and all generators stay as they were."""
    spec, device = model.spec, next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        code_N = torch.arange(ROWS * spec.length, device=device) * 40503 % 65521 % spec.vocab_size
        token_BL = code_N.view(ROWS, spec.length)
        class_B = torch.arange(ROWS, device=device) % spec.num_classes
        logit_BLV = model(class_B, token_BL, model.plan(list(range(ROWS))))
        logprob_BLV = logit_BLV.float().log_softmax(-1)
        return float(logprob_BLV.gather(-1, token_BL[..., None]).mean())
    finally:
        model.train(was_training)


def require(model: Backbone, published: float, who: str, rounding: float = 0.0) -> None:
    """Refuse to sample from another distribution than the learner's, who may be off by `rounding`.

    Raises:
        RunFailed: this process computes something else with the weights.
    """
    parameter, found = next(model.parameters()), canary(model)
    if not abs(found - published) <= max(TOLERANCE[parameter.dtype], rounding):  # nor is NaN
        raise RunFailed(
            f"{who}: computes other log-probabilities on {parameter.device} in {parameter.dtype} "
            f"than the learner with the same weights, {found:.5f} instead of {published:.5f} nats "
            "a token; compare torch's versions and the devices of both"
        )
