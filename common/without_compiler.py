"""Torch without its compiler, where nobody compiles.

Torch marks some of its Python functions as none that its compiler may trace, among them optimizers'
and the shape rules of the meta device, and the first call of one imports the compiler to say so:
two seconds of a processor in every process that trains or plans. torchvision imports it
to ask, later, whether it can compile.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

COMPILER = "torch._dynamo"


def _as_it_is(function: Callable[..., Any], *how: Any, **more: Any) -> Callable[..., Any]:
    return function


def _is_compile_supported(device_type: Any) -> bool:
    """Ask the compiler, which is imported for that."""
    return importlib.import_module(f"{COMPILER}.utils").is_compile_supported(device_type)


STAND_INS: dict[str, dict[str, Any]] = {
    COMPILER: {
        "disable": _as_it_is,
        "graph_break": lambda: None,
        "config": SimpleNamespace(error_on_nested_fx_trace=True),  # read by torch's checkpoint
    },
    f"{COMPILER}.utils": {"is_compile_supported": _is_compile_supported},
}
"""What is asked of it. torchvision imports the last one."""


@contextmanager
def without_compiler() -> Iterator[None]:
    """Within it such functions are called as they are, from then on too, unless the compiler is
    there already. Nothing else of it may be imported within."""
    if COMPILER in sys.modules:
        yield
        return
    stand_ins = {name: ModuleType(name, "Does not compile.") for name in STAND_INS}
    for name, module in stand_ins.items():
        vars(module).update(STAND_INS[name])
    sys.modules |= stand_ins
    try:
        yield
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
