"""Products by the faster library: the same values and gradients, where it is one."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from common.models import products
from common.models.products import LEAST, linear


class Asked(TorchDispatchMode):
    """How many products oneDNN was asked for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.mkldnn._linear_pointwise.default
        return func(*args, **(kwargs or {}))


def factors(*shape, width=64, out=192, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    sizes = (*shape, width), (out, width), (out,)
    return [torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in sizes]


def values(product, given):
    """The product, its gradients, and the gradients of those, in double precision."""
    found = product(*given)
    first = torch.autograd.grad(found.tanh().square().sum(), given, create_graph=True)
    second = torch.autograd.grad(sum(part.square().sum() for part in first), given)
    return [value.detach().double() for value in (found, *first, *second)]


@pytest.mark.parametrize("shape", [(128,), (2, 64), (3, 1, 50)])
def test_products_and_their_gradients_are_those_of_double_precision(shape):
    given = factors(*shape)
    wanted = values(F.linear, [value.detach().double().requires_grad_() for value in given])
    for mine, exact in zip(values(linear, given), wanted, strict=True):
        assert float((mine - exact).norm() / exact.norm()) < 1e-5


@pytest.mark.skipif(not products._is_amd_with_avx512(), reason="torch's own choice is the faster")
def test_all_three_products_of_a_step_go_the_faster_way():
    given = factors(LEAST // 64 // 192 + 1)
    with Asked() as asked:
        linear(*given).sum().backward()
    assert asked.count == 3
    with torch.no_grad(), Asked() as asked:
        found = linear(*given)
    assert asked.count == 1
    torch.testing.assert_close(found, F.linear(*given), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not products._is_amd_with_avx512(), reason="torch's own choice is the faster")
def test_in_bfloat16_a_bias_is_added_by_onednn_where_no_gradient_is_asked():
    given = factors(2 * LEAST // 64 // 192, dtype=torch.bfloat16)
    with torch.no_grad(), Asked() as asked:
        found = linear(*given)
    assert asked.count == 1
    exact = F.linear(*(value.detach().double() for value in given))
    assert float((found - exact).abs().max()) <= 2**-8 * float(exact.abs().max())
    with Asked() as asked:
        linear(*given)
    assert asked.count == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bias_with_gaps_or_of_one_number_is_read_as_it_is(dtype):
    (given, weight, _), gaps = factors(2 * LEAST // 64 // 192, dtype=dtype), torch.randn(384)[::2]
    for bias in (
        gaps.to(dtype=dtype),
        gaps.to(dtype).repeat(2)[::2],
        gaps[:1].to(dtype).expand(192),
    ):
        with torch.no_grad():
            found = linear(given, weight, bias)
        exact = F.linear(*(of.detach().double() for of in (given, weight, bias)))
        assert float((found - exact).abs().max()) <= 2**-8 * float(exact.abs().max())


@pytest.mark.parametrize("kind", ["small", "bfloat16", "float64", "autocast", "a vector"])
def test_all_else_is_torchs_own(kind):
    rows, dtype = 2 * LEAST // 64 // 192, getattr(torch, kind if "float" in kind else "float32")
    shape = {"small": (4,), "a vector": ()}.get(kind, (rows,))
    given = factors(*shape, dtype=dtype, width=2**15 if kind == "a vector" else 64)
    on = kind == "autocast"
    with torch.autocast("cpu", torch.bfloat16, enabled=on), torch.no_grad(), Asked() as asked:
        found = linear(*given[:2])
        assert torch.equal(found, F.linear(*given[:2]))
    assert asked.count == 0
