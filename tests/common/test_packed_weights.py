"""What the learner publishes: one safetensors file in memory, read without a copy."""

import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from common.exchange.packed_weights import Packing, pack, unpack


def network() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2, bias=False))
    model.register_buffer("codes", torch.arange(7))
    model.register_buffer("scale", torch.tensor(2.5, dtype=torch.float64))
    model.register_buffer("flags", torch.tensor([True, False, True]))
    model.register_buffer("nothing", torch.empty(0, 4))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_library_reads_what_was_packed(dtype):
    model = network()
    state, packed = model.state_dict(), pack(model, dtype)
    file = b"".join(map(bytes, packed))
    for found in (load(file), unpack(packed), unpack([file])):
        assert found.keys() == state.keys()
        for name, value in state.items():
            wanted = value.to(dtype) if "weight" in name or "bias" in name else value
            assert found[name].dtype == wanted.dtype
            assert torch.equal(found[name], wanted)


def test_what_the_library_wrote_is_read_without_a_copy_or_a_warning():
    written = memoryview(save({"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1)}))
    memory = np.frombuffer(written, np.uint8)
    first, last = memory.ctypes.data, memory.ctypes.data + len(memory)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = unpack([written.toreadonly()])
    assert first < found["a"].data_ptr() < last
    assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["b"].item() == 1


class Watched(bytearray):
    """Bytes of which one can ask whether they are still there."""


def test_bytes_live_as_long_as_a_tensor_that_looks_at_them():
    payload = Watched(b"".join(map(bytes, pack(network(), torch.float32))))
    is_there = weakref.ref(payload)
    found = unpack([payload])
    codes = found.pop("codes")
    del payload, found
    gc.collect()
    assert is_there() is not None
    assert codes.tolist() == list(range(7))
    del codes
    gc.collect()
    assert is_there() is None


def test_tensors_outside_of_the_bytes_are_refused():
    packed = pack(network(), torch.float32)
    with pytest.raises(ValueError, match=r"packed weights: \S+ lies outside their \d+ bytes"):
        unpack(packed[:-1])
    with pytest.raises(ValueError, match=r"packed weights: \S+ lies outside their \d+ bytes"):
        unpack([*packed[:-1], packed[-1][:-1]])


def test_nothing_is_copied_that_travels_as_it_is_and_the_rest_into_the_same_memory_again():
    model = network()
    kept, names = model.state_dict(), [name for name, _ in model.named_parameters()]
    whole, half = Packing(kept, {}), Packing(kept, dict.fromkeys(names, torch.bfloat16))
    memory = {value.data_ptr() for value in model.state_dict().values() if value.numel()}
    assert {part.ctypes.data for part in whole.parts()[1:]} == memory
    first = {part.ctypes.data for part in half.parts()[1:]}
    with torch.no_grad():
        model[0].weight += 1
    assert {part.ctypes.data for part in half.parts()[1:]} == first
    assert torch.equal(unpack(half.parts())["0.weight"], model[0].weight.bfloat16())
    assert torch.equal(unpack(whole.parts())["0.weight"], model[0].weight)
