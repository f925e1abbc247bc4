"""The steps of one model's decoding, captured once and replayed.

A step of a small model is hundreds of kernels of microseconds: launched one by one they take longer
than what they compute. A graph replays them all with one call; what a step reads must then lie
where it lay at the capture. So here are the tokens, the slot, and all keys and values, for as many
rows as were asked for; graphs are made for a few numbers of rows, and fewer are filled up.

Shape letters: R rows (sequences, and their twins under guidance), H heads, D head width, S slots,
V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.device import runs_kernels
from common.models.backbone import Backbone
from common.models.key_value_cache import KeyValueCache
from common.models.static_caches import TokenSteps, cached

LEAST_ROWS = 8
STEP_IN_ROWS = 8
"""Graphs are for multiples of an eighth of the next power of two, and of LEAST_ROWS: beyond 32
rows less than a fifth of them is idle."""


def padded_rows(rows: int) -> int:
    """The number of rows of the graph that serves so many."""
    piece = max(LEAST_ROWS, (1 << (rows - 1).bit_length()) // STEP_IN_ROWS)
    return -(-rows // piece) * piece


class CapturedSteps(TokenSteps):
    """Memory of fixed addresses and the graphs that read it, for one decoding at a time."""

    def __init__(self, model: Backbone, rows: int) -> None:
        self.rows = padded_rows(rows)
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

    def _make_room(self, caches: Sequence[KeyValueCache]) -> None:
        if not self._caches:
            key = cached(caches[0].key_BHSD)
            # Whole sequences have room, whatever room was made for what is read at first.
            shape = self.rows, key.shape[1], self._slots, key.shape[3]
            self._caches = [(key.new_zeros(shape), key.new_zeros(shape)) for _ in caches]

    def take(self, caches: Sequence[KeyValueCache], first: int) -> int:
        rows, filled = 0, caches[0].filled
        for cache, (key, value) in zip(caches, self._caches, strict=True):
            rows = len(cached(cache.key_BHSD))
            key[first : first + rows, :, :filled] = cached(cache.key_BHSD)[:, :, :filled]
            value[first : first + rows, :, :filled] = cached(cache.value_BHSD)[:, :, :filled]
        return rows

    def __call__(self, model: Backbone, token_R: Tensor, slot: int) -> Tensor:
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


def can_capture(model: Backbone) -> bool:
    """Whether steps of this model can be captured on its device, in its type.

    In half precision alone: the step's kernels add in another order than the layers do, so in
    float32, which is there for equal tokens, the layers decode.
    """
    return model.has_token_step and fuses(model, next(model.parameters()))


def fuses(model: nn.Module, x: Tensor) -> bool:
    """Whether the kernels of this room may compute x, in half precision and without gradients."""
    half = x.dtype in (torch.bfloat16, torch.float16)
    at_rest = not model.training and not torch.is_grad_enabled()
    return half and at_rest and runs_kernels(x)


def _addresses(model: Backbone) -> tuple[int, ...]:
    return tuple(parameter.data_ptr() for parameter in model.parameters())
