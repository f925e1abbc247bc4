"""Torch without its compiler, where nobody compiles.

Torch marks some of its Python functions as none that its compiler may trace, among them optimizers'
and the shape rules of the meta device, and the first call of one imports the compiler to say so:
two seconds of a processor in every process that trains or plans.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"


def _as_it_is(function: Callable[..., Any], *how: Any, **more: Any) -> Callable[..., Any]:
    return function


@contextmanager
def without_compiler() -> Iterator[None]:
    """Within it such functions are called as they are, from then on too, unless the compiler is
    there already. Nothing else of it may be imported within."""
    if COMPILER in sys.modules:
        yield
        return
    stand_in = ModuleType(COMPILER, "Does not compile.")
    vars(stand_in).update(disable=_as_it_is, graph_break=lambda: None)
    sys.modules[COMPILER] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]
