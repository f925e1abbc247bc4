"""A distribution over codes per token, known by its logits.

Losses of clusters never look at single codes: they sum the exponentials of logits, and so save
the passes that normalising would cost (learner/analytic.py, `summed_logprob`).

Shape letters: N tokens, n some of them, V codes.
"""

import torch
from torch import Tensor


class Categorical:
    """Its log-probabilities are computed when somebody asks for them, once."""

    def __init__(self, given_NV: Tensor) -> None:
        """`given_NV`: logits of any float type, up to a constant per token; log-probabilities are
        logits too."""
        self.given_NV = given_NV
        self._logprob_NV: Tensor | None = None

    @classmethod
    def normalised(cls, logprob_NV: Tensor) -> "Categorical":
        """Known by its log-probabilities, which stay as they are."""
        found = cls(logprob_NV)
        found._logprob_NV = logprob_NV
        return found

    @property
    def stays_as_it_is(self) -> bool:
        """Whether it was given by log-probabilities, which nobody may normalise once more."""
        return self._logprob_NV is self.given_NV

    @property
    def logit_NV(self) -> Tensor:
        """Logits in float32 at least, with their gradient where that is recorded."""
        return self.given_NV.to(torch.promote_types(self.given_NV.dtype, torch.float32))

    @property
    def logprob_NV(self) -> Tensor:
        """Normalised, with the logits' gradient where that is recorded."""
        if self._logprob_NV is not None:
            return self._logprob_NV
        found_NV = self.logit_NV.log_softmax(-1)
        # What was computed without its gradient is not for those who want it.
        if found_NV.requires_grad == self.given_NV.requires_grad:
            self._logprob_NV = found_NV
        return found_NV

    def only(self, index_n: Tensor) -> "Categorical":
        """Of some tokens."""
        make = Categorical.normalised if self.stays_as_it_is else Categorical
        return make(self.given_NV[index_n])

    def tempered(self, temperature: float) -> "Categorical":
        """softmax(z / T)."""
        return self if temperature == 1 else Categorical(self.logit_NV / temperature)
