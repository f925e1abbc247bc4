"""Which steps a model's decoding borrows: captured ones on a GPU, our own C on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from common.models.backbone import Backbone
from common.models.cpu.native_steps import NativeSteps, can_run
from common.models.cuda.captured_steps import CapturedSteps, can_capture
from common.models.static_caches import TokenSteps

LEAST_STEPS = 16
"""Capturing, and packing weights, cost as much as a few steps; shorter decoding goes without."""

_STEPS: "WeakKeyDictionary[Backbone, TokenSteps]" = WeakKeyDictionary()


@contextmanager
def token_steps(model: Backbone, steps: int, rows: int) -> Iterator[bool]:
    """Within it the model decodes single tokens of up to so many rows by steps that it is lent,
    where there are any for it and so many of them pay; says whether. Weights may be changed in
    place between two such decodings."""
    kind = _kind(model) if steps >= LEAST_STEPS and model.token_steps is None else None
    if kind is None:
        yield False
        return
    found = _STEPS.pop(model, None)
    if not isinstance(found, kind) or not found.serves(model, rows):
        del found  # before the next is made, so that two are never held
        found = kind(model, rows)
    _STEPS[model] = model.token_steps = found
    try:
        yield True
    finally:
        model.token_steps = None
        found.release()


def _kind(model: Backbone) -> type[NativeSteps] | type[CapturedSteps] | None:
    if can_capture(model):
        return CapturedSteps
    return NativeSteps if can_run(model) else None
