"""A LlamaGen that reads code vectors through a perceptron: as any other, and between the codes.

docs/one_step.md, "Networks".
"""

import pytest
import torch

from common.artifacts.backbone_file import load_backbone, save_backbone
from common.artifacts.model_file import identify, official_state
from common.errors import InputError
from common.models.backbone import Backbone, build_seeded
from common.models.backbones import llamagen
from common.models.code_table import CodeTable
from common.models.generators import dd2_llamagen
from common.spec import SequenceSpec

SPEC = SequenceSpec(vocab_size=24, length=6, grid=(2, 3), num_classes=3)
CODE_VD = torch.randn(24, 5, generator=torch.Generator().manual_seed(3))
CONFIG = llamagen.Config(width=16, depth=2, heads=2, multiple_of=8, vector_width=5)
LABEL_B = torch.tensor([0, 2, 1])


@pytest.fixture
def model():
    built = build_seeded(CONFIG, SPEC, 0)
    built.attach({"codes": CodeTable(CODE_VD)})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return built.eval()


def tokens():
    return torch.randint(24, (3, 6), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_it_decodes_with_a_cache_what_it_scores(model):
    plan, token_BL = model.plan([1, 2, 3]), tokens()
    cached = model.begin(LABEL_B, plan)
    plain = Backbone.begin(model, LABEL_B, plan)
    for step in range(6):
        torch.testing.assert_close(
            model.predict(cached),
            model.head(Backbone.step_features(model, plain)),
            atol=1e-4,
            rtol=1e-5,
        )
        for state in (cached, plain):
            type(model).commit(model, state, token_BL[:, step : step + 1])


def test_vectors_of_codes_are_those_codes_and_others_are_read_as_well(model):
    plan, token_BL = model.plan([1, 2, 3]), tokens()
    wanted_BLC = model.features(LABEL_B, token_BL, plan)
    vector_BLD = CODE_VD[token_BL].requires_grad_()
    torch.testing.assert_close(model.features_of(LABEL_B, vector_BLD, plan), wanted_BLC)
    between_BLC = model.features_of(LABEL_B, vector_BLD + 0.1, plan)
    away_L = (between_BLC - wanted_BLC).abs().amax((0, 2))
    assert away_L[0] < 1e-6
    assert (away_L[1:] > 1e-3).all()
    (gradient_BLD,) = torch.autograd.grad(between_BLC[:, -1].sum(), vector_BLD)
    assert (gradient_BLD.abs().amax((0, 2))[:-1] > 1e-6).all()
    assert not gradient_BLD[:, -1].any()
    table = llamagen.Config.tiny().build(SPEC)
    assert not llamagen.Config.tiny().reads_vectors
    with pytest.raises(NotImplementedError, match="LlamaGen reads codes"):
        table.features_of(LABEL_B, vector_BLD, plan)


@torch.no_grad()
def test_how_long_the_codes_are_does_not_matter(model):
    plan, token_BL = model.plan([1, 2, 3]), tokens()
    wanted_BLC = model.features(LABEL_B, token_BL, plan)
    model.attach({"codes": CodeTable(3 * CODE_VD)})
    torch.testing.assert_close(model.features(LABEL_B, token_BL, plan), wanted_BLC)


def test_codes_are_the_tokenizers(model, tmp_path):
    """They are in files of ours, and left out of official ones."""
    fresh = build_seeded(CONFIG, SPEC, 0)
    for lent in ({}, {"codes": CodeTable(CODE_VD[:, :4])}):
        with pytest.raises(
            InputError, match=r"shape \[24, 5\], but the .* set models.\*.vector_width to"
        ):
            fresh.attach(lent)
    path = tmp_path / "teacher.safetensors"
    save_backbone(path, model, CONFIG)
    again, config = load_backbone(path)
    assert config == CONFIG
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in model.state_dict().items())
    names = set(model.state_dict()) - set(official_state(model))
    assert names == {"tok_embeddings.codes.code_VD"}
    shapes = {name: tuple(value.shape) for name, value in official_state(model).items()}
    sizes = {"vocab_size": 24, "num_classes": 3, "width": 16, "depth": 2, "vector_width": 5}
    assert identify(shapes) == ("llamagen", sizes)
    half = model.to(torch.bfloat16)
    assert half.tok_embeddings.first.weight.dtype == torch.bfloat16
    assert torch.equal(half.tok_embeddings.codes.code_VD, CODE_VD)


@torch.no_grad()
def test_a_student_takes_the_perceptron_of_such_a_teacher_as_it_is(model):
    config = dd2_llamagen.Config(backbone=CONFIG, head_width=16)
    student = config.build(SPEC, CODE_VD).eval()
    student.start_from(model)
    vector_BLD = torch.randn(3, 6, 5)
    found_BLC = student.features(LABEL_B, vector_BLD)
    assert torch.equal(found_BLC, model.features_of(LABEL_B, vector_BLD, model.plan([1, 2, 3])))
    other = config.build(SPEC, CODE_VD.flip(0))
    with pytest.raises(InputError, match=r"student's codebook .* is not that of the teacher"):
        other.start_from(model)


def test_sizes_of_a_student_are_the_teachers_whatever_it_reads():
    student = dd2_llamagen.Config()
    plain = CONFIG.model_copy(update={"vector_width": 0, "dropout": 0.1})
    for teacher in (CONFIG, plain):
        sized = student.sized_as(teacher)
        assert sized.sizes.width == 16
        assert sized.sizes.dropout == 0
        again = dd2_llamagen.Config.model_validate(sized.model_dump(exclude={"kind"}))
        assert again.sized_as(CONFIG) == again
        assert again.network() == student.sized_as(plain).network()
