"""The attention of raster decoders."""

import pytest
import torch
from torch import nn

from common.models.key_value_cache import KeyValueCache, Placement
from common.models.layers import CausalAttention


@pytest.mark.parametrize("placed", [False, True])
def test_in_bfloat16_on_a_cpu_it_keeps_and_mixes_in_float32(placed):
    torch.manual_seed(0)
    layer, slots = CausalAttention(32, 2).bfloat16(), 9
    nn.init.normal_(layer.wqkv.weight, std=0.3)
    x_BLC, turn_LP2 = torch.randn(3, slots, 32).bfloat16(), torch.zeros(slots, 8, 2)
    turn_LP2[..., 0] = 1  # by no angle
    cache, found = KeyValueCache(slots), []
    for at in range(slots):
        visible_nS = torch.ones(1, at + 1, dtype=torch.bool)
        where = Placement(torch.tensor([at]), visible_nS) if placed else None
        x_BnC, turn_nP2 = x_BLC[:, at : at + 1], turn_LP2[at : at + 1]
        found.append(layer(x_BnC, turn_nP2, cache, where))
    assert cache.key_BHSD is not None
    assert cache.key_BHSD.dtype == torch.float32
    assert found[0].dtype == torch.bfloat16
    exact_BLC = layer.double()(x_BLC.double(), turn_LP2)
    assert (torch.cat(found, 1) - exact_BLC).abs().max() < 0.01 * exact_BLC.abs().max()
