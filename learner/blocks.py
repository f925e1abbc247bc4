"""The blocks of a network: what is compiled, sharded or computed again, one at a time."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Modules of the model's lists that have parts of their own, none of them within another."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from (part for part in child if any(part.children()))
        else:
            yield from blocks(child)


def recompute_activations(model: nn.Module) -> None:
    """Activation checkpointing, in place: a block keeps what goes in and is computed once more in
    the backward pass, with the same dropout. Names of parameters stay as they are. The first pass
    imports torch's compiler, which it asks whether it is traced."""
    for block in blocks(model):
        again = partial(checkpoint, use_reentrant=False, context_fn=_same_modes)
        block.forward = partial(again, block.forward)


def _same_modes() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """Contexts of the first pass and of the second one, which torch runs without the modes of the
    first: those of a dry run, whose tensors have no content."""
    return nullcontext(), _within(_get_current_function_mode_stack())


@contextmanager
def _within(modes: list[TorchFunctionMode]) -> Iterator[None]:
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield
