"""The kernels of a GPU against the layers they stand for."""

import pytest
import torch
from building.gpus import needs_gpu

from common.device import place
from common.models.backbone import build_seeded
from common.models.backbones import llamagen
from common.models.cuda.captured_steps import fuses
from common.models.plan import raster_plan
from common.spec import SequenceSpec

pytestmark = needs_gpu

ODD = llamagen.Config(width=24, depth=2, heads=2, multiple_of=8)
"""Widths that are no powers of two, as LlamaGen-3B's heads."""
USUAL = llamagen.Config(width=128, depth=2, heads=2, multiple_of=32)
SPEC = SequenceSpec(vocab_size=50, length=130, grid=(10, 13), num_classes=7)
ROWS = 5


@pytest.fixture(params=[ODD, USUAL], ids=["odd", "usual"])
def model(request):
    found = build_seeded(request.param, SPEC, 0).eval()
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return found.to(place("cuda")).requires_grad_(False)


@pytest.fixture
def rows():
    """label_B and token_BL."""
    generator = torch.Generator().manual_seed(0)
    token_BL = torch.randint(SPEC.vocab_size, (ROWS, SPEC.length), generator=generator)
    return torch.arange(ROWS).cuda(), token_BL.cuda()


def embedded(model, rows):
    """What the layers are fed: the class, and all tokens but the last."""
    label_B, token_BL = rows
    table = model.cls_embedding.embedding_table
    return torch.cat([table(label_B)[:, None], model.tok_embeddings(token_BL[:, :-1])], 1)


def test_whole_sequences_are_as_layer_by_layer(model, rows):
    from common.models.cuda.fused_layers import sequence_hidden

    wanted = model.features(*rows, raster_plan(ROWS, SPEC.length))
    table = model._rotary.on(wanted.device)[: SPEC.length]
    found = sequence_hidden(embedded(model, rows), model.layers, model.norm, table, None)
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)


def test_one_token_at_a_time_is_as_the_whole(model, rows):
    wanted = model(*rows, raster_plan(ROWS, SPEC.length))
    width = model.layers[0].attention.wo.in_features // model.layers[0].attention.heads
    shape = ROWS, model.layers[0].attention.heads, SPEC.length, width
    nans = [torch.full(shape, torch.nan, device="cuda") for _ in range(2 * len(model.layers))]
    caches = list(zip(nans[0::2], nans[1::2], strict=True))
    from common.models.cuda.fused_layers import token_hidden

    x_BLC = embedded(model, rows)
    for slot in range(SPEC.length):
        hidden_RC = token_hidden(
            x_BLC[:, slot].contiguous(),
            model.layers,
            model.norm,
            model._rotary.on(x_BLC.device),
            torch.tensor([slot], device=x_BLC.device),
            caches,
        )
        torch.testing.assert_close(model.head(hidden_RC), wanted[:, slot], rtol=2e-5, atol=2e-5)


def test_half_precision_rounds_where_the_layers_do(model, rows):
    plan = raster_plan(ROWS, SPEC.length)
    model.to(torch.bfloat16)
    with torch.no_grad():
        assert fuses(model, embedded(model, rows))
        fused = model.features(*rows, plan)
    layered = model.features(*rows, plan)  # with gradients the kernels do not serve
    torch.testing.assert_close(fused, layered, rtol=0.02, atol=0.02)
