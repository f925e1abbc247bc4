"""How a student, its gradients and its optimizer's state lie over the learner's ranks.

The learner asks a layout for whatever differs between one process, several that each hold all
(`Replicated`), and several that each hold a part (learner/sharded.py).
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from common.device import place, precision
from common.exchange.adjacent import lay_together
from common.finite import largest
from learner.config import LearnerConfig
from learner.gradient_sum import GradientSum
from learner.process_group import ProcessGroup

T = TypeVar("T")
LayoutOf = Callable[[LearnerConfig, nn.Module, ProcessGroup], "Layout"]


class Layout(Protocol):
    """All ranks make the same calls in the same order."""

    is_spread: bool
    """Whether what others see of the student has to be gathered: all ranks are asked for it, and
    rank 0 has it."""
    held: Mapping[str, Tensor]
    """The student's state as far as this rank holds it, where it lies."""
    trained: Mapping[str, Tensor]
    """What the optimizer of this rank moves, by the parameters' names."""

    def run(self, compute: Callable[[], T]) -> T:
        """The result of what reads the student's parameters; only here they are all there."""
        ...

    def anchored(self, loss: Tensor, hidden: Tensor) -> Tensor:
        """The loss of a pass that gave `hidden`, with a gradient for all parameters that must have
        one because they have it on another rank; to be called within `run`."""
        ...

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Of a loss that `run` returned; `is_last` is that of the step."""
        ...

    def sum_gradients(self) -> None:
        """Those of all ranks, in `trained`; zeros where there were none."""
        ...

    def clip(self, most: float) -> Tensor:
        """Norm of the whole gradient, which is scaled down to `most`."""
        ...

    def largest(self) -> Tensor:
        """The largest magnitude of what is trained, NaN if there is any; same on all ranks."""
        ...

    def gathered(
        self, held: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype] | None = None
    ) -> Mapping[str, Tensor]:
        """All of a state of which `held` is this rank's part, in `dtypes` where that costs nothing
        more; empty on other ranks than 0 where it is spread."""
        ...

    def stored(self, name: str, rows: Tensor) -> Any:
        """A tensor that is shaped as `held[name]` as a snapshot takes it."""
        ...

    def own(self, name: str, stored: Any) -> Tensor:
        """The reverse: this rank's part of a tensor, or the `Rows` that were read of it."""
        ...


class Replicated:
    """Every rank holds all of it; gradients are summed while the backward pass goes on."""

    is_spread = False

    def __init__(self, student: nn.Module, ranks: ProcessGroup) -> None:
        self.held: Mapping[str, Tensor] = student.state_dict()
        self.trained: Mapping[str, Tensor] = {
            n: p for n, p in student.named_parameters() if p.requires_grad
        }
        self._sum = None if ranks.world == 1 else GradientSum([*self.trained.values()], ranks)

    def run(self, compute: Callable[[], T]) -> T:
        return compute()

    def anchored(self, loss: Tensor, hidden: Tensor) -> Tensor:
        return loss

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        if is_last and self._sum is not None:
            self._sum.begin()
        if loss.requires_grad:
            loss.backward()

    def sum_gradients(self) -> None:
        if self._sum is not None:
            self._sum.finish()
        for parameter in self.trained.values():
            if parameter.grad is None:  # e.g. nothing was open
                parameter.grad = torch.zeros_like(parameter)

    def clip(self, most: float) -> Tensor:
        return nn.utils.clip_grad_norm_(self.trained.values(), most)

    def largest(self) -> Tensor:
        return largest(self.trained.values())

    def gathered(
        self, held: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype] | None = None
    ) -> Mapping[str, Tensor]:
        return held

    def stored(self, name: str, rows: Tensor) -> Any:
        return rows

    def own(self, name: str, stored: Any) -> Tensor:
        return stored


def layout_of(config: LearnerConfig, student: nn.Module, ranks: ProcessGroup) -> Layout:
    """As the config has it, on the config's device; a single rank holds all."""
    device = place(config.device)
    if config.parallel == "fsdp" and ranks.world > 1:
        from learner.sharded import Sharded  # which imports for half a second

        return Sharded(student, ranks, precision(config.dtype), device)
    student = student.to(device)
    lay_together(p for p in student.parameters() if p.requires_grad)
    return Replicated(student, ranks)
