"""Training state that comes back from a snapshot must be of the very things that are trained.

A seal says that a snapshot is as it was written, not that this code wrote it for this model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from common.errors import InputError
from common.files.rows import Rows

REMEDY = "it is of another model or of other code; go back to that, or begin again with --restart"


Part = Callable[[str, Any], Any]
"""Of a parameter's name and a tensor of its shape: that, or a part of it."""


def _as_it_is(name: str, value: Any) -> Any:
    return value


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


def optimizer_state(
    optimizer: Optimizer, trained: Mapping[str, Tensor], stored: Part = _as_it_is
) -> dict[str, Any]:
    """Its state as a snapshot takes it: moments, which are shaped as their parameters, are what
    `stored` makes of them; `trained` are the parameters by their names."""
    state, names = optimizer.state_dict(), _names(optimizer, trained)

    def made(name: str, value: Any, key: str) -> Any:
        return stored(name, value)

    return {**state, "state": _moments(state["state"], names, made)}


def restore_optimizer(
    optimizer: Optimizer,
    trained: Mapping[str, Tensor],
    state: dict[str, Any],
    *,
    whole: Mapping[str, Tensor] | None = None,
    own: Part = _as_it_is,
) -> None:
    """Load its state; the moments must have their parameters' shapes.

    Of parameters that are parts, `whole` has those that they are parts of, and `own` takes the part
    of a moment.

    Raises:
        InputError: names the first parameter whose moments have not.
    """
    names, whole = _names(optimizer, trained), whole or trained

    def checked(name: str, value: Any, key: str) -> Any:
        if value.shape != whole[name].shape:
            raise InputError(
                f"optimizer.{key} of {name} is {_kind(value)}, but the model's {name} is "
                f"{_kind(whole[name])}; {REMEDY}"
            )
        return own(name, value)

    optimizer.load_state_dict({**state, "state": _moments(state["state"], names, checked)})


def _names(optimizer: Optimizer, trained: Mapping[str, Tensor]) -> list[str]:
    """Of the parameters in the order by which the optimizer's state counts them."""
    names = {id(parameter): name for name, parameter in trained.items()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _moments(
    state: Mapping[int, Mapping[str, Any]],
    names: Sequence[str],
    change: Callable[[str, Any, str], Any],
) -> dict[int, dict[str, Any]]:
    """`state` with `change` of every moment; other entries are numbers."""
    return {
        number: {
            key: change(names[number], value, key) if _is_moment(value) else value
            for key, value in found.items()
        }
        for number, found in state.items()
    }


def _is_moment(value: Any) -> bool:
    return not isinstance(value, int | float) and len(value.shape) > 0


def _kind(value: Any) -> str:
    if value is None:
        return "absent"
    if not isinstance(value, Tensor | Rows):
        return f"no tensor but {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
