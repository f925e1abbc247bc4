"""Models of published sizes, and how they start and are regularised."""

import pytest
import torch

from common.config.plugins import load_plugin
from common.spec import SequenceSpec

RASTER = SequenceSpec(16384, 256, (16, 16), 1000)
SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
NEXT_SCALE = SequenceSpec(4096, 680, (16, 16), 1000, SCALES)
LARGE = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
LARGE_SCALE = SequenceSpec(4096, 2240, (32, 32), 1000, LARGE)
PUBLISHED = [
    ("llamagen", "B", RASTER, 110_888_448),
    ("llamagen", "L", RASTER, 342_910_976),
    ("llamagen", "XL", RASTER, 774_699_520),
    ("llamagen", "XXL", RASTER, 1_410_972_672),
    ("llamagen", "3B", RASTER, 3_096_659_200),
    ("llamagen", "XXXL", RASTER, 3_893_027_840),
    ("arpg", "L", RASTER, 319_845_376),
    ("arpg", "XL", RASTER, 718_997_760),
    ("arpg", "XXL", RASTER, 1_302_449_664),
    ("var", "d16", NEXT_SCALE, 310_283_520),
    ("var", "d20", NEXT_SCALE, 600_917_136),
    ("var", "d24", NEXT_SCALE, 1_033_399_360),
    ("var", "d30", NEXT_SCALE, 2_010_020_356),
    ("var", "d36-s", LARGE_SCALE, 2_353_893_904),
]


@pytest.mark.parametrize(("kind", "preset", "spec", "count"), PUBLISHED)
def test_published_sizes_have_the_published_number_of_parameters(kind, preset, spec, count):
    config = load_plugin("common.models.backbones", kind).Config.model_validate({"preset": preset})
    with torch.device("meta"):
        model = config.build(spec)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


DISTILLED = [
    ("dd1_llamagen", "L", RASTER, (16384, 8), 326_155_272),
    ("dd1_var", "d16", NEXT_SCALE, (4096, 32), 328_165_664),
    ("dd1_var", "d20", NEXT_SCALE, (4096, 32), 635_399_088),
    ("dd1_var", "d24", NEXT_SCALE, (4096, 32), 1_092_478_560),
]
"""Published as 326 M, 327 M, 635 M and 1.09 B; the layers of the released code make 328.2 M of the
second, the others agree."""


@pytest.mark.parametrize(("kind", "preset", "spec", "codes", "count"), DISTILLED)
def test_distilled_students_of_published_sizes_have_the_number_of_the_released_code(
    kind, preset, spec, codes, count
):
    """The teacher's, plus what is new, counted by hand."""
    config = load_plugin("common.models.generators", kind).Config.model_validate(
        {"backbone": {"preset": preset}}
    )
    with torch.device("meta"):
        student = config.build(spec, torch.empty(codes))
    assert sum(parameter.numel() for parameter in student.parameters()) == count
    teacher = next(n for family, size, _, n in PUBLISHED if (family, size) == (kind[4:], preset))
    width, depth, code_width = config.backbone.width, config.backbone.depth, codes[1]
    new = 2 * width + 2 * width + width * code_width + code_width  # types, table, linear
    if kind == "dd1_llamagen":
        new += code_width * width + width - 16384 * width  # reads vectors, not tokens
    else:
        new += (depth + 1) * (width + 1) * width + 2 * width  # blocks and heads; two rows
    assert count == teacher + new


VELOCITY_MODELS = [
    ("dd2_llamagen", "L", RASTER, (16384, 8), 335),
    ("dd2_var", "d16", NEXT_SCALE, (4096, 32), 329),
    ("dd2_var", "d20", NEXT_SCALE, (4096, 32), 619),
    ("dd2_var", "d24", NEXT_SCALE, (4096, 32), 1_040),
]
"""Millions that DD2 gives for its students, whose head it does not describe."""


@pytest.mark.parametrize(("kind", "preset", "spec", "codes", "published"), VELOCITY_MODELS)
def test_velocity_models_of_published_sizes_are_near_the_published_number(
    kind, preset, spec, codes, published
):
    """The teacher's without its logits, plus what is new, counted by hand; with MAR's default head
    it comes within 1.5 % of what the paper says."""
    config = load_plugin("common.models.generators", kind).Config.model_validate(
        {"backbone": {"preset": preset}}
    )
    with torch.device("meta"):
        student = config.build(spec, torch.empty(codes))
    count = sum(parameter.numel() for parameter in student.parameters())
    teacher = next(n for family, size, _, n in PUBLISHED if (family, size) == (kind[4:], preset))
    width, code_width, inner = config.backbone.width, codes[1], 1024
    square = inner * (inner + 1)
    head = (256 + 1) * inner + square  # times
    head += (width + 1) * inner + (code_width + 1) * inner  # features and vectors
    head += 3 * (2 * inner + 2 * square + 3 * square)  # norm, MLP and gates of three blocks
    head += 2 * square + (inner + 1) * code_width
    if kind == "dd2_llamagen":
        reads_tokens = 2 * 16384 * width  # table and logits, both without biases
        other = (code_width + 1) * width + (width + 1) * width - reads_tokens
    else:
        other = -(width + 1) * 4096
    assert count == teacher + other + head
    assert count == pytest.approx(1e6 * published, rel=0.015)


def test_fresh_next_scale_models_start_as_published():
    """Truncated normal of std sqrt(1 / 3C), near-zero gates, small head (docs/backbones.md, "VAR
    layers")."""
    from common.models.backbones.var import Config

    spec = SequenceSpec(64, 30, (4, 4), 10, (1, 2, 3, 4))
    for shared in (False, True):
        config = Config(width=64, depth=2, heads=4, adaln_gamma=1e-4, shared_aln=shared)
        model = config.build(spec)
        std = (1 / (3 * 64)) ** 0.5
        assert float(model.pos_1LC.detach().std()) == pytest.approx(std, rel=0.1)
        assert float(model.head.weight.detach().std()) == pytest.approx(0.02 * std, rel=0.1)
        block = model.blocks[0]
        assert float(block.ffn.fc1.weight.detach().std()) == pytest.approx(std, rel=0.1)
        assert float(block.ffn.fc2.weight.detach().std()) == pytest.approx(std / 2, rel=0.1)
        rows = block.modulation_weight.detach()
        own = 1 / 64**0.5 if shared else std
        third = len(rows) // 3
        assert float(rows[:third].std()) == pytest.approx(1e-4 * own, rel=0.2)
        assert float(rows[third:].std()) == pytest.approx(0.5 * own, rel=0.2)
        assert (block.attn.scale_mul_1H11.exp() - 4).abs().max() < 1e-5


@torch.no_grad()
def test_drop_path_replaces_dropout_and_keeps_the_mean():
    from common.models.backbones.llamagen import Config
    from common.models.layers import DropPath

    kept = DropPath(0.25).train()(torch.ones(4000, 2, 3))
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert float(kept.mean()) == pytest.approx(1, abs=0.05)
    assert (kept == kept[:, :1, :1]).all(), "whole sequences, not single channels"
    model = Config(width=16, depth=3, heads=2, multiple_of=8, drop_path=0.2).build(RASTER)
    assert [block.dropout._rate for block in model.layers] == pytest.approx([0, 0.1, 0.2])
    assert model.dropout.p == 0.1, "token dropout stays"
