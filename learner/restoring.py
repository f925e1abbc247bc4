"""Training state that comes back from a snapshot must be of the very things that are trained.

A seal says that a snapshot is as it was written, not that this code wrote it for this model.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from common.errors import InputError

REMEDY = "it is of another model or of other code; go back to that, or begin again with --restart"


@contextmanager
def fitting() -> Iterator[None]:
    """Makes one sentence of whatever foreign state makes fail.

    Raises:
        InputError: says what does not fit.
    """
    try:
        yield
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{error} is absent; {REMEDY}") from None
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        line = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"its state does not fit ({line}); {REMEDY}") from None


def require_like(found: Mapping[str, Any], own: Mapping[str, Tensor], entry: str) -> None:
    """Refuse tensors of other names, shapes or types than our own.

    Raises:
        InputError: names the first one below `entry`.
    """
    for name in sorted(own.keys() | found.keys()):
        theirs, ours = _kind(found.get(name)), _kind(own.get(name))
        if theirs != ours:
            raise InputError(f"{entry}.{name} is {theirs}, but the model's is {ours}; {REMEDY}")


def restore_optimizer(optimizer: Optimizer, module: nn.Module, state: dict[str, Any]) -> None:
    """Load its state; the moments must have their parameters' shapes.

    Raises:
        InputError: names the first parameter whose moments have not.
    """
    optimizer.load_state_dict(state)
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise InputError(
                    f"optimizer.{key} of {name} is {_kind(value)}, but the model's {name} is "
                    f"{_kind(parameter)}; {REMEDY}"
                )


def _kind(value: Any) -> str:
    if value is None:
        return "absent"
    if not isinstance(value, Tensor):
        return f"no tensor but {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
