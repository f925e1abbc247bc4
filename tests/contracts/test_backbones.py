"""Every file in common/models/backbones must pass these, without being named here."""

import math

import pytest
import torch

from common.config.plugins import kinds
from common.errors import InputError
from common.models.backbones import arpg
from common.spec import SequenceSpec
from rollout.sampler import SamplingConfig, decode, noise


@pytest.fixture(params=kinds("common.models.backbones"))
def backbone(request, tiny):
    return tiny(request.param)


def plan_of(backbone, count, seed=0):
    """Several tokens per step where the family can, else its own plan."""
    seeds = range(seed, seed + count)
    try:
        return backbone.plan(seeds, arpg.Decoding(steps=3))
    except InputError:
        return backbone.plan(seeds)


@torch.no_grad()
def test_a_slot_never_sees_its_own_step_or_later(backbone):
    plan = plan_of(backbone, 2)
    class_B = torch.tensor([0, 1])
    token_BL = torch.zeros_like(plan.order_BL)
    before = backbone(class_B, token_BL, plan)
    for step in range(len(plan.step_sizes)):
        slots = plan.slots(step)
        changed = token_BL.clone()
        changed[:, slots.start :] = 1
        after = backbone(class_B, changed, plan)
        torch.testing.assert_close(
            after[:, : slots.stop],
            before[:, : slots.stop],
            atol=1e-4,
            rtol=1e-5,
            msg=f"step {step} leaks",
        )
        if slots.stop < plan.order_BL.shape[1]:
            assert (after[:, slots.stop :] - before[:, slots.stop :]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("shares", [[0, 0, 0], [0.4, 0.4, 0.4], [0.2, 0.5, 1], [1, 1, 1]])
def test_decoding_and_scoring_agree(backbone, shares):
    spec = backbone.spec
    class_B = torch.tensor([0, 1, spec.null_class])
    prefix_B = torch.tensor([round(share * spec.length) for share in shares])
    plan = plan_of(backbone, 3)
    given_BL = torch.randint(spec.vocab_size, (3, spec.length))
    decoded = decode(
        backbone,
        class_B,
        sampling=SamplingConfig(),
        noise_BL=noise([1, 2, 3], spec.length),
        plan=plan,
        given_BL=given_BL,
        prefix_B=prefix_B,
    )
    is_prefix = torch.arange(spec.length)[None] < prefix_B[:, None]
    assert torch.equal(decoded.token_BL[is_prefix], given_BL[is_prefix])
    logprob_BLV = backbone(class_B, decoded.token_BL, plan).log_softmax(-1)
    replayed = logprob_BLV.gather(-1, decoded.token_BL[..., None])[..., 0]
    torch.testing.assert_close(
        decoded.logprob_BL[~is_prefix], replayed[~is_prefix], atol=1e-4, rtol=1e-5
    )
    assert (decoded.logprob_BL[is_prefix] == 0).all()


@torch.no_grad()
def test_a_cached_step_equals_the_uncached_contract(backbone):
    from common.models.backbone import Backbone

    class_B = torch.tensor([0, 2])
    plan = plan_of(backbone, 2)
    token_BL = torch.randint(backbone.spec.vocab_size, plan.order_BL.shape)
    for start in (0, 1, len(plan.step_sizes) - 1):
        cached = backbone.begin(class_B, plan, given_BL=token_BL, step=start)
        plain = Backbone.begin(backbone, class_B, plan, given_BL=token_BL, step=start)
        for step in range(start, len(plan.step_sizes)):
            torch.testing.assert_close(
                backbone.predict(cached),
                backbone.head(Backbone.step_features(backbone, plain)),
                atol=1e-4,
                rtol=1e-5,
            )
            backbone.commit(cached, token_BL[:, plan.slots(step)])
            Backbone.commit(backbone, plain, token_BL[:, plan.slots(step)])


@torch.no_grad()
def test_a_sequence_does_not_depend_on_its_company(backbone):
    spec = backbone.spec
    class_B = torch.tensor([0, 1, 2])
    plan = plan_of(backbone, 3)

    def sample(rows):
        from common.models.plan import DecodePlan

        part = DecodePlan(plan.order_BL[rows], plan.step_sizes)
        seeds = [10 + row for row in rows]
        return decode(
            backbone,
            class_B[rows],
            sampling=SamplingConfig(),
            noise_BL=noise(seeds, spec.length),
            plan=part,
        ).token_BL

    assert torch.equal(sample([0, 1, 2])[2], sample([2])[0])


def test_a_fresh_model_is_uniform_and_seeded(backbone):
    from common.config.plugins import load_plugin
    from common.models.backbone import build_seeded

    kind = type(backbone).__module__.rpartition(".")[2]
    config = load_plugin("common.models.backbones", kind).Config.tiny()
    one, two = (build_seeded(config, backbone.spec, 5) for _ in range(2))
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name
    plan = one.plan([0])
    logit = one.eval()(torch.tensor([0]), torch.zeros_like(plan.order_BL), plan)
    entropy = torch.distributions.Categorical(logits=logit).entropy()
    uniform = torch.full_like(entropy, math.log(one.spec.vocab_size))
    torch.testing.assert_close(entropy, uniform, atol=1e-3, rtol=0)


def test_llamagen_refuses_sizes_that_cannot_rotate():
    from common.models.backbones.llamagen import Config

    with pytest.raises(ValueError, match="multiple of 4"):
        Config(width=18, heads=3)
    with pytest.raises(ValueError, match="preset B has width 768, not 512"):
        Config.model_validate({"preset": "B", "width": 512})
    with torch.device("meta"):
        spec = SequenceSpec(16384, 256, (16, 16), 1000)
        model = Config.model_validate({"preset": "B"}).build(spec)
    assert sum(p.numel() for p in model.parameters()) == 110_888_448


def test_a_family_that_overrides_what_is_not_called_in_every_step_is_refused():
    from common.errors import InputError
    from common.models.backbone import Backbone

    with pytest.raises(InputError, match="override step_features"):
        type("Own", (Backbone,), {"predict": lambda self, state: None})
