"""What the learner publishes: one safetensors file in memory, read without a copy."""

import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_file
from safetensors.torch import save
from torch import nn

from common.exchange.packed_weights import Packing, load, pack, unpack
from common.exchange.weights import PIECE, Weights


def network() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2, bias=False))
    model.register_buffer("codes", torch.arange(7))
    model.register_buffer("scale", torch.tensor(2.5, dtype=torch.float64))
    model.register_buffer("flags", torch.tensor([True, False, True]))
    model.register_buffer("nothing", torch.empty(0, 4))
    return model


def same_state(model: nn.Module, other: nn.Module) -> bool:
    found, wanted = model.state_dict(), other.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in wanted)


def larger(seed: int) -> nn.Module:
    """Tensors that begin and end within pieces, and one that lies in several."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(300, 1200), nn.Linear(1200, 7), nn.LayerNorm(7))
    model.register_buffer("codes", torch.randint(99, (70_001,)))
    model.register_buffer("flags", torch.rand(77) < 0.5)
    model.register_buffer("columns", torch.randn(30, 40).T)
    assert model[0].weight.nbytes > PIECE
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_library_reads_what_was_packed(dtype):
    model = network()
    state, packed = model.state_dict(), pack(model, dtype)
    file = b"".join(map(bytes, packed))
    for found in (load_file(file), unpack(packed), unpack([file])):
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_packed_is_loaded_whole_from_parts_from_a_file_and_from_the_librarys(dtype):
    model = larger(0)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    packed = pack(model, dtype)
    by_library = save({name: value.contiguous() for name, value in model.state_dict().items()})
    odd = [by_library[:8], by_library[8:]]  # its header is no multiple of 64 bytes
    for payload in (packed, [b"".join(map(bytes, packed))], [b"".join(odd)]):
        student = larger(1)
        before = student[0].weight
        load(Weights.of(3, payload), student)
        assert same_state(student, model)
        assert student[0].weight is not before, "whoever packed it anew would not notice"


def test_what_is_loaded_is_what_was_published():
    model = larger(0)
    file = bytearray(b"".join(map(bytes, pack(model, torch.float32))))
    weights = Weights.of(3, [bytes(file)])
    for at in (0, 100, len(file) // 3, len(file) - 1):
        file[at] ^= 1
        damaged = Weights(3, [bytes(file)], weights.digest)
        with pytest.raises(ValueError, match="weights of version 3 arrived damaged: digest"):
            load(damaged, larger(1))
        file[at] ^= 1
    with pytest.raises(ValueError, match="weights of version 3 are of another network"):
        load(weights, network())


def test_what_has_to_be_converted_is_one_part_of_every_type():
    names = [name for name, _ in network().named_parameters()]
    assert len(Packing(network().state_dict(), dict.fromkeys(names, torch.bfloat16)).parts()) == 5
    assert len(Packing(network().double().state_dict(), {}).parts()) == 1 + 3 + 3


def test_tensors_with_something_between_them_do_not():
    memory = torch.arange(12.0)
    state = {"a": memory[:4], "b": memory[5:9], "c": memory[9:], "d": torch.ones(2)}
    head, *parts = Packing(state, {}).parts()
    assert [len(part) for part in parts] == [16, 28, 8]
    found = unpack([head, *parts])
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_what_lasts_is_the_same_parts_again_until_it_changes():
    model = network()
    model.register_buffer("table", torch.arange(32.0).view(4, 8))
    state, lasting = model.state_dict(), ("codes", "scale", "flags", "nothing", "table")
    packing = Packing(state, {"0.weight": torch.bfloat16}, lasting)
    assert packing.lasting_parts == 2, "the header, and the one that fills whole lines of memory"

    def parts():
        found = packing.parts()
        assert {n: v.double().tolist() for n, v in unpack(found).items()} == {
            n: v.double().tolist() for n, v in state.items()
        }
        return found[:2]

    with torch.no_grad():
        model[0].weight.fill_(0.5)
        first, second = parts(), parts()
        model[0].weight.fill_(2)
        third = parts()
        state["table"][0, 0] = 7
        fourth, fifth = parts(), parts()
    assert all(a is b is c for a, b, c in zip(first, second, third, strict=True))
    assert fourth[1] is not first[1]
    assert fourth[1] is fifth[1]
    assert first[1].view(np.float32)[0] == 0, "what was handed out stays as it was"


def test_a_copy_has_what_lasts_as_it_is():
    packing = Packing({"a": torch.ones(16), "b": torch.ones(16)}, {}, ("a",))
    weights = Weights(1, packing.parts(), lasting=packing.lasting_parts)
    copied = weights.copied()
    assert [a is b for a, b in zip(weights.payload, copied.payload, strict=True)] == [1, 1, 0]
    assert copied.digest == weights.sealed().digest
    assert copied.verified()
