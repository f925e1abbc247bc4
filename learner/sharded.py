"""A student of which every rank holds a part, by torch's FSDP2 (`fully_shard`).

Parameters, gradients, moments and average lie in rows (dimension 0) over the ranks, in float32. A
block is gathered when it computes, and what belongs to no block (embeddings, norms, the head) for
as long as a micro-batch takes. FSDP2 does that in hooks around modules, but a learner has no module
whose `forward` is its computation: objectives read hidden vectors as they like, and the loss uses
the head by itself, in chunks. So the whole computation of a micro-batch is handed to a module that
does nothing but run it, which is the root of the shards.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from common.errors import InputError
from common.files.rows import Rows, own_rows, row_files
from common.finite import largest
from learner.blocks import blocks
from learner.process_group import ProcessGroup

T = TypeVar("T")


class _MicroBatch(nn.Module):
    """Runs what it is given; the student's parameters are there meanwhile."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, compute: Callable[[], T]) -> T:
        return compute()


class Sharded:
    """A `Layout` (learner/layout.py)."""

    is_spread = True

    def __init__(
        self, student: nn.Module, ranks: ProcessGroup, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Blocks are gathered, and compute, in `dtype`; their gradients are added up in float32. Of
        a student on the host, `device` never holds more than the shards and a block.

        Raises:
            InputError: this torch cannot sum gradients, only average them, or not store shards.
        """
        row_files()  # not only when the first snapshot is due
        self._ranks = ranks
        self._device = device
        self._root = _shards(student, ranks.world, dtype, device)
        self._loose = _outside_of_blocks(student)
        found = student.state_dict()
        self._count = {
            n: value.shape[0] for n, value in found.items() if isinstance(value, DTensor)
        }
        self.held: Mapping[str, Tensor] = {name: _local(value) for name, value in found.items()}
        self._parameters = {n: p for n, p in student.named_parameters() if p.requires_grad}
        self.trained: Mapping[str, Tensor] = {
            name: nn.Parameter(self.held[name]) for name in self._parameters
        }

    def run(self, compute: Callable[[], T]) -> T:
        try:
            return self._root(compute)
        finally:
            if not torch.is_grad_enabled():  # else the backward pass does
                self._root.reshard()

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        loss.backward()

    def anchored(self, loss: Tensor, hidden: Tensor) -> Tensor:
        # Of none of their numbers: a gradient of zeros, through all blocks and for the head.
        found = [getattr(module, name) for module, name in self._loose]
        empty = [value.flatten()[:0].sum() for value in (hidden, *found) if value.requires_grad]
        return loss + torch.stack(empty).sum()

    def sum_gradients(self) -> None:
        for name, shard in self.trained.items():
            grad = self._parameters[name].grad
            shard.grad = torch.zeros_like(shard) if grad is None else _local(grad)
            self._parameters[name].grad = None

    def clip(self, most: float) -> Tensor:
        grads = [shard.grad for shard in self.trained.values() if shard.grad is not None]
        square = self._ranks.sum_(nn.utils.get_total_norm(grads).square())
        norm = square.sqrt()
        nn.utils.clip_grads_with_norm_(self.trained.values(), most, norm)
        return norm

    def largest(self) -> Tensor:
        own = [shard for shard in self.trained.values() if shard.numel()]
        each = torch.zeros(self._ranks.world, device=self._device)
        if own:
            each[self._ranks.rank] = largest(own)
        return self._ranks.sum_(each).max()

    def gathered(
        self, held: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype] | None = None
    ) -> Mapping[str, Tensor]:
        whole = {}
        for name, value in held.items():
            found = value.to((dtypes or {}).get(name, value.dtype))
            if name in self._count:
                found = self._gathered(found, self._count[name])
            if self._ranks.rank == 0:
                whole[name] = found.to("cpu", copy=name not in self._count)
        return whole

    def _gathered(self, rows: Tensor, count: int) -> Tensor:
        """All rows of one tensor, on rank 0; nothing elsewhere."""
        each = -(-count // self._ranks.world)
        padded = rows.new_zeros(each, *rows.shape[1:])
        padded[: len(rows)] = rows
        is_first = self._ranks.rank == 0
        parts = [torch.empty_like(padded) for _ in range(self._ranks.world)] if is_first else None
        distributed.gather(padded, parts)
        return torch.cat(parts)[:count] if parts else rows[:0]

    def stored(self, name: str, rows: Tensor) -> Any:
        if name not in self._count:
            return rows
        return Rows(rows, self._span(name).start, self._count[name])

    def own(self, name: str, stored: Any) -> Tensor:
        if isinstance(stored, Rows):
            return stored.value
        return stored[self._span(name)].clone() if name in self._count else stored

    def _span(self, name: str) -> slice:
        return own_rows(self._count[name], self._ranks.rank, self._ranks.world)


def require_sums(modules: type) -> None:
    """Refuse a torch whose sharded `modules` cannot do what losses with global denominators need.

    Raises:
        InputError: it cannot sum gradients.
    """
    if not hasattr(modules, "set_force_sum_reduction_for_comms"):
        raise InputError(
            f"learner.parallel is fsdp, but torch {torch.__version__} only averages the gradients "
            "of shards where gloo or NCCL should sum them; install a newer one (2.13 does), or set "
            "learner.parallel=ddp"
        )


def _shards(student: nn.Module, world: int, dtype: torch.dtype, device: torch.device) -> Any:
    require_sums(FSDPModule)
    mesh = init_device_mesh(device.type, (world,))
    policy = MixedPrecisionPolicy()
    if dtype != torch.float32:  # what goes in stays as it is: autocast decides, as without shards
        policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    sharded = [fully_shard(block, mesh=mesh, mp_policy=policy) for block in blocks(student)]
    root = fully_shard(_MicroBatch(student), mesh=mesh)
    for module in (*sharded, root):
        module.set_gradient_divide_factor(1.0)  # coefficients are global: sums, no means
        module.set_force_sum_reduction_for_comms(True)
    return root


def _outside_of_blocks(student: nn.Module) -> list[tuple[nn.Module, str]]:
    """(module, name) of every parameter that the root holds."""
    inside = {id(part) for block in blocks(student) for part in block.modules()}
    return [
        (module, name)
        for module in student.modules()
        if id(module) not in inside
        for name in module._parameters
        if module._parameters[name] is not None
    ]


def _local(value: Tensor) -> Tensor:
    value = value.detach()
    return value.to_local() if isinstance(value, DTensor) else value
