"""Products of few rows through weights that were packed for them."""

import copy
import gc
from functools import partial

import pytest
import torch
from building.layered import layered
from torch import nn
from torch.nn import functional as F

from common.models.backbone import build_seeded
from common.models.backbones import arpg, llamagen
from common.models.packed_linear import LEAST_STEPS, MOST_ROWS, Linear, packed, packed_bytes
from common.spec import SequenceSpec
from learner.optimizer import OptimizerConfig, build_adamw
from rollout.sampler import SamplingConfig, sample
from tests.rollout.test_decoding import Seen

pytestmark = pytest.mark.skipif(
    not packed_bytes(Linear(1024, 1024)), reason="this machine packs no weights"
)


class Packed(Seen):
    """How many products went through a packed weight."""

    def __init__(self):
        super().__init__()
        self.products = self.packings = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.mkldnn._linear_pointwise.default:
            self.products += args[1].is_mkldnn
        self.packings += func is torch.ops.mkldnn._reorder_linear_weight.default
        return func(*args, **(kwargs or {}))


def products(layer, x, steps=LEAST_STEPS, rows=2):
    """The result of a product without gradients, and how often packed weights and packing took
    part."""
    with torch.no_grad(), Packed() as seen, packed(layer, steps, rows):
        found = layer(x)
    return found, (seen.products, seen.packings)


@pytest.mark.parametrize("bias", [False, True])
def test_few_rows_are_multiplied_by_the_packed_weight_and_many_by_the_other(bias):
    layer = Linear(1024, 768, bias=bias)
    for shape in ((2, 1, 1024), (MOST_ROWS, 1, 1024), (3, 4, 1024)):
        x = torch.randn(shape)
        found, counts = products(layer, x)
        assert counts[0] == 1
        exact = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)
    assert products(layer, torch.randn(MOST_ROWS + 1, 1024))[1][0] == 0


def test_a_weight_is_packed_once_for_every_change_of_it():
    layer, x = Linear(1024, 1024), torch.randn(2, 1024)
    assert products(layer, x)[1] == (1, 1)
    assert products(layer, x)[1] == (1, 0)
    other = Linear(1024, 1024).state_dict()
    layer.load_state_dict(other)
    found, counts = products(layer, x)
    assert counts == (1, 1)
    torch.testing.assert_close(found, F.linear(x, other["weight"], other["bias"]))
    with torch.no_grad():
        layer.weight.mul_(2)
    assert products(layer, x)[1] == (1, 1)
    assert products(layer.double(), x.double())[1] == (0, 0)
    layer.float().load_state_dict(other, assign=True)
    assert products(layer, x)[1] == (1, 1)


def test_a_weight_that_a_fused_optimizer_changed_is_packed_anew():
    """Torch does not count such updates on a CPU."""
    layer, x = Linear(1024, 1024, bias=False), torch.randn(2, 1024)
    products(layer, x)
    optimizer = build_adamw(OptimizerConfig(), dict(layer.named_parameters()))
    layer.weight.grad = torch.randn_like(layer.weight)
    optimizer.step()
    found, counts = products(layer, x)
    assert counts == (1, 1)
    torch.testing.assert_close(found, F.linear(x, layer.weight), rtol=1e-4, atol=1e-4)


def test_another_tensor_with_as_many_updates_is_packed_anew():
    layer, x = Linear(1024, 1024, bias=False), torch.randn(2, 1024)

    def another(weight):
        layer.weight = nn.Parameter(weight)

    def other_data(weight):
        layer.weight.data = weight

    for swap in (another, other_data):
        layer.weight = nn.Parameter(torch.randn(1024, 1024))
        products(layer, x)
        version, weight = layer.weight._version, torch.randn(1024, 1024)
        swap(weight)
        assert layer.weight._version == version
        found, counts = products(layer, x)
        assert counts == (1, 1)
        torch.testing.assert_close(found, x @ weight.T, rtol=1e-4, atol=1e-4)


def test_many_rows_a_step_pack_the_weights_of_wide_layers_alone():
    narrow, wide = Linear(1024, 1024), Linear(128, 8192)
    rows = MOST_ROWS + 1
    for layer, packs in ((narrow, 0), (wide, 1)):
        x = torch.randn(rows, layer.in_features)
        assert products(layer, x, rows=rows)[1] == (packs, packs)


def test_few_steps_pack_nothing_but_use_what_is_packed():
    layer, x = Linear(1024, 1024), torch.randn(2, 1024)
    assert products(layer, x, LEAST_STEPS - 1)[1] == (0, 0)
    products(layer, x)
    assert products(layer, x, 1)[1] == (1, 0)
    with torch.no_grad():
        layer.weight.mul_(2)
    found, counts = products(layer, x, 1)
    assert counts == (0, 0)
    torch.testing.assert_close(found, F.linear(x, layer.weight, layer.bias))


def test_gradients_and_products_outside_decoding_read_the_weight_itself():
    layer, x = Linear(1024, 1024), torch.randn(2, 1024)
    with Packed() as seen, packed(layer, LEAST_STEPS, 2):
        layer(x).sum().backward()
    assert (seen.products, layer.weight.grad is not None) == (0, True)
    with torch.no_grad(), Packed() as seen:
        layer(x)
        copy.deepcopy(layer)(x)
    assert seen.products == 0


def test_small_weights_stay_as_they_are():
    model = nn.Sequential(Linear(512, 512), nn.Linear(1024, 1024))
    assert packed_bytes(model) == 0
    assert products(model[0], torch.randn(2, 512))[1] == (0, 0)


def test_what_decodes_in_few_steps_counts_no_packed_weights():
    layer = Linear(1024, 1024)
    assert packed_bytes(layer, LEAST_STEPS) == layer.weight.nbytes
    assert packed_bytes(layer, LEAST_STEPS - 1) == 0


def test_packed_weights_go_with_their_layer():
    from common.models import packed_linear

    layer = Linear(1024, 1024)
    products(layer, torch.randn(2, 1024))
    before = len(packed_linear._PACKS)
    del layer
    gc.collect()
    assert len(packed_linear._PACKS) == before - 1


@torch.no_grad()
@pytest.mark.parametrize("how", [{}, {"guidance": 2.0}, {"top_k": 9, "top_p": 0.8}], ids=str)
@pytest.mark.parametrize(("family", "layers"), [(llamagen, 6), (arpg, 15)])
def test_decoding_with_packed_weights_draws_what_decoding_without_them_does(family, layers, how):
    """From a small vocabulary: of a large one, a draw may be between two roundings of a sum."""
    config = family.Config(width=768, depth=2 if family is arpg else 1, heads=4)
    model = layered(build_seeded(config, SequenceSpec(1024, 36, (6, 6), 3), 0).eval())
    nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    prefixes = {"prefix_B": torch.tensor([0, 20]), "cell_BL": torch.zeros(2, 36, dtype=torch.long)}
    draw = partial(sample, label_B=torch.tensor([0, 2]), seeds=[3, 4], **prefixes)
    sampling = SamplingConfig.model_validate(how)
    plain = copy.deepcopy(model)
    for layer in plain.modules():
        if isinstance(layer, Linear):
            layer.__class__ = nn.Linear
    with Packed() as seen:
        found = draw(model, sampling=sampling)
    assert seen.packings == layers
    assert seen.products >= 36 * layers
    with Packed() as seen:
        wanted = draw(plain, sampling=sampling)
    assert seen.products == 0
    assert torch.equal(found.token_BL, wanted.token_BL)
    torch.testing.assert_close(found.logprob_BL, wanted.logprob_BL, rtol=0, atol=1e-4)
