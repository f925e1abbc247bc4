"""Lets the roles' own code run on tensors without content, and counts the bytes that it holds.

What is wide (weights, activations, logits) lives on the meta device, where tensors have shapes but
no content. What is narrow (tokens, prefixes, orders, the gate's scores) has content, so that the
code branches on it as ever. Three rules make the two live together, whatever the code is:

- what is computed from a blank tensor is blank, whatever else went in;
- a blank tensor stays blank wherever it is moved, and what it is written to keeps its content;
- where a value is asked for that is not there, every element is one: a check passes, a search
  finds every place.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from common.outline import META
from common.without_compiler import without_compiler

_ATEN: Any = torch.ops.aten


def peak_bytes(
    run: Callable[[], object], autocast: torch.dtype = torch.float32, *, on_cpu: bool = False
) -> int:
    """Most bytes of tensors that `run` holds at a time, beside those that existed before."""
    with without_compiler(), Kernels(autocast, on_cpu=on_cpu), Meter() as meter:
        run()
    return meter.peak


def is_on_cpu(device: str, gpus: float) -> bool:
    """Whether a role computes there, by its settings `device` and `gpus`."""
    return device == "cpu" or (device == "auto" and not gpus)


def flops(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of `run`; attention's own
    are left out."""
    counter = FlopCounterMode(display=False)
    with without_compiler(), Kernels(torch.float32), Meter(), counter:
        run()
    return counter.get_total_flops()


class Meter(TorchDispatchMode):
    """Counts the tensors that are made inside the block, with or without content."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._shapes = Shapes()
        self._sizes: dict[int, int] = {}
        self._references: dict[int, weakref.ref] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and torch's guard against it takes its time for each call."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = _tensors(args, [])
        if kwargs:
            _tensors(kwargs.values(), given)
        for value in given:
            self._watch(value, counted=False)  # what came from outside, if it is new here
        made = self._shapes.run(func, args, kwargs, given)
        for value in _tensors((made,), []):
            self._watch(value, counted=True)
        return made

    def _watch(self, value: Tensor, *, counted: bool) -> None:
        storage = value.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = size = storage.nbytes() if counted else 0
        self.alive += size
        if self.alive > self.peak:
            self.peak = self.alive
        self._references[key] = weakref.ref(storage, partial(self._forget, key))

    def _forget(self, key: int, _: weakref.ref) -> None:
        self.alive -= self._sizes.pop(key)
        del self._references[key]


class Shapes:
    """Runs operators on tensors of which some are blank.

    The shapes of a result are computed once for operands that look alike, in the whole process: the
    layers of a model, the steps of a decoder and the roles of a run repeat one another, and torch
    needs up to a millisecond for each.
    """

    _looks: ClassVar[dict[tuple, Any]] = {}

    def run(self, func: Any, args: tuple, kwargs: dict[str, Any], given: list[Tensor]) -> Any:
        """What `func` returns; `given` are the tensors among its operands."""
        blank = [value.is_meta for value in given].count(True)
        if not blank:
            return func(*args, **kwargs)
        answer, mutable, only_writes = _facts(func)
        if func is _ATEN._to_copy.default:
            dtype = kwargs.get("dtype")
            if dtype in (None, args[0].dtype):
                return _ATEN.alias.default(args[0])
            layout = {"dtype": dtype, "memory_format": kwargs.get("memory_format")}
            return self._made(func, args, layout, given)
        if answer is not None:
            return answer(*args, **kwargs)
        if mutable and (only_writes or not given[0].is_meta):
            return args[0] if func._schema.returns else None
        if blank < len(given):
            args, kwargs = tree_map_only(Tensor, lambda value: value.to(META), (args, kwargs))
        return self._made(func, args, kwargs, given)

    def _made(self, func: Any, args: tuple, kwargs: dict[str, Any], given: list[Tensor]) -> Any:
        key = (id(func), _key(args), _key(tuple(kwargs.items())) if kwargs else ())
        looks = self._looks.get(key, ...)
        if looks is ...:
            made = func(*args, **kwargs)
            self._looks[key] = _looks_of(made, given)
            return made
        return func(*args, **kwargs) if looks is None else _blank(looks)


_Looks = tuple[torch.Size, tuple[int, ...], torch.dtype] | tuple[()] | list[Any]
"""Shape, strides and type of a tensor, () for what is not there, or a list of such."""


def _key(value: Any) -> Any:
    """What the shape of a result depends on; 1, 1.0 and True differ."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple([_key(each) for each in value])
    return value.__class__, value


