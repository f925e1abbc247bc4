"""One guided hidden vector per token: the exact full-vocabulary distribution, 10x smaller.

Guidance rules are affine with coefficients that sum to 1 and the head is linear, so the head
applied to the guided hidden vector equals the guided logits (docs/architecture.md, "What the
teacher sends").
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.exchange.signal import SignalConfig
from common.finite import is_finite

DTYPES = {"float32": torch.float32, "float16": torch.float16}


class Config(SignalConfig):
    dtype: Literal["float32", "float16"] = "float32"
    """Wire type; float16 halves the bytes and moves logits by about 1e-3."""

    def encode(self, hidden_BLC: Tensor, head: nn.Linear) -> dict[str, Tensor]:
        sent = hidden_BLC.to(DTYPES[self.dtype])
        if not is_finite(sent):
            if not is_finite(hidden_BLC):
                raise InputError(
                    "a guided hidden vector of the teacher is not finite; check teacher.weights "
                    "and teacher.guidance"
                )
            raise InputError(
                "a guided hidden vector of the teacher does not fit float16; set "
                "teacher.signal.dtype=float32"
            )
        return {"hidden": sent}

    def logprob(self, column: Mapping[str, Tensor], head: nn.Linear) -> Tensor:
        return self.logit(column, head).log_softmax(-1)

    def logit(self, column: Mapping[str, Tensor], head: nn.Linear) -> Tensor:
        return head(column["hidden"].float()).float()

    def bytes_per_token(self, width: int, vocab_size: int) -> int:
        return width * DTYPES[self.dtype].itemsize
