"""Policy gradients of sampled codes, and estimators of a divergence from the codes alone.

d = log p(y) - log q(y) of the sampled code, p the teacher and q the student. With samples of q the
expectations are (docs/method.md, "Rewards"): E[k1] = E[k3] = KL(q || p), but not E[k2]; the
gradients are E[grad k1] = 0, E[grad k2] = grad KL(q || p), E[grad k3] = grad KL(p || q). Whoever
minimises k1 must weigh grad log q with it, as `surrogate` does.

Shape letters: N tokens.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def surrogate(ratio_N: Tensor, advantage_N: Tensor, clip: float) -> Tensor:
    """min(rho A, clip(rho, 1 - e, 1 + e) A), to be maximised (PPO, arXiv 1707.06347, equation 7);
    clip 0 leaves the ratio alone."""
    gain_N = ratio_N * advantage_N
    if not clip:
        return gain_N
    return torch.minimum(gain_N, ratio_N.clamp(1 - clip, 1 + clip) * advantage_N)


def k1(student_N: Tensor, teacher_N: Tensor) -> Tensor:
    """-d, from log q and log p of the codes."""
    return student_N - teacher_N


def k2(student_N: Tensor, teacher_N: Tensor) -> Tensor:
    """d^2 / 2."""
    return 0.5 * (teacher_N - student_N).square()


def k3(student_N: Tensor, teacher_N: Tensor) -> Tensor:
    """e^d - d - 1, which is never negative."""
    d_N = teacher_N - student_N
    return d_N.expm1() - d_N


ESTIMATORS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
