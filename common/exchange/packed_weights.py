"""A module's state as the parts of one safetensors file, of which none is copied before it is sent.

The safetensors library copies every tensor three times on the way (to bytes, into the file, out of
it), which for a student of a gigabyte is more than the transfer. The layout is its own: eight bytes
with the header's length, the header in JSON, the tensors one after the other.
"""

import json
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate, groupby
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from common.exchange.views import memory_of
from common.exchange.weights import ALIGNED, Canary, Payload, Weights

STORED = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in STORED.items()}
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RuntimeError)
"""What reading a header raises whose bytes are any: it is JSON of another kind, or shapes lie."""


class Packing:
    """Packs one module's state again and again; takes memory for what it converts only once, and
    gives what does not change as the same parts again."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        dtypes: Mapping[str, torch.dtype],
        lasting: Collection[str] = (),
    ) -> None:
        """`state` is the module's, whose tensors stay where they are; those that `dtypes` names
        travel in its types, the others as they are. Those of `lasting` are looked at whether they
        changed: those of one that begins and ends where any type may lie."""
        self._state = state
        self._kinds = {name: dtypes.get(name, value.dtype) for name, value in state.items()}
        self._sizes = {
            name: value.numel() * self._kinds[name].itemsize for name, value in state.items()
        }
        self._lasting = {n for n in lasting if self._sizes[n] and self._sizes[n] % ALIGNED == 0}
        self._converted: dict[torch.dtype, Tensor] = {}
        self._first: tuple[object, Payload] = [], ()

    def parts(self) -> Payload:
        """The header, what lasts, then a part for every other tensor that is not empty, its own
        memory, where its type and device allow it; those of a type that have to be converted are
        one part together. Whoever keeps them copies all behind the first `lasting_parts` before the
        module changes."""
        names = self._order()
        places = [name for name in names if name in self._lasting]
        seen = [(self._state[name].data_ptr(), self._state[name]._version) for name in places]
        if seen != self._first[0] or not self._first[1]:
            self._first = seen, [self._header(names), *(self._copy(name) for name in places)]
        parts = [*self._first[1]]
        changing = (name for name in names if name not in self._lasting)
        for kind, alike in groupby(changing, self._kinds.__getitem__):
            tensors = [self._state[name].detach() for name in alike if self._sizes[name]]
            parts += _joined([value for value in tensors if _stays(value, kind)])
            moved = [value for value in tensors if not _stays(value, kind)]
            parts += [self._together(kind, moved)] if moved else []
        return parts

    def weights(self, version: int, canary: Canary | None = None) -> Weights:
        """The parts as a version."""
        lasting, is_apart = self.lasting_parts, self._is_apart
        return Weights(version, self.parts(), canary=canary, lasting=lasting, is_apart=is_apart)

    @property
    def lasting_parts(self) -> int:
        """So many of the first parts are memory of their own, and the same objects as in the call
        before unless they changed."""
        return 1 + len(self._lasting)

    @property
    def _is_apart(self) -> bool:
        """Of a module on a GPU. What was converted on a CPU is, too, but there the next step would
        share its cores with the sending, which was tried without gain."""
        changing = (value for name, value in self._state.items() if name not in self._lasting)
        return all(value.is_cuda for value in changing if value.numel())

    def _order(self) -> list[str]:
        """Of the file: wide ones first, so that every offset is a multiple of its tensor's item."""
        kinds, state = self._kinds, self._state

        def place(name: str) -> tuple[bool, int, str, bool, bool]:
            kind = kinds[name]
            stays, is_odd = _stays(state[name], kind), self._sizes[name] % ALIGNED != 0
            return name not in self._lasting, -kind.itemsize, NAMES[kind], not stays, is_odd

        return sorted(state, key=place)

    def _header(self, names: Sequence[str]) -> np.ndarray:
        header, end = {}, 0
        for name in names:
            header[name] = {
                "dtype": NAMES[self._kinds[name]],
                "shape": list(self._state[name].shape),
                "data_offsets": [end, end + self._sizes[name]],
            }
            end += self._sizes[name]
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % ALIGNED)
        return np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)

    def _copy(self, name: str) -> np.ndarray:
        value = self._state[name].detach()
        return _bytes(torch.empty(value.shape, dtype=self._kinds[name]).copy_(value))

    def _together(self, kind: torch.dtype, tensors: Sequence[Tensor]) -> np.ndarray:
        sizes = [tensor.numel() for tensor in tensors]
        on_gpu = tensors[0].is_cuda
        if kind not in self._converted:  # a GPU writes to pinned memory, one behind the other
            self._converted[kind] = torch.empty(sum(sizes), dtype=kind, pin_memory=on_gpu)
        for place, tensor in zip(self._converted[kind].split(sizes), tensors, strict=True):
            place.view(tensor.shape).copy_(tensor, non_blocking=on_gpu)
        if on_gpu:
            torch.cuda.current_stream(tensors[0].device).synchronize()
        return _bytes(self._converted[kind])


