"""What one of several ranks holds of a student that lies over them (learner/sharded.py), without
the others."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from common.device import precision
from deploy.planning.blank_tensors import META
from deploy.planning.skeletons import parameters
from learner.blocks import blocks
from learner.config import LearnerConfig
from learner.layout import Layout, Replicated, layout_of
from learner.process_group import ProcessGroup


class BlankShards(Replicated):
    """Holds a share of each tensor, and each gradient as a whole until it is there."""

    def __init__(self, student: nn.Module, world: int) -> None:
        def share(value: Tensor) -> Tensor:
            return torch.empty(-(-value.shape[0] // world), *value.shape[1:], device=META)

        own, buffers = dict(student.named_parameters()), dict(student.named_buffers())
        shares = {name: share(value) for name, value in own.items()}
        self.held: Mapping[str, Tensor] = {**shares, **buffers}
        self.trained: Mapping[str, Tensor] = {
            name: nn.Parameter(shares[name]) for name, value in own.items() if value.requires_grad
        }
        self._sum = None
        self._of: dict[Tensor, Tensor] = {own[name]: shard for name, shard in self.trained.items()}
        for parameter in self._of:
            parameter.register_post_accumulate_grad_hook(self._is_whole)

    def _is_whole(self, parameter: Tensor) -> None:
        shard, parameter.grad = self._of[parameter], None
        if shard.grad is None:
            shard.grad = torch.zeros_like(shard)


def is_sharded(config: LearnerConfig) -> bool:
    return config.parallel == "fsdp" and config.world_size > 1


def blank_layout(config: LearnerConfig, student: nn.Module, ranks: ProcessGroup) -> Layout:
    """As `layout_of`, where `ranks` is of nobody."""
    if is_sharded(config):
        return BlankShards(student, ranks.world)
    return layout_of(config, student, ranks)


def gathered_bytes(config: LearnerConfig, student: nn.Module) -> int:
    """Weights and gradients that are whole on a rank for a while: all that is outside of blocks, a
    block that computes, the next one, and the gradients of one, to be sent and as they come."""
    each = [parameters(block) for block in blocks(student)]
    largest, outside = max(each, default=0), parameters(student) - sum(each)
    gathered = precision(config.dtype).itemsize
    return 4 * outside + largest * (2 * gathered + 4)
