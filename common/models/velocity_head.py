"""The small network that reads a noisy vector, a time and what a slot knows of the slots before it,
and says a velocity: MAR's SimpleMLPAdaLN (arXiv 2406.11838, section 3.2 and its released code).

Shape letters: D code width, C width of the features, W width of the head.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.adaln import plain_norm

FREQUENCIES = 256
"""Cosines and sines that a time is written as."""
TIMES = 1000
"""The released embedding counts times to 1000; here a time lies between 0 and 1."""


class TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FREQUENCIES, width), nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        """(..., W) of times (...)."""
        return self.second(F.silu(self.first(waves(time).to(self.first.weight.dtype))))


class HeadBlock(nn.Module):
    """x + gate * MLP(LN(x) (1 + scale) + shift)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.ada_lin(condition).chunk(3, dim=-1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class VelocityHead(nn.Module):
    """Says 0 of everything at first: gates and the last layer begin at zero."""

    def __init__(self, code_width: int, feature_width: int, *, width: int, depth: int) -> None:
        super().__init__()
        self.time_embed = TimeEmbedding(width)
        self.cond_embed = nn.Linear(feature_width, width)
        self.input_proj = nn.Linear(code_width, width)
        self.blocks = nn.Sequential(*(HeadBlock(width) for _ in range(depth)))
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.linear = nn.Linear(width, code_width)
        self._initialise()

    def forward(self, x: Tensor, time: Tensor, feature: Tensor) -> Tensor:
        """velocity (..., D), float32, at x (..., D) and times (...) with features (..., C); the
        leading axes broadcast, so several draws of noise share one feature."""
        condition = self.time_embed(time) + self.cond_embed(feature)
        h = self.input_proj(x.to(self.input_proj.weight.dtype))
        for block in self.blocks:
            h = block(h, condition)
        shift, scale = self.ada_lin(condition).chunk(2, dim=-1)
        return self.linear(plain_norm(h) * (1 + scale) + shift).float()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.time_embed.first, self.time_embed.second):
            nn.init.normal_(layer.weight, std=0.02)
        blocks = cast("list[HeadBlock]", list(self.blocks))
        for modulation in (self.ada_lin, *(block.ada_lin for block in blocks)):
            nn.init.zeros_(cast(nn.Linear, modulation[1]).weight)
        nn.init.zeros_(self.linear.weight)


def waves(time: Tensor) -> Tensor:
    """Cosines and sines (..., 256) of times in [0, 1], float32."""
    half = FREQUENCIES // 2
    rate = torch.exp(-math.log(10_000) * torch.arange(half, device=time.device) / half)
    angle = TIMES * time.float()[..., None] * rate
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
