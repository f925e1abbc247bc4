"""Divergences between next-token distributions, exact over the (relaxed) vocabulary.

Student first in names and arguments: q is the student, p the teacher (docs/method.md, "Notation").
All take and give float32 log-probabilities; none passes a gradient to the teacher, which has none.

Shape letters: N tokens, K categories (codes or clusters), k the teacher's likeliest ones.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from common.config.quantities import CodesOrAll, Fraction, Probability
from common.config.schema import Config
from learner import analytic, fused
from learner.categorical import Categorical


def forward_kl(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """KL(p || q) per token: cover every mode the teacher likes."""
    return _relative_entropy(teacher_NK, student_NK)


def reverse_kl(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """KL(q || p) per token: put mass only where the teacher does (VarKD eq. 7)."""
    return _relative_entropy(student_NK, teacher_NK)


def jensen_shannon(student_NK: Tensor, teacher_NK: Tensor, beta: float) -> Tensor:
    """b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q (GKD, arXiv 2306.13649).

    The ends b = 0 and b = 1 are 0 as they stand; there JSD_b / b and JSD_b / (1 - b) tend to
    KL(p || q) and KL(q || p), and these are what is meant (as in TRL's GKD).
    """
    if beta == 0:
        return forward_kl(student_NK, teacher_NK)
    if beta == 1:
        return reverse_kl(student_NK, teacher_NK)
    mixture = _mixture(student_NK, teacher_NK, beta)
    towards_teacher = _relative_entropy(teacher_NK, mixture)
    towards_student = _relative_entropy(student_NK, mixture)
    return beta * towards_teacher + (1 - beta) * towards_student


def total_variation(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """1/2 sum |p - q|: one minus the acceptance of speculative decoding (arXiv 2310.08461)."""
    return 0.5 * (student_NK.exp() - teacher_NK.exp()).abs().sum(-1)


def skew_kl(student_NK: Tensor, teacher_NK: Tensor, alpha: float) -> Tensor:
    """KL(p || a p + (1 - a) q) (DistiLLM, arXiv 2402.03898, section 3.1)."""
    return forward_kl(_mixture(student_NK, teacher_NK, alpha), teacher_NK)


def skew_reverse_kl(student_NK: Tensor, teacher_NK: Tensor, alpha: float) -> Tensor:
    """KL(q || (1 - a) p + a q) (DistiLLM, arXiv 2402.03898, section 3.1)."""
    return reverse_kl(student_NK, _mixture(student_NK, teacher_NK, 1 - alpha))


def tempered(logprob_NK: Tensor, temperature: float) -> Tensor:
    """log softmax(z / T), from log softmax(z)."""
    return logprob_NK if temperature == 1 else (logprob_NK / temperature).log_softmax(-1)


def truncated(
    student_NK: Tensor, teacher_NK: Tensor, top_k: int, *, tail: bool
) -> tuple[Tensor, Tensor]:
    """Both distributions on the teacher's `top_k` codes, and on "any other" as one more category.

    With the tail it is a coarser pair of distributions, so a divergence of it is one; without it
    the two are left unnormalised, and only some divergences are still least where they agree.
    """
    if top_k >= teacher_NK.shape[-1]:
        return student_NK, teacher_NK
    index_Nk = teacher_NK.topk(top_k, dim=-1).indices

    def coarse(logprob_NK: Tensor) -> Tensor:
        kept_Nk = logprob_NK.gather(-1, index_Nk)
        if not tail:
            return kept_Nk
        rest_NK = logprob_NK.scatter(-1, index_Nk, -torch.inf)
        return torch.cat([kept_Nk, log_total(rest_NK)[..., None]], dim=-1)

    return coarse(student_NK), coarse(teacher_NK)


def log_total(logprob: Tensor) -> Tensor:
    """logsumexp over the last axis; of nothing but -inf it is -inf without a gradient, where
    torch's is not a number."""
    empty = (logprob == -torch.inf).all(-1)
    return logprob.masked_fill(empty[..., None], 0).logsumexp(-1).masked_fill(empty, -torch.inf)


def _relative_entropy(first_NK: Tensor, second_NK: Tensor) -> Tensor:
    """sum a (log a - log b), where 0 log 0 is its limit 0, as is the gradient of these terms.

    Infinite where b lacks a code that a has.
    """
    share_NK, difference_NK = first_NK.exp(), first_NK - second_NK
    return (share_NK * difference_NK.masked_fill(share_NK == 0, 0)).sum(-1)


def _mixture(student_NK: Tensor, teacher_NK: Tensor, share: float) -> Tensor:
    """log (s p + (1 - s) q); -inf, without a gradient, where neither has a code."""
    mixed = teacher_NK + math.log(share), student_NK + math.log1p(-share)
    absent_NK = (mixed[0] == -torch.inf) & (mixed[1] == -torch.inf)
    known = (logprob_NK.masked_fill(absent_NK, 0) for logprob_NK in mixed)
    return torch.logaddexp(*known).masked_fill(absent_NK, -torch.inf)


class Divergence(Config):
    """A divergence as a value, so that objectives are combinations and not subclasses."""

    name: Literal["fkl", "rkl", "jsd", "tvd", "skl", "srkl", "mix"] = "rkl"
    """fkl: KL(teacher, student); rkl: KL(student, teacher); jsd: between the two; tvd: total
    variation; skl, srkl: DistiLLM's skewed forward and reverse KL; mix: both KLs, weighted."""
    beta: Probability = 0.5
    """The teacher's weight in the mixture of jsd; exactly fkl at 0 and rkl at 1."""
    alpha: Annotated[Fraction, Field(gt=0)] = 0.1
    """Skew of skl and srkl: how much of the first argument is mixed into the second."""
    rkl_share: Probability = 0.5
    """Weight of the reverse KL in mix; the rest is forward KL."""
    top_k: CodesOrAll = 0
    """Compare only the teacher's k likeliest codes; 0 compares all."""
    tail: bool = True
    """With top_k: all other codes count as one more category. Only tvd, jsd and an even mix can do
    without."""

    @model_validator(mode="after")
    def _is_least_at_the_teacher(self) -> Self:
        if self.top_k and not self.tail and not self._sums_positive_terms:
            raise ValueError(
                f"{self.name} over top_k={self.top_k} codes without a tail goes below 0 for a "
                "student that moves its mass to or from these codes, so it would rather do that "
                "than agree with the teacher; set tail=true, or top_k=0"
            )
        return self

    @property
    def _sums_positive_terms(self) -> bool:
        """Whether every code's term is >= 0, and 0 where q = p: then some codes alone will do.

        |p - q| is; so is b p log(p / m) + (1 - b) q log(q / m), as x log x is convex; and
        (p - q) (log p - log q). One KL's terms are not: p log(p / q) < 0 where q > p.
        """
        match self.name:
            case "tvd":
                return True
            case "jsd":
                return 0 < self.beta < 1
            case "mix":
                return self.rkl_share == 0.5
            case _:
                return False

    def __call__(self, student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
        """Divergence per token, from log-probabilities; its gradient is written out."""
        pair = student_NK, teacher_NK
        if self.top_k:
            pair = truncated(*pair, self.top_k, tail=self.tail)
        if torch.is_grad_enabled() and pair[0].requires_grad:
            return analytic.with_slope(self.slope, *pair)
        return self.value(*pair)

    def between(self, student: Categorical, teacher: Categorical) -> Tensor:
        """The same from distributions, in few passes over their logits where kernels can."""
        if self.top_k or not (fused.reads(student) and fused.reads(teacher)):
            return self(student.logprob_NV, teacher.logprob_NV)
        return fused.divergence(student.given_NV, teacher.given_NV, *self._as_fused)

    @property
    def _as_fused(self) -> tuple[str, float]:
        """Name and number of learner/fused.py's; the ends of jsd are the KLs that they tend to."""
        match self.name:
            case "jsd" if self.beta in (0, 1):
                return ("rkl" if self.beta else "fkl"), 0.0
            case "jsd":
                return "jsd", self.beta
            case "mix":
                return "mix", self.rkl_share
            case name:
                return name, self.alpha

    def slope(self, student_NK: Tensor, teacher_NK: Tensor) -> tuple[Tensor, Tensor]:
        """Divergence per token and its derivative in the student's log-probabilities, (N, K)."""
        pair, share = (student_NK, teacher_NK), self.rkl_share
        match self.name:
            case "fkl":
                return analytic.forward_kl_slope(*pair)
            case "rkl":
                return analytic.reverse_kl_slope(*pair)
            case "jsd":
                return analytic.jensen_shannon_slope(*pair, self.beta)
            case "tvd":
                return analytic.total_variation_slope(*pair)
            case "skl":
                return analytic.skew_kl_slope(*pair, self.alpha)
            case "srkl":
                return analytic.skew_reverse_kl_slope(*pair, self.alpha)
            case "mix":
                reverse_N, reverse_NK = analytic.reverse_kl_slope(*pair)
                forward_N, forward_NK = analytic.forward_kl_slope(*pair)
                loss_N = share * reverse_N + (1 - share) * forward_N
                return loss_N, reverse_NK.mul_(share).add_(forward_NK, alpha=1 - share)

    def value(self, student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
        """Divergence per token by its plain formula, which autograd can differentiate."""
        pair = student_NK, teacher_NK
        match self.name:
            case "fkl":
                return forward_kl(*pair)
            case "rkl":
                return reverse_kl(*pair)
            case "jsd":
                return jensen_shannon(*pair, self.beta)
            case "tvd":
                return total_variation(*pair)
            case "skl":
                return skew_kl(*pair, self.alpha)
            case "srkl":
                return skew_reverse_kl(*pair, self.alpha)
            case "mix":
                share = self.rkl_share
                return share * reverse_kl(*pair) + (1 - share) * forward_kl(*pair)


def filled(default: Divergence, given: Any) -> Any:
    """A partly given table on top of another default than the class's own."""
    if given is None:
        return default
    return {**default.model_dump(), **given} if isinstance(given, Mapping) else given