def _joined(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """The tensors' memory, as one part where one begins where the last one ends."""
    runs: list[list[Tensor]] = []
    for tensor in tensors:
        if runs and _end(runs[-1][-1]) == (_memory(tensor), tensor.data_ptr()):
            runs[-1].append(tensor)
        else:
            runs.append([tensor])
    return [_bytes(run[0].as_strided((sum(t.numel() for t in run),), (1,))) for run in runs]


def _end(tensor: Tensor) -> tuple[int, int]:
    return _memory(tensor), tensor.data_ptr() + tensor.nbytes


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _stays(tensor: Tensor, kind: torch.dtype) -> bool:
    """Whether its memory is what is sent."""
    return tensor.dtype == kind and tensor.device.type == "cpu" and tensor.is_contiguous()


def pack(module: nn.Module, dtype: torch.dtype) -> Payload:
    """A module's state, once: what travels to rollout workers; `Packing.parts`. Parameters travel
    in `dtype`; buffers as they are (a quantiser must stay exact)."""
    dtypes = {name: dtype for name, _ in module.named_parameters()}
    return Packing(module.state_dict(), dtypes).parts()


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.reshape(-1).view(torch.uint8).numpy()


def unpack(payload: Payload) -> dict[str, Tensor]:
    """The tensors by name: views of the payload, which may be shared memory. Nobody writes to them.

    No tensor lies in two parts of it; all of them may be in one.

    Raises:
        ValueError: these are not the parts of such a file.
    """
    parts = [np.frombuffer(part, np.uint8) for part in payload]
    body = 8 + int.from_bytes(parts[0][:8].tobytes(), "little")
    header = json.loads(parts[0][8:body].tobytes())
    header.pop("__metadata__", None)
    ends = [*accumulate(len(part) for part in parts)]
    whole = [torch.frombuffer(memory_of(part), dtype=torch.uint8) for part in parts]
    found = {}
    for name, facts in header.items():
        dtype, (first, last) = STORED[facts["dtype"]], facts["data_offsets"]
        at = bisect_right(ends, body + first)
        begin = ends[at] - len(parts[at]) if at < len(parts) else body + first
        fits = last - first == prod(facts["shape"]) * dtype.itemsize
        if not fits or (last > first and (at == len(parts) or body + last > ends[at])):
            raise ValueError(f"packed weights: {name} lies outside their {ends[-1] - body} bytes")
        flat = torch.empty(0, dtype=dtype)
        if last > first:
            flat = whole[at][body + first - begin : body + last - begin].view(dtype)
        found[name] = flat.view(facts["shape"])
    return found


def load(weights: Weights, module: nn.Module) -> None:
    """Make a version's tensors the module's, once its bytes were checked.

    On a CPU they are not copied: they lie in the version's memory, which all workers of a node
    share, for as long as the module has them. Parameters are new objects then, and nobody writes to
    them. Tensors elsewhere, whose addresses may have been captured, are written to.

    Raises:
        ValueError: it was damaged on the way, or is of another network; the module is as it was.
    """
    state, taken = module.state_dict(), dict[str, Tensor]()
    found = _tensors_of(weights, state)
    weights.verified()
    for name, tensor in found.items():
        if state[name].device.type == "cpu":
            taken[name] = _as_it_lies(tensor, state[name].dtype)
        else:
            state[name].copy_(tensor)
    module.load_state_dict(taken, strict=False, assign=True)


def _as_it_lies(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Or a copy, where products would round by where it lies: so every version gives the same."""
    aligned = tensor.data_ptr() % ALIGNED == 0
    return tensor if aligned and tensor.dtype == dtype else tensor.to(dtype, copy=True)


def _tensors_of(weights: Weights, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a version, which are this module's; where they are not, damage is named first."""
    try:
        found = unpack(weights.payload)
        shapes = {name: tensor.shape for name, tensor in found.items()}
        if shapes != {name: value.shape for name, value in state.items()}:
            raise ValueError(f"weights of version {weights.version} are of another network")
    except MALFORMED:
        weights.verified()
        raise
    return found
