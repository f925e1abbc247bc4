"""Models without content, which cost neither memory nor time: shapes, names and types."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

META = torch.device("meta")


@contextmanager
def outlines() -> Iterator[None]:
    """Inside the block modules are made on the meta device, and their weights are not drawn."""
    with META, _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """On the meta device torch takes milliseconds to draw nothing, or to scale it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CONTENT:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


_CONTENT: set[Any] = {
    *(Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_),
    nn.functional.normalize,
}
"""What gives its first operand other content, and nothing else."""
