"""The steps of a LlamaGen's decoding on a CPU as one call of C each (token_step.c).

A step of a small model is hundreds of calls of torch that take longer than what they compute, and
one of a large model reads its weights from memory, which C does nearly as fast as memory allows.
Weights are packed anew for every change of them. A row's numbers do not depend on who shares the
batch. In float32 they differ from the layers' by rounding, as other libraries' products do.

Shape letters: R rows, C width, E channels out, H heads, D head width, S slots, W floats of a
register, V vocabulary.
"""

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from weakref import ref

import torch
from torch import Tensor, nn

from common.large_pages import LARGE_PAGE, enlarge
from common.models.backbone import Backbone, DecodeState
from common.models.cpu.structures import LayerPointers, ModelPointers, ScratchPointers, declare
from common.models.key_value_cache import KeyValueCache
from common.models.static_caches import StaticCaches, TokenSteps, cached
from common.models.token_layers import TokenLayers
from common.native.library import Native, native

SOURCE = Path(__file__).with_name("token_step.c")


@cache
def library() -> Native:
    """The compiled steps, or why there are none."""
    found = native(SOURCE)
    return found if found.library is None else Native(declare(found.library))


def can_run(model: Backbone) -> bool:
    """Whether such steps can decode with this model where it is, without gradients."""
    if model.training or torch.is_grad_enabled():
        return False
    # Tensors of inference mode do not count their updates.
    here = all(weight.is_cpu and not weight.is_inference() for weight in model.parameters())
    return here and has_steps(model)


def has_steps(model: Backbone) -> bool:
    """Whether there are such steps for this kind of model and of numbers on this machine."""
    dtypes = {weight.dtype for weight in model.parameters()}
    if dtypes not in ({torch.float32}, {torch.bfloat16}):
        return False
    layers, compiled = model.token_layers(), library().library
    if layers is None or compiled is None:
        return False
    even = layers.blocks[0].feed_forward.w2.in_features % 2 == 0  # bfloat16 goes in pairs
    return torch.float32 in dtypes or (even and bool(compiled.multiplies_bf16()))


