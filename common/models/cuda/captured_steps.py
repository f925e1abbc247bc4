"""The steps of one model's decoding, captured once and replayed.

A step of a small model is hundreds of kernels of microseconds: launched one by one they take longer
than what they compute. A graph replays them all with one call; what a step reads must then lie
where it lay at the capture. So here are the tokens, the slot, and all keys and values, for as many
rows as were asked for; graphs are made for a few numbers of rows, and fewer are filled up.

Shape letters: R rows (sequences, and their twins under guidance), H heads, D head width, S slots,
V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from common.device import runs_kernels
from common.models.backbone import Backbone
from common.models.key_value_cache import KeyValueCache

LEAST_STEPS = 16
"""Capturing costs as much as a few steps; shorter decoding goes without."""
LEAST_ROWS = 8
STEP_IN_ROWS = 8
"""Graphs are for multiples of an eighth of the next power of two, and of LEAST_ROWS: beyond 32
rows less than a fifth of them is idle."""


def padded_rows(rows: int) -> int:
    """The number of rows of the graph that serves so many."""
    piece = max(LEAST_ROWS, (1 << (rows - 1).bit_length()) // STEP_IN_ROWS)
    return -(-rows // piece) * piece


@dataclass(slots=True)
class StaticCaches:
    """The caches of a state whose keys and values are in captured memory: its first rows."""

    steps: "CapturedSteps"
    rows: int
    filled: int

    def admit(self, caches: Sequence[KeyValueCache]) -> None:
        """The sequences of these caches as well, after those that are there."""
        self.rows += self.steps.take(caches, self.rows)


class CapturedSteps:
    """Memory of fixed addresses and the graphs that read it, for one decoding at a time."""

    def __init__(self, model: Backbone, rows: int) -> None:
        self.rows = padded_rows(rows)
        self.owner: StaticCaches | None = None
        self._slots = model.spec.length
        self._addresses = _addresses(model)
        self._caches: list[tuple[Tensor, Tensor]] = []
        device = next(model.parameters()).device
        self._token_R = torch.zeros(self.rows, dtype=torch.long, device=device)
        self._slot_1 = torch.zeros(1, dtype=torch.long, device=device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._memory = torch.cuda.graph_pool_handle()

    def serves(self, model: Backbone, rows: int) -> bool:
        """Whether the weights lie where they lay, and so many rows find room."""
        return rows <= self.rows and self._addresses == _addresses(model)

    def adopt(self, caches: Sequence[KeyValueCache]) -> StaticCaches:
        """These caches in captured memory."""
        if self.owner is not None:
            raise ValueError("captured steps serve one decoding at a time")
        if not self._caches:
            key = _filled(caches[0].key_BHSD)
            # Whole sequences have room, whatever room was made for what is read at first.
            shape = self.rows, key.shape[1], self._slots, key.shape[3]
            self._caches = [(key.new_zeros(shape), key.new_zeros(shape)) for _ in caches]
        self.owner = StaticCaches(self, self.take(caches, 0), caches[0].filled)
        return self.owner

    def take(self, caches: Sequence[KeyValueCache], first: int) -> int:
        """Copy what is cached to the rows from `first` on; how many rows it is."""
        rows, filled = 0, caches[0].filled
        for cache, (key, value) in zip(caches, self._caches, strict=True):
            rows = len(_filled(cache.key_BHSD))
            key[first : first + rows, :, :filled] = _filled(cache.key_BHSD)[:, :, :filled]
            value[first : first + rows, :, :filled] = _filled(cache.value_BHSD)[:, :, :filled]
        return rows

    def __call__(self, model: Backbone, token_R: Tensor, slot: int) -> Tensor:
        """logit_RV of the step that feeds these tokens at this slot; the next call overwrites
        them."""
        rows = padded_rows(len(token_R))
        self._token_R[: len(token_R)] = token_R
        self._slot_1.fill_(slot)
        graph, logit_RV = self._graphs.get(rows) or self._capture(model, rows)
        graph.replay()
        return logit_RV[: len(token_R)]

    def _capture(self, model: Backbone, rows: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Replaying writes the same keys and values again as the trial before the capture."""
        here = torch.cuda.current_stream()
        aside = torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            self._run(
                model, rows
            )  # compiles kernels, and lets the libraries allocate what they keep
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            logit_RV = self._run(model, rows)
        self._graphs[rows] = graph, logit_RV
        return self._graphs[rows]

    def _run(self, model: Backbone, rows: int) -> Tensor:
        caches = [(key[:rows], value[:rows]) for key, value in self._caches]
        return model.step_token(self._token_R[:rows], self._slot_1, caches)


_STEPS: "WeakKeyDictionary[Backbone, CapturedSteps]" = WeakKeyDictionary()


@contextmanager
def captured(model: Backbone, steps: int, rows: int) -> Iterator[None]:
    """Within it the model decodes single tokens of up to so many rows by captured steps, where it
    can (`Backbone.step_token`) and so many steps pay for the capture.

    In half precision alone: the step's kernels add in another order than the layers do, so in
    float32, which is there for equal tokens, the layers decode. Weights may be changed in place.
    """
    if steps < LEAST_STEPS or model.captured is not None or not can_capture(model):
        yield
        return
    found = _STEPS.pop(model, None)
    if found is None or not found.serves(model, rows):
        del found  # before the next is made, so that two are never held
        found = CapturedSteps(model, rows)
    _STEPS[model] = model.captured = found
    try:
        yield
    finally:
        found.owner = model.captured = None


def can_capture(model: Backbone) -> bool:
    """Whether steps of this model can be captured on its device, in its type."""
    return model.has_token_step and fuses(model, next(model.parameters()))


def fuses(model: nn.Module, x: Tensor) -> bool:
    """Whether the kernels of this room may compute x, in half precision and without gradients."""
    half = x.dtype in (torch.bfloat16, torch.float16)
    at_rest = not model.training and not torch.is_grad_enabled()
    return half and at_rest and runs_kernels(x)


def _filled(cached: Tensor | None) -> Tensor:
    if cached is None:
        raise ValueError("nothing was cached yet")
    return cached


def _addresses(model: Backbone) -> tuple[int, ...]:
    return tuple(parameter.data_ptr() for parameter in model.parameters())
