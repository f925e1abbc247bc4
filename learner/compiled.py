"""Layers compiled by torch, one by one: all of a kind share what is compiled for the first."""

from torch import nn

from common.errors import InputError
from common.native.compiler import COMPILERS, c_compiler


def compile_layers(model: nn.Module) -> None:
    """Every module of the model's lists, in place; names of parameters stay as they are.

    Raises:
        InputError: this machine has no C compiler, which torch.compile builds its kernels with.
    """
    if c_compiler() is None:
        raise InputError(
            "learner.compile is true, but torch.compile needs a C compiler and this machine has "
            f"none (looked for $CC and {', '.join(COMPILERS)}); install one, or set "
            "learner.compile=false"
        )
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                layer.compile()
