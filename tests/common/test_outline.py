"""Models without content are those with content in all but it."""

import pytest
import torch

from common.config.plugins import kinds, load_plugin
from common.outline import outlines


@pytest.mark.parametrize("kind", kinds("common.models.backbones"))
def test_an_outline_has_the_shapes_and_types_of_the_model_and_draws_nothing(tiny, kind):
    whole, config = tiny(kind), load_plugin("common.models.backbones", kind).Config.tiny()
    drawn = torch.get_rng_state()
    with outlines():
        outline = config.build(whole.spec)
    assert torch.equal(torch.get_rng_state(), drawn)
    found, wanted = outline.state_dict(), whole.state_dict()
    assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
        name: (value.shape, value.dtype) for name, value in wanted.items()
    }
    assert all(value.is_meta for value in found.values())


def test_what_is_made_after_an_outline_is_drawn_again():
    with outlines():
        torch.nn.Linear(4, 4)
    assert torch.nn.init.normal_(torch.zeros(100)).std() > 0.5
    assert torch.nn.Linear(4, 4).weight.abs().sum() > 0
    assert torch.nn.functional.normalize(torch.ones(4), dim=0).sum() == 2
