"""AdamW with decay groups, warm-up and clipping, and an exponential moving average."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from common.config.quantities import Factor, Fraction, LearningRate, StepsOrNever, Weight
from common.config.schema import Config
from common.without_compiler import without_compiler


class OptimizerConfig(Config):
    renamed: ClassVar[Mapping[str, str]] = {"clip": "max_grad_norm"}

    learning_rate: LearningRate = 1e-4
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW's averaging coefficients."""
    weight_decay: Weight = 0.05
    """Decay of tensors with two or more dimensions (LlamaGen's groups)."""
    warmup: StepsOrNever = 0
    """Steps of linear warm-up from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after warm-up; cosine ends at 0."""
    max_grad_norm: Factor = 1.0
    """Largest norm of the whole gradient."""
    ema: Fraction = 0.999
    """Decay of the averaged student; ramped up as (1 + t) / (10 + t). 0 copies the student."""

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of the 0-based `step` out of `steps`."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup) / max(1, steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def remedy(self, section: str) -> str:
        """What makes a diverging training converge, for messages; `section` holds this config."""
        return (
            f"lower {section}.optimizer.learning_rate ({self.learning_rate:g}) or {section}."
            f"optimizer.max_grad_norm ({self.max_grad_norm:g}), or give it a longer warmup"
        )


class AdamW(torch.optim.AdamW):
    """Torch's, which imports no compiler to say that it is not to be compiled."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        with without_compiler():
            super().__init__(*arguments, **settings)

    def step(self, closure: Any = None) -> Any:
        with without_compiler():
            found = super().step(closure)
        if self.defaults["fused"]:  # which torch does not count as an update on a CPU
            for group in self.param_groups:
                for parameter in group["params"]:
                    torch.autograd.graph.increment_version(parameter)
        return found

    def zero_grad(self, set_to_none: bool = True) -> None:
        with without_compiler():
            super().zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        with without_compiler():
            return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        with without_compiler():
            super().load_state_dict(state_dict)


def build_adamw(config: OptimizerConfig, trained: Mapping[str, Tensor]) -> torch.optim.AdamW:
    """Of parameters by their names."""
    decayed = [p for p in trained.values() if p.ndim >= 2]
    plain = [p for p in trained.values() if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    kinds = {p.device.type for p in trained.values()}
    fused = kinds <= {"cpu", "cuda"}  # one pass over all tensors; the dry run has blank ones
    return AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)


class Average:
    """Exponential moving average of a state's floating-point tensors, which stay where they are."""

    def __init__(self, current: Mapping[str, Tensor], decay: float) -> None:
        self._decay = decay
        self.state = {name: value.detach().clone() for name, value in current.items()}
        pairs = [(value, current[name].detach()) for name, value in self.state.items()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._averaged, self._latest = ([pair[side] for pair in averaged] for side in (0, 1))

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        for value, latest in self._copied:
            value.copy_(latest)
        get_ema_multi_avg_fn(decay)(self._averaged, self._latest, step)
