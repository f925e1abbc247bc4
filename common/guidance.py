"""Classifier-free guidance as pure functions.

Every rule is affine in (conditional, unconditional) with coefficients that sum to one, so it
commutes with a linear head: guiding post-norm hidden vectors equals guiding logits
(design: house 4, "What the teacher sends").
"""

from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """LlamaGen's rule, u + s (c - u), on logits or on post-norm hidden vectors of any shape."""
    return unconditional + scale * (conditional - unconditional)
