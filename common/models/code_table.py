"""A tokenizer's code vectors as a module, for families that read them.

Shape letters: V codes, D code width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CodeTable(nn.Module):
    """Not trained; keeps its precision whatever the module that holds it is cast to."""

    code_VD: Tensor

    def __init__(self, code_VD: Tensor) -> None:
        super().__init__()
        self.register_buffer("code_VD", code_VD)

    def forward(self, token: Tensor) -> Tensor:
        """(..., D) of tokens (...)."""
        return F.embedding(token, self.code_VD)

    def length(self) -> Tensor:
        """Root of the codes' mean square norm; 1 where there are none yet."""
        square = self.code_VD.square().sum(-1).mean()
        return torch.where(square > 0, square, 1.0).sqrt()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Follow the holder to another device, but never to another precision."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)
