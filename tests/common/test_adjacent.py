"""Tensors that were laid one behind the other, as `lay_together` promises."""

import pytest
import torch

from common.exchange.adjacent import lay_together


def memories(tensors) -> int:
    return len({tensor.untyped_storage().data_ptr() for tensor in tensors})


def drawn(*sizes, dtype=torch.float32):
    return [torch.randn(size).to(dtype) for size in sizes]


def test_they_lie_one_behind_the_other_with_their_values():
    tensors = [torch.nn.Parameter(value) for value in (torch.randn(16, 4), torch.randn(32))]
    before = [tensor.detach().clone() for tensor in tensors]
    lay_together(tensors)
    assert tensors[1].data_ptr() == tensors[0].data_ptr() + tensors[0].nbytes
    assert memories(tensors) == 1
    for tensor, value in zip(tensors, before, strict=True):
        assert torch.equal(tensor, value)
        assert tensor.shape == value.shape
        assert tensor.requires_grad
    with torch.no_grad():
        tensors[0].fill_(3)
    assert torch.equal(tensors[1], before[1]), "they do not overlap"


def test_a_tensor_that_is_there_twice_is_laid_once():
    shared, other = drawn(16, 16)
    lay_together([shared, other, shared])
    assert memories([shared, other]) == 1
    assert shared.untyped_storage().nbytes() == 2 * 64


@pytest.mark.parametrize(
    ("tensors", "count"),
    [
        (drawn(16, 15, 16), 2),
        (drawn(16, 0, 16), 2),
        (drawn(16, 16) + drawn(16, 16, dtype=torch.float64), 2),
        ([torch.randn(32)[:16], *drawn(16, 16)], 2),
        ([torch.randn(4, 8).t(), *drawn(16, 16)], 2),
    ],
    ids=["not of whole lines", "empty", "two types", "a view", "not contiguous"],
)
def test_what_cannot_lie_there_stays(tensors, count):
    before = [tensor.clone() for tensor in tensors]
    places = [tensor.data_ptr() for tensor in tensors]
    lay_together(tensors)
    assert memories(tensors) == count
    moved = [t.data_ptr() != at for t, at in zip(tensors, places, strict=True)]
    assert sum(moved) >= 2
    for tensor, value in zip(tensors, before, strict=True):
        assert torch.equal(tensor, value)
        assert tensor.data_ptr() % 64 == 0


def test_no_memory_is_larger_than_asked_but_for_a_tensor_that_is():
    tensors = drawn(16, 16, 16, 64, 16)
    lay_together(tensors, most=128)
    groups = [tensor.untyped_storage().nbytes() for tensor in tensors]
    assert groups == [128, 128, 64, 256, 64]


def test_blank_tensors_stay_blank():
    blank = torch.empty(16, device="meta")
    lay_together([blank, torch.ones(16)])
    assert blank.is_meta