def _looks_of(made: Any, given: list[Tensor]) -> _Looks | None:
    """None for what must be made by torch itself: views, and whatever is no tensor."""
    if isinstance(made, list | tuple):
        looks = [() if value is None else _looks_of(value, given) for value in made]
        return None if None in looks else looks
    if not isinstance(made, Tensor) or not made.is_meta:
        return None
    storage = made.untyped_storage()._cdata
    is_view = any(storage == value.untyped_storage()._cdata for value in given)
    return None if is_view else (made.shape, made.stride(), made.dtype)


def _blank(looks: _Looks) -> Any:
    if isinstance(looks, list):
        return tuple(_blank(each) for each in looks)
    if not looks:
        return None
    shape, strides, dtype = looks
    return torch.empty_strided(shape, strides, dtype=dtype, device=META)


def _facts(func: Any) -> tuple[Callable[..., Any] | None, bool, bool]:
    """Its answer, whether it writes, and whether it changes nothing but its first operand's
    content. Operators live as long as the process, and their own hash takes its time."""
    found = _FACTS.get(id(func))
    if found is None:
        name = func._schema.name
        only_writes = name.endswith("_") and torch.Tag.inplace_view not in func.tags
        found = _FACTS[id(func)] = (_ANSWERS.get(func), func._schema.is_mutable, only_writes)
    return found


_FACTS: dict[int, tuple[Callable[..., Any] | None, bool, bool]] = {}


def _tensors(values: Iterable[Any], found: list[Tensor]) -> list[Tensor]:
    """`found` and the tensors among `values`, however nested."""
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            _tensors(value, found)
    return found


def _places(value: Tensor) -> Tensor:
    """Where `value` is not 0."""
    return torch.ones(value.shape).nonzero() if value.is_meta else value.nonzero()


def _indexed(value: Tensor, indices: list[Tensor | None]) -> Tensor:
    """Masks are told by what they hold before they become blank."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            found += _places(index).unbind(1)
        else:
            found.append(index)
    blank = [None if index is None else index.to(META) for index in found]
    return _ATEN.index.Tensor(value.to(META), blank)


def _resized(value: Tensor, size: Sequence[int], *how: Any) -> Tensor:
    """Torch composes it of hundreds of operators on indices, which take up to 0.1 s."""
    return value.new_empty(*value.shape[:2], *size)


_ANSWERS: dict[Any, Callable[..., Any]] = {
    _ATEN._local_scalar_dense.default: lambda value: torch.ones((), dtype=value.dtype).item(),
    _ATEN.nonzero.default: _places,
    _ATEN.index.Tensor: _indexed,
    _ATEN.upsample_bicubic2d.default: _resized,
}


_IS_CPU: Any = cast(Any, Tensor.is_cpu).__get__


class Kernels(TorchFunctionMode):
    """Lets blank tensors be treated as real devices treat theirs: attention is fused, trained
    layers run under autocast, and they say that they are on a CPU where the real ones would be."""

    def __init__(self, autocast: torch.dtype, *, on_cpu: bool = False) -> None:
        super().__init__()
        self._autocast = autocast
        self._on_cpu = on_cpu

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return FusedAttention.apply(*args[:3])
        if self._on_cpu and func == _IS_CPU and args[0].is_meta:
            return True
        if func is Tensor.tolist and args[0].is_meta:
            return torch.ones(args[0].shape, dtype=args[0].dtype).tolist()
        if func is Tensor.numpy and args[0].is_meta:
            return torch.ones(args[0].shape, dtype=args[0].dtype).numpy()
        if func is F.linear and self._autocast != torch.float32 and args[1].requires_grad:
            args = tuple(None if value is None else value.to(self._autocast) for value in args)
        if func is F.linear and args[0].is_meta and args[0].ndim > 2:
            # Of more axes torch adds the bias to a product of its own, without content alone.
            product = func(args[0].flatten(0, -2), *args[1:], **(kwargs or {}))
            return product.unflatten(0, args[0].shape[:-1])
        return func(*args, **(kwargs or {}))


class FusedAttention(torch.autograd.Function):
    """Keeps its inputs and its output, never the scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, mixed)
        return mixed

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])
