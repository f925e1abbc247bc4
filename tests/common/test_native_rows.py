"""Gates, dropout and norms in C, beside torch's operations in float64."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.models.adaln import BlockSizes, FeedForward
from common.models.cpu.native_rows import LEAST, computes, dropped, gated, gelu, normed
from common.models.layers import RMSNorm, SwiGLU

pytestmark = pytest.mark.skipif(not computes(torch.zeros(LEAST)), reason="needs a C compiler")
SHAPES = [(1, 3), (3, 7), (65, 20), (2, 33, 192), (129, 100)]


def drawn(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def exact(*values):
    return [value.detach().double().requires_grad_() for value in values]


def are_close(call, formula, given, error):
    """Values and all gradients for an upstream gradient of its own."""
    twice = exact(*given)
    found, wanted = call(*given), formula(*twice)
    (upstream,) = drawn(wanted.shape)
    upstream = upstream.detach().to(found.dtype)
    grads = torch.autograd.grad(found, given, upstream)
    wanted_grads = torch.autograd.grad(wanted, twice, upstream.double())
    pairs = zip((found, *grads), (wanted, *wanted_grads), strict=True)
    return all((a - b).abs().max() <= error * b.abs().max() for a, b in pairs)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_gate_and_its_gradients_are_the_formulas(shape):
    def formula(gate, value):
        return F.silu(gate) * value

    gate, value = drawn(shape, shape)
    assert are_close(gated, formula, (gate, value), 1e-6)
    assert are_close(lambda a, b: gated(a.mT, b.mT).mT, formula, (gate, value), 1e-6)
    halves = [each.detach().bfloat16().requires_grad_() for each in (gate, value)]
    assert are_close(gated, formula, halves, 2**-8)


def test_a_gate_far_from_zero_is_open_or_shut():
    gate = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4, torch.nan, torch.inf])
    found = gated(gate, torch.ones(7))
    wanted = torch.tensor([0, 0, 0, 100, 1e4, torch.nan, torch.inf])
    assert torch.allclose(found, wanted, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_gelu_and_its_gradient_are_the_formulas(shape):
    def formula(x):
        return F.gelu(x, approximate="tanh")

    (x,) = drawn(shape)
    wide = (4 * x.detach()).requires_grad_()
    assert are_close(gelu, formula, (x,), 1e-6)
    assert are_close(gelu, formula, (wide,), 1e-6)
    assert are_close(lambda x: gelu(x.mT).mT, formula, (x,), 1e-6)
    halves = [x.detach().bfloat16().requires_grad_()]
    assert are_close(gelu, formula, halves, 2**-8)


def test_a_gelu_far_from_zero_is_the_line_or_zero():
    x = torch.tensor([-1e30, -1e4, -20.0, 0.0, 20.0, 1e4, 1e30, torch.nan, torch.inf])
    x.requires_grad_()
    found = gelu(x)
    (grad,) = torch.autograd.grad(found.sum(), x)
    wanted = torch.tensor([0, 0, 0, 0, 20, 1e4, 1e30, torch.nan, torch.inf])
    assert torch.allclose(found, wanted, atol=1e-6, equal_nan=True)
    assert torch.allclose(grad[:7], torch.tensor([0, 0, 0, 0.5, 1, 1, 1]), atol=1e-6)
    assert grad[7].isnan()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_norm_and_its_gradients_are_the_formulas(shape):
    x, weight = drawn(shape, shape[-1:])

    def formula(x, weight):
        return F.rms_norm(x, weight.shape, weight, 1e-5)

    assert are_close(lambda x, w: normed(x, w, 1e-5), formula, (x, weight), 4e-6)
    turned = torch.stack([x.detach(), x.detach()], -1)[..., 0].requires_grad_()
    assert are_close(lambda x, w: normed(x, w, 1e-5), formula, (turned, weight), 4e-6)


def test_a_norm_keeps_what_is_no_number_in_its_row():
    x = torch.ones(3, 40)
    x[1, 5] = torch.nan
    assert normed(x, torch.ones(40), 0.0).isnan().all(-1).tolist() == [False, True, False]


def masked(count, rate, seed, dtype=torch.float32):
    torch.manual_seed(seed)
    return dropped(torch.ones(count, dtype=dtype), nn.Dropout(rate))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_has_its_law(rate):
    count = 200_003
    mask = masked(count, rate, 0)
    kept = mask != 0
    assert torch.equal(mask[kept], torch.full_like(mask[kept], 1 / (1 - rate)))
    spread = math.sqrt(count * rate * (1 - rate))
    assert abs(kept.sum().item() - count * (1 - rate)) < 5 * spread
    # Of neighbours, and of places that lie a register, a row or a thread's turn apart.
    for step in (1, 2, 16, 32, 192, 8192):
        both = (kept[step:] & kept[:-step]).sum().item()
        pairs, share = count - step, (1 - rate) ** 2
        # Pairs that share an element hang together: their variance is at most three times as large.
        assert abs(both - pairs * share) < 5 * math.sqrt(3 * pairs * share * (1 - share))


def test_dropout_next_to_1_drops_all():
    assert torch.equal(masked(LEAST, 1 - 1e-11, 0), torch.zeros(LEAST))


def test_dropout_goes_by_torchs_seed():
    same, again, other = (masked(2 * LEAST + 1, 0.3, seed) for seed in (1, 1, 2))
    assert torch.equal(same, again)
    assert ((same == 0) & (other == 0)).float().mean().item() == pytest.approx(0.09, abs=0.02)
    torch.manual_seed(1)
    module, ones = nn.Dropout(0.3), torch.ones(LEAST)
    assert not torch.equal(dropped(ones, module), dropped(ones, module))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_is_added_and_its_gradient_has_its_mask(dtype):
    mask = masked(LEAST + 3, 0.5, 4, dtype).double()
    x, onto = drawn(LEAST + 3, LEAST + 3)
    x = x.detach().to(dtype).requires_grad_()
    torch.manual_seed(4)
    found = dropped(x, nn.Dropout(0.5), onto)
    assert found.dtype == torch.float32
    assert (found - (onto + mask * x.double())).abs().max() < 1e-6
    (upstream,) = drawn(LEAST + 3)
    of_x, of_onto = torch.autograd.grad(found, (x, onto), upstream.detach())
    assert torch.equal(of_onto, upstream)
    assert torch.equal(of_x, (upstream.detach() * mask.float()).to(dtype))


def test_a_module_that_is_watched_or_drops_nothing_or_all_is_called():
    x, onto = torch.ones(LEAST), torch.ones(LEAST)
    module, seen = nn.Dropout(0.5), []
    module.register_forward_hook(lambda *given: seen.append(given))
    dropped(x, module, onto)
    assert seen
    assert torch.equal(dropped(x, nn.Dropout(0.0), onto), 2 * x)
    assert torch.equal(dropped(x, nn.Dropout(1.0), onto), onto)
    assert torch.equal(dropped(x, nn.Dropout(0.5).eval(), onto), 2 * x)


def test_threads_change_no_bit():
    x, weight = drawn((130, 192), (192,))
    threads, found = torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        torch.manual_seed(0)
        made = normed(dropped(gated(x, gelu(x)), nn.Dropout(0.2), x), weight, 1e-5)
        found.append([made, *torch.autograd.grad(made.sum(), (x, weight))])
    torch.set_num_threads(threads)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("kind", ["gate", "gelu", "norm", "dropout"])
def test_a_second_derivative_is_refused(kind):
    x, weight = drawn((64, 128), (128,))
    calls = {
        "gate": lambda: gated(x, x),
        "gelu": lambda: gelu(x),
        "norm": lambda: normed(x, weight, 1e-5),
        "dropout": lambda: dropped(x, nn.Dropout(0.5)),
    }
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(calls[kind]().sum(), x, create_graph=True)


def test_layers_go_by_it():
    layer, double, norm = SwiGLU(48, 8), SwiGLU(48, 8), RMSNorm(48)
    double.load_state_dict(layer.state_dict())
    double.double()  # which torch computes
    (x,) = drawn((LEAST // 48 + 1, 48))
    assert are_close(layer, double, (x,), 1e-5)
    assert torch.equal(norm(x), normed(x, norm.weight, norm.eps))
    sizes = BlockSizes(width=48, heads=2, inner=200, l2_norm=True, shared=False, dropout=0)
    part = FeedForward(sizes)
    inner = part.fc1(x)
    assert torch.equal(part(x), part.fc2(gelu(inner)))