class NativeSteps(TokenSteps):
    """The packed weights of one model, and room for its caches while they are lent."""

    def __init__(self, model: Backbone, rows: int) -> None:
        compiled, layers = library().library, model.token_layers()
        if compiled is None or layers is None:
            raise ValueError("there are no such steps for this model (`can_run`)")
        self.rows = rows
        self._library = compiled
        self._width = compiled.register_floats()
        self._slots = _whole(model.spec.length, self._width)
        self._caches: list[tuple[Tensor, Tensor]] = []
        self._device = layers.head.weight.device  # meta, where a plan counts bytes
        with self._device:
            self._scratch = _scratch(layers, rows)
            self._logit_RV = torch.empty(rows, model.spec.vocab_size, dtype=torch.float32)
        self._packed: dict[str, Tensor] = {}
        self._pack(model)

    def serves(self, model: Backbone, rows: int) -> bool:
        """Whether so many rows find room; weights that were changed (by anything but `.data`, which
        torch does not count) are packed."""
        layers = model.token_layers()
        if layers is None or rows > self.rows or _kinds(model) != self._of:
            return False
        self._model.eps = layers.norm.eps
        current = zip(model.parameters(), self._states, strict=True)
        if not all(state.is_of(weight) for weight, state in current):
            self._pack(model)
        return True

    def _pack(self, model: Backbone) -> None:
        layers = model.token_layers()
        assert layers is not None
        self._of = _kinds(model)
        self._states = [_State.of(weight) for weight in model.parameters()]
        self._turn_SP2 = layers.turn_SP2
        head, first = layers.head.weight, layers.blocks[0]
        self._is_bf16 = head.dtype == torch.bfloat16
        tables = layers.conditions, layers.tokens
        self._conditions, self._tokens = ((t.weight.data_ptr(), len(t.weight)) for t in tables)
        self._layers = (LayerPointers * len(layers.blocks))()
        for depth, (block, to) in enumerate(zip(layers.blocks, self._layers, strict=True)):
            attention, inner = block.attention, block.feed_forward
            to.attention_norm = self._plain(f"{depth}.an", block.attention_norm.weight)
            to.ffn_norm = self._plain(f"{depth}.fn", block.ffn_norm.weight)
            to.wqkv = self._pack_one(f"{depth}.wqkv", [attention.wqkv])
            to.wo = self._pack_one(f"{depth}.wo", [attention.wo])
            to.w13 = self._pack_one(f"{depth}.w13", [inner.w1, inner.w3])
            to.w2 = self._pack_one(f"{depth}.w2", [inner.w2])
        self._model = ModelPointers(
            width=head.shape[1],
            heads=first.attention.heads,
            inner=first.feed_forward.w2.weight.shape[1],
            vocab=head.shape[0],
            depth=len(layers.blocks),
            capacity=self._slots,
            is_bf16=self._is_bf16,
            eps=layers.norm.eps,
            turn=self._turn_SP2.data_ptr(),
            norm=self._plain("norm", layers.norm.weight),
            head=self._pack_one("head", [layers.head]),
            layers=self._layers,
        )

    def _plain(self, name: str, weight: Tensor) -> int:
        """The address of a copy in float32."""
        self._packed[name] = plain = weight.detach().to(torch.float32, copy=True)
        return plain.data_ptr()

    def _pack_one(self, name: str, of: Iterable[nn.Linear]) -> int:
        """The address of a weight in the order of products.h, or of several, one after another."""
        parts = [layer.weight.detach().contiguous() for layer in of]
        weight_EC = parts[0] if len(parts) == 1 else torch.cat(parts)
        outputs, inputs = weight_EC.shape
        size = _whole(outputs, self._width) * inputs
        found = self._packed.get(name)
        made = found is None
        if found is None:
            found = self._packed[name] = weight_EC.new_empty(size)
        if not found.is_meta:
            self._library.pack(
                weight_EC.data_ptr(), outputs, inputs, found.data_ptr(), int(self._is_bf16)
            )
            if made and found.nbytes >= LARGE_PAGE:
                enlarge(found.data_ptr(), found.nbytes)
        return found.data_ptr()

    def predict(self, model: Backbone, state: DecodeState) -> Tensor | None:
        """The condition's slot, too, where no prefix is to be read with it."""
        if not isinstance(state.cache, StaticCaches) and state.slots.start == 0:
            self._begin(state.cache)
            state.cache = self.owner = StaticCaches(self, len(state.class_B), 1)
            return self._fed(model, self._conditions, state.class_B, 0)[:, None]
        return super().predict(model, state)

    def _make_room(self, caches: Sequence[KeyValueCache]) -> None:
        heads, blocks = self._model.heads, self._slots // self._width
        width = self._model.width // heads
        dtype = torch.bfloat16 if self._is_bf16 else torch.float32
        for to in self._layers:
            with self._device:
                key = torch.empty(self.rows, heads, blocks, width, self._width, dtype=dtype)
                shape = self.rows, heads, self._slots, _whole(width, self._width)
                value = torch.zeros(shape, dtype=dtype)
            self._caches.append((key, value))
            to.key, to.value = key.data_ptr(), value.data_ptr()

    def release(self) -> None:
        super().release()
        self._caches.clear()
        for to in self._layers:
            to.key = to.value = None

    def take(self, caches: Sequence[KeyValueCache], first: int) -> int:
        rows, filled = 0, caches[0].filled
        blocks = -(-filled // self._width)
        for held, (to_key, to_value) in zip(caches, self._caches, strict=True):
            key, value = (cached(of)[:, :, :filled] for of in (held.key_BHSD, held.value_BHSD))
            rows, heads, _, width = key.shape
            whole = key.new_zeros(rows, heads, blocks * self._width, width)
            whole[:, :, :filled] = key
            part = slice(first, first + rows)
            to_key[part, :, :blocks] = whole.unflatten(2, (blocks, self._width)).mT
            to_value[part, :, :filled, :width] = value
        return rows

    def __call__(self, model: Backbone, token_R: Tensor, slot: int) -> Tensor:
        return self._fed(model, self._tokens, token_R, slot)

    def _fed(self, model: Backbone, table: tuple[int, int], id_R: Tensor, slot: int) -> Tensor:
        """These rows of the table at that address go in, which has so many."""
        id_R, rows = id_R.to(torch.long).contiguous(), len(id_R)
        if rows > self.rows or slot >= self._slots:
            raise ValueError(f"{rows} rows at slot {slot}: room is for {self.rows}, {self._slots}")
        logit_RV = self._logit_RV[:rows]
        if logit_RV.is_meta:
            model.head(logit_RV.new_empty(1, model.head.in_features))  # by which steps are counted
            return logit_RV
        done = self._library.token_step(
            *(ctypes.byref(self._model), *table, id_R.data_ptr(), rows, slot),
            *(ctypes.byref(self._scratch.pointers), logit_RV.data_ptr(), torch.get_num_threads()),
        )
        if not done:
            raise IndexError(f"index out of range: a table of {table[1]} rows has no such row")
        return logit_RV


class _Scratch:
    """What a step writes between its products."""

    def __init__(self, rows: int, width: int, inner: int) -> None:
        widest = max(width, inner)
        self._x = torch.empty(rows, width, dtype=torch.float32)
        self._h = torch.empty(rows, widest, dtype=torch.float32)
        self._fused = torch.empty(rows, max(3 * width, 2 * inner), dtype=torch.float32)
        self._rounded = torch.empty(rows, widest, dtype=torch.bfloat16)
        parts = self._x, self._h, self._fused, self._rounded
        self.pointers = ScratchPointers(*(part.data_ptr() for part in parts))


def _scratch(layers: TokenLayers, rows: int) -> _Scratch:
    width, inner = layers.blocks[0].feed_forward.w2.weight.shape
    return _Scratch(rows, width, inner)


def _whole(count: int, piece: int) -> int:
    """The next multiple."""
    return -(-count // piece) * piece


def _kinds(model: Backbone) -> list[tuple[torch.Size, torch.dtype]]:
    """What room is made for."""
    return [(weight.shape, weight.dtype) for weight in model.parameters()]


@dataclass(frozen=True, slots=True)
class _State:
    """Which parameter, where it lies and how often it was updated; it is not kept alive."""

    weight: "ref[Tensor]"
    address: int
    version: int

    @classmethod
    def of(cls, weight: Tensor) -> "_State":
        return cls(ref(weight), weight.data_ptr(), weight._version)

    def is_of(self, weight: Tensor) -> bool:
        same = self.weight() is weight and self.address == weight.data_ptr()
        return same and self.version == weight._version
