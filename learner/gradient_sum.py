"""Sums gradients over ranks while the backward pass still goes on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from learner.process_group import ProcessGroup

BUCKET_BYTES = 2**25
"""Of a message: large enough to be worth sending, small enough to be under way early."""


@dataclass(eq=False, slots=True)
class _Bucket:
    """Parameters whose gradients travel as one."""

    members: list[Tensor]
    missing: int = 0
    """Of how many the gradient is not whole yet."""
    wait: Callable[[], object] = field(default=lambda: None)

    def send(self, ranks: ProcessGroup) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.members]
        flat = torch.cat([grad.flatten() for grad in grads])
        sizes = [p.numel() for p in self.members]
        for parameter, part in zip(self.members, flat.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)
        self.wait = ranks.begin_sum(flat)

    def settle(self) -> None:
        self.wait()
        self.wait = lambda: None


class GradientSum:
    """Coefficients of the losses are global, so that gradients add up: sums, no means.

    Messages leave in one order, that of the parameters from the last to the first, which is about
    that of the backward pass; so the sums are the same to the bit in every run.
    """

    def __init__(
        self, parameters: Sequence[Tensor], ranks: ProcessGroup, bytes_: int = BUCKET_BYTES
    ) -> None:
        """`bytes_` is the size at which a message is full."""
        self._ranks = ranks
        self._buckets: list[_Bucket] = []
        self._of: dict[Tensor, _Bucket] = {}
        self._sent: int | None = None
        size = bytes_
        for parameter in reversed(parameters):
            if size >= bytes_:
                self._buckets.append(_Bucket([]))
                size = 0
            self._buckets[-1].members.append(parameter)
            self._of[parameter] = self._buckets[-1]
            size += parameter.numel() * parameter.element_size()
            parameter.register_post_accumulate_grad_hook(self._is_whole)

    def begin(self) -> None:
        """The next backward pass is the step's last one: what it leaves is sent."""
        self._sent = 0
        for bucket in self._buckets:
            bucket.missing = len(bucket.members)

    def finish(self) -> None:
        """Every gradient is the sum over all ranks when this returns, zeros where no rank had any;
        without a `begin` before, all of them are sent now."""
        if self._sent is None:
            self.begin()
        for bucket in self._buckets[self._sent :]:  # e.g. nothing was open on this rank
            bucket.send(self._ranks)
        for bucket in self._buckets:
            bucket.settle()
        self._sent = None

    def _is_whole(self, parameter: Tensor) -> None:
        """Its gradient is; called in the backward pass."""
        if self._sent is None:
            return
        self._of[parameter].missing -= 1
        while self._sent < len(self._buckets) and not self._buckets[self._sent].missing:
            self._buckets[self._sent].send(self._ranks)
            self._sent += 1
