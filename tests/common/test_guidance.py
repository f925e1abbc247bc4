"""Guidance rules and decoding plans as pure functions, against the published statements."""

import pytest
import torch

from common.errors import InputError
from common.models.backbones import arpg
from common.models.filters import filtered_logprob
from common.models.guidance import Guidance, guide, scale_per_slot
from common.models.plan import (
    DecodePlan,
    arpg_step_sizes,
    next_scale_plan,
    random_order_plan,
    raster_plan,
)
from rollout.sampler import SamplingConfig

RASTER = raster_plan(1, 10)
SCALES = next_scale_plan(1, (1, 2, 3))
RANDOM = random_order_plan([0], (3, 2, 5))


@pytest.mark.parametrize(
    ("guidance", "plan", "published", "scales"),
    [
        (2.0, RASTER, "llamagen", [2.0] * 10),
        (1.0, RASTER, "llamagen", [1.0] * 10),
        (0.5, RASTER, "llamagen", [1.0] * 10),  # inactive at and below 1
        ({"scale": 2, "interval": 5}, RASTER, "llamagen", [2.0] * 7 + [1.0] * 3),  # 0..5+1
        ({"scale": 2, "interval": 0}, RASTER, "llamagen", [2.0] * 2 + [1.0] * 8),
        (1.5, SCALES, "var", [1.0, 1.75, 2.5]),
        (0.0, SCALES, "var", [1.0, 1.0, 1.0]),
        (5.0, RANDOM, "arpg_linear", [2.2, 3.0, 5.0]),  # with the step's own tokens
        ({"scale": 5, "rule": "arpg_constant"}, RANDOM, "arpg_linear", [5.0] * 3),
        ({"scale": 2, "rule": "var"}, RASTER, "llamagen", [1 + 2 * k / 9 for k in range(10)]),
    ],
)
def test_each_rule_gives_the_published_scale_of_every_step(guidance, plan, published, scales):
    config = SamplingConfig.model_validate({"guidance": guidance}).guidance
    assert config is not None
    assert config.scales(plan, published) == pytest.approx(scales)


def test_values_go_from_the_grid_to_the_slots_of_a_plan_and_back():
    plan, other = DecodePlan(torch.tensor([[2, 0, 3, 1]]), (1, 3)), raster_plan(1, 4)
    cell_BL = torch.tensor([[10, 11, 12, 13]])
    assert plan.to_slots(cell_BL).tolist() == [[12, 10, 13, 11]]
    assert plan.to_grid(torch.tensor([[12, 10, 13, 11]])).tolist() == [[10, 11, 12, 13]]
    # Cell 0 is the plan's slot 1, cell 1 its slot 3, cell 2 its slot 0, cell 3 its slot 2.
    assert plan.slots_in(other).tolist() == [[1, 3, 0, 2]]
    assert other.slots_in(plan).tolist() == [[2, 0, 3, 1]]
    assert random_order_plan([5, 6], (2, 6)).rows(torch.tensor([1])).step_sizes == (2, 6)


def test_vars_own_formula_is_the_same_affine_rule():
    conditional, unconditional = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    t = 0.75
    wanted = (1 + t) * conditional - t * unconditional
    torch.testing.assert_close(guide(conditional, unconditional, 1 + t), wanted)
    assert torch.equal(guide(conditional, unconditional, 1.0), conditional)


@pytest.mark.parametrize("scale", [1.0, 2.5, torch.tensor([[1.0], [2.5], [0.0]])])
def test_half_precision_is_guided_in_float32(scale):
    conditional, unconditional = torch.randn(2, 2, 3, 5).bfloat16()
    guided = guide(conditional, unconditional, scale)
    assert guided.dtype == torch.float32
    exact = unconditional.double() + scale * (conditional.double() - unconditional.double())
    torch.testing.assert_close(guided.double(), exact, atol=1e-6, rtol=1e-6)


def test_scales_by_slot_leave_unguided_slots_untouched():
    conditional, unconditional = torch.randn(1, 14, 5), torch.randn(1, 14, 5)
    scale_L = scale_per_slot(Guidance(scale=2.0).scales(SCALES, "var"), SCALES)
    assert scale_L.tolist() == [1.0] + [2.0] * 4 + [3.0] * 9
    guided = guide(conditional, unconditional, scale_L[:, None])
    assert torch.equal(guided[:, 0], conditional[:, 0])
    wanted = unconditional[:, 5:] + 3 * (conditional - unconditional)[:, 5:]
    torch.testing.assert_close(guided[:, 5:], wanted)


def test_orders_are_permutations_that_depend_on_their_own_seed_alone():
    plan = random_order_plan([4, 5, 6], (2, 6))
    assert torch.equal(plan.order_BL.sort(1).values, torch.arange(8).expand(3, -1))
    assert torch.equal(random_order_plan([5], (2, 6)).order_BL[0], plan.order_BL[1])
    assert not torch.equal(plan.order_BL[0], plan.order_BL[1])
    assert plan.step_L.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert [plan.step_of(slot) for slot in (0, 1, 2, 7, 8)] == [0, 0, 1, 1, 2]
    with pytest.raises(ValueError, match="steps cover 3 slots, sequence has 4"):
        DecodePlan(torch.zeros(1, 4, dtype=torch.long), (1, 2))


def test_more_steps_than_tokens_and_steps_of_fixed_orders_are_refused(tiny):
    with pytest.raises(InputError, match="steps is 17, but a sequence has only 16"):
        arpg_step_sizes(16, 17, "arccos")
    assert sum(arpg_step_sizes(576, 64, "cosine")) == 576
    for kind in ("llamagen", "var"):
        with pytest.raises(InputError, match=f"steps is 3, but {kind} decodes in a fixed number"):
            tiny(kind).plan([0], arpg.Decoding(steps=3))
    assert tiny("arpg").plan([0], arpg.Decoding(steps=3)).step_sizes == (2, 1, 3)


def test_a_family_refuses_tokens_of_the_wrong_form(tiny):
    raster, scales = tiny("llamagen").spec, tiny("var").spec
    for kind in ("llamagen", "arpg"):
        with pytest.raises(InputError, match=f"{kind} needs one token per grid cell"):
            tiny(kind, spec=scales)
    with pytest.raises(InputError, match="var needs tokens of several scales"):
        tiny("var", spec=raster)
    with pytest.raises(InputError, match="tokenizer has none"):
        tiny("var").attach({})


def test_the_two_top_p_conventions_agree_off_the_edge():
    logit = torch.tensor([[[0.5, 0.25, 0.125, 0.125]]]).log()

    def kept(top_p, rule):
        sampling = SamplingConfig(top_p=top_p, top_p_rule=rule)
        return (filtered_logprob(logit, sampling).exp() > 0).flatten().tolist()

    assert kept(0.6, "llamagen") == kept(0.6, "var") == [True, True, False, False]
    assert kept(0.01, "var") == [True, False, False, False]


def test_the_two_top_p_conventions_differ_where_exactly_p_lies_above():
    """Sums of quarters have no rounding: LlamaGen keeps the third, VAR has dropped 1 - p."""
    for rule, count in (("llamagen", 3), ("var", 2)):
        sampling = SamplingConfig(top_p=0.5, top_p_rule=rule)
        assert int((filtered_logprob(torch.zeros(1, 1, 4), sampling) > -9).sum()) == count
