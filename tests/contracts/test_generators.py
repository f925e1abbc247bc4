"""What every one-pass student promises, whatever it is made of."""

import pytest
import torch

from common.config.plugins import kinds, load_plugin
from common.errors import InputError
from common.models.generator import gaussian
from common.spec import SequenceSpec

SPEC = SequenceSpec(vocab_size=24, length=6, grid=(2, 3), num_classes=3)
SCALES_SPEC = SequenceSpec(24, 14, (3, 3), num_classes=3, scales=(1, 2, 3))
D = 5
SEEDS = [11, 12, 2**62, 0, 13]
LABEL_B = torch.tensor([0, 1, 2, 3, 0])  # 3 is the null class


@pytest.fixture(params=kinds("common.models.generators"))
def config(request):
    return load_plugin("common.models.generators", request.param).Config.tiny()


@pytest.fixture
def spec(config):
    """One raster, or several scales for those that need them."""
    try:
        config.build(SPEC, torch.zeros(24, D))
    except InputError:
        return SCALES_SPEC
    return SPEC


@pytest.fixture
def build(config, spec):
    codebook_VD = torch.randn(24, D, generator=torch.Generator().manual_seed(3))

    def make(seed=0):
        torch.manual_seed(seed)
        return opened(config.build(spec, codebook_VD)).eval()

    return make


@torch.no_grad()
def opened(generator):
    """With weights that begin at zero drawn as well: behind a closed gate nothing shows."""
    for weight in generator.parameters():
        if weight.ndim > 1 and not weight.any():
            weight.normal_(std=0.2)
    return generator


def test_kind_is_the_file_name(config):
    assert type(config).__module__ == f"common.models.generators.{config.kind}"


def test_shapes_and_types_are_those_of_the_tokens(build, spec):
    made = build().generate(LABEL_B, SEEDS)
    assert made.token_BL.shape == (5, spec.length)
    assert made.token_BL.dtype == torch.int64
    assert made.vector_BLD.shape == (5, spec.length, D)
    assert made.logit_BLV.shape == (5, spec.length, 24)
    assert made.logit_BLV.dtype == torch.float32
    assert torch.equal(made.token_BL, made.logit_BLV.argmax(-1))
    for value in (made.vector_BLD, made.logit_BLV):
        assert torch.isfinite(value).all()


def test_a_sequence_is_a_function_of_weights_condition_and_seed(build):
    """Whatever torch's own generator does in between; another seed or class is another one."""
    generator = build()
    made = generator.generate(LABEL_B, SEEDS)
    torch.manual_seed(99)
    again = generator.generate(LABEL_B, SEEDS)
    assert torch.equal(again.vector_BLD, made.vector_BLD)
    assert torch.equal(again.logit_BLV, made.logit_BLV)
    other = generator.generate(LABEL_B, [seed + 1 for seed in SEEDS])
    assert not torch.equal(other.vector_BLD, made.vector_BLD)
    classes = generator.generate((LABEL_B + 1) % 4, SEEDS)
    assert not torch.equal(classes.vector_BLD, made.vector_BLD)


def test_company_and_order_change_nothing(build):
    generator = build()
    made = generator.generate(LABEL_B, SEEDS)
    for chosen in ([2], [4, 0], [3, 2, 1, 0]):
        part = generator.generate(LABEL_B[chosen], [SEEDS[b] for b in chosen])
        torch.testing.assert_close(part.vector_BLD, made.vector_BLD[chosen], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(part.logit_BLV, made.logit_BLV[chosen], atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_parameter_from_vectors_and_logits_together(build):
    generator = build()
    made = generator.generate(LABEL_B, SEEDS)
    assert not made.token_BL.requires_grad
    (made.vector_BLD.square().sum() + made.logit_BLV.logsumexp(-1).sum()).backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_gradients_reach_the_noise(build, spec):
    """Each slot's vector depends on its own noise."""
    noise_BLD = gaussian(SEEDS, spec.length, D).requires_grad_()
    build()(LABEL_B, noise_BLD).vector_BLD.sum().backward()
    assert (noise_BLD.grad.abs().sum(-1) > 0).all()


def test_a_file_of_it_stands_alone(config, build, spec):
    one = build(seed=0)
    other = config.build(spec, torch.zeros(24, D)).eval()
    other.load_state_dict(one.state_dict())
    wanted, found = (model.generate(LABEL_B, SEEDS) for model in (one, other))
    assert torch.equal(found.logit_BLV, wanted.logit_BLV)
    assert torch.equal(found.vector_BLD, wanted.vector_BLD)


def test_noise_is_standard_normal_and_a_function_of_the_seed_alone():
    noise_BLD = gaussian(range(2000), 4, 3)
    assert torch.equal(gaussian([1999, 7], 4, 3), noise_BLD[[1999, 7]])
    count = noise_BLD.numel()
    assert abs(float(noise_BLD.mean())) < 5 / count**0.5
    assert abs(float(noise_BLD.var()) - 1) < 5 * (2 / count) ** 0.5
    fourth = float((noise_BLD**4).mean())
    assert abs(fourth - 3) < 5 * (96 / count) ** 0.5
