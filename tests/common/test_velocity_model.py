"""The networks of Distilled Decoding 2: what a slot knows, how a vector is made, what is inherited.

The acceptance test D4 of docs/one_step.md, "Networks".
"""

import math
from dataclasses import replace

import pytest
import torch
from building.students import VELOCITY_TEACHERS, scale_of, student_of, velocity_model

from common.errors import InputError
from common.models.code_table import CodeTable
from common.models.generator import gaussian
from common.models.vector_embedding import VectorEmbedding
from common.models.velocity_head import waves

LABEL_B = torch.tensor([0, 2, 1])
SEEDS = [5, 6, 7]


@pytest.fixture(params=VELOCITY_TEACHERS)
def velocity_kind(request):
    return request.param


@pytest.fixture
def its_teacher(velocity_kind, tiny):
    return tiny(VELOCITY_TEACHERS[velocity_kind])


@pytest.fixture
def model(velocity_kind, its_teacher):
    return velocity_model(velocity_kind, its_teacher)


def noise_for(model):
    return gaussian(SEEDS, model.spec.length, model.code_width)


def assert_sees(say, vector_BLD, sees_LL):
    """`sees_LL`: whether what is said of a slot (row) depends on another's vector."""
    before = say(vector_BLD)
    for slot in range(vector_BLD.shape[1]):
        changed = vector_BLD.clone()
        changed[:, slot] += torch.linspace(-1, 1.5, vector_BLD.shape[2])
        moved_BL = (say(changed) - before).abs().amax(-1)
        seen_L = sees_LL[:, slot]
        assert (moved_BL[:, ~seen_L] < 1e-5).all(), f"slot {slot} leaks"
        assert (moved_BL[:, seen_L] > 1e-4).all(), f"slot {slot} is not seen"


@torch.no_grad()
def test_features_come_from_vectors_of_earlier_steps_only(model):
    scale_L = scale_of(model.spec)
    earlier_LL = scale_L[:, None] > scale_L
    assert_sees(lambda v_BLD: model.features(LABEL_B, v_BLD), noise_for(model), earlier_LL)


@torch.no_grad()
def test_a_generated_vector_comes_from_its_own_noise_and_that_of_earlier_steps(model):
    """All slots in one pass: the backbone on shifted noise, the head on the slot's own."""
    scale_L = scale_of(model.spec)
    itself_LL = torch.eye(len(scale_L), dtype=torch.bool)
    sees_LL = (scale_L[:, None] > scale_L) | itself_LL
    assert_sees(lambda v_BLD: model.vectors(LABEL_B, v_BLD), noise_for(model), sees_LL)


@torch.no_grad()
def test_a_generated_vector_is_noise_less_velocity_at_time_1_and_means_the_nearest_code(model):
    noise_BLD = noise_for(model)
    feature_BLC = model.features(LABEL_B, noise_BLD)
    velocity_BLD = model.velocity(noise_BLD, torch.ones(3, model.spec.length), feature_BLC)
    made = model(LABEL_B, noise_BLD)
    torch.testing.assert_close(made.vector_BLD, noise_BLD - velocity_BLD)
    assert velocity_BLD.abs().amax(-1).min() > 1e-3
    distance_BLV = torch.cdist(made.vector_BLD, model.codebook_VD.expand(3, -1, -1))
    assert torch.equal(made.token_BL, distance_BLV.argmin(-1))
    square_BL1 = made.vector_BLD.square().sum(-1, keepdim=True)
    wanted_BLV = -distance_BLV.square() / 2 + square_BL1 / 2
    torch.testing.assert_close(made.logit_BLV, wanted_BLV, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_vectors_that_are_codes_have_the_teachers_features(velocity_kind, tiny):
    """Of VAR through the same canvas; of LlamaGen as nearly as 16 hidden units can hold the table
    of 12 codes."""
    family = VELOCITY_TEACHERS[velocity_kind]
    teacher = tiny(family, spec=replace(tiny(family).spec, vocab_size=12))
    model = student_of(velocity_kind, teacher, head_width=16)[1]
    model.start_from(teacher)

    def of_teacher(token_BL):
        return teacher.features(LABEL_B, token_BL, teacher.plan(SEEDS))

    token_BL = torch.randint(12, (3, teacher.spec.length))
    wanted_BLC = of_teacher(token_BL)
    found_BLC = model.features(LABEL_B, model.codebook_VD[token_BL])
    off = (found_BLC - wanted_BLC).square().mean() / wanted_BLC.var()
    assert off < (1e-10 if family == "var" else 0.02)
    other_BLC = of_teacher((token_BL + 1) % 12)
    assert (other_BLC - wanted_BLC).square().mean() / wanted_BLC.var() > 0.2


def test_a_model_starts_as_its_teacher_with_a_head_that_says_0(velocity_kind, its_teacher):
    model = student_of(velocity_kind, its_teacher, head_width=16)[1]
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    model.start_from(its_teacher)
    theirs = its_teacher.state_dict()
    head = f"{its_teacher.official.head}."
    assert not any(name.startswith(f"network.{head}") for name in fresh)
    for name, value in model.state_dict().items():
        its_name = name.removeprefix("network.")
        if "tok_embeddings.second" in name:
            assert not torch.equal(value, fresh[name]), "fitted"
        elif its_name == name or "tok_embeddings" in name:
            assert torch.equal(value, fresh[name]), name
        else:
            assert torch.equal(value, theirs[its_name]), name
    kept = {n for n in theirs if not n.startswith(head) and "tok_embeddings" not in n}
    assert kept <= {name.removeprefix("network.") for name in fresh}
    with torch.no_grad():
        noise_BLD = noise_for(model)
        assert torch.equal(model.vectors(LABEL_B, noise_BLD), noise_BLD)


def test_another_teacher_is_refused(velocity_kind, its_teacher, tiny):
    config, model = student_of(velocity_kind, its_teacher, head_width=16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wider = config.backbone.model_copy(update={"width": 32}).build(its_teacher.spec)
    if velocity_kind == "dd2_var":
        wider.quantizer.code_VD.copy_(its_teacher.quantizer.code_VD)
    with pytest.raises(InputError, match=r"network\..* has shape \[.*\] in the teacher and \["):
        model.start_from(wider)
    if velocity_kind == "dd2_llamagen":
        other, sentence = tiny("arpg"), "starts from a LlamaGen, not from a ARPG"
    else:
        other, sentence = tiny("var"), r"student's codebook .* is not that of the teacher"
        other.quantizer.code_VD[3] += 1e-3
    with pytest.raises(InputError, match=sentence):
        model.start_from(other)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_draws_of_noise_share_the_features_of_their_slots(model):
    feature_BLC = model.features(LABEL_B, noise_for(model))
    shape = (4, 3, model.spec.length)
    x_MBLD, time_MBL = torch.randn(*shape, model.code_width), torch.rand(shape)
    found = model.velocity(x_MBLD, time_MBL, feature_BLC)
    for one, x_BLD, time_BL in zip(found, x_MBLD, time_MBL, strict=True):
        torch.testing.assert_close(one, model.velocity(x_BLD, time_BL, feature_BLC))
    later = model.velocity(x_MBLD, time_MBL.flip(0), feature_BLC)
    assert ((later - found).abs().amax(-1) > 1e-4).all(), "time is read"


def test_times_are_written_as_the_released_head_writes_its_thousand_steps():
    found = waves(torch.tensor([[0.0, 0.25], [0.999, 1.0]]))
    assert found.shape == (2, 2, 256)
    for k in (0, 1, 77, 127):
        angle = 250 * 10_000 ** (-k / 128)
        assert float(found[0, 1, k]) == pytest.approx(math.cos(angle), abs=1e-4)
        assert float(found[0, 1, 128 + k]) == pytest.approx(math.sin(angle), abs=1e-4)


@torch.no_grad()
def test_a_fitted_perceptron_is_the_least_squares_one():
    """More codes than hidden units, so something is left over; the normal equations, written as
    one bigger system, say what."""
    code_VD, table_VC = gaussian([1], 60, 3)[0], gaussian([2], 60, 16)[0]
    embedding = VectorEmbedding(60, 3, 16)
    embedding.attach({"codes": CodeTable(code_VD)})
    state = embedding.fitted(table_VC)
    scaled_VD = code_VD / code_VD.square().sum(1).mean().sqrt()
    hidden_VH = torch.nn.functional.silu(embedding.first(scaled_VD)).double()
    hidden_VH = torch.cat([hidden_VH, torch.ones(60, 1).double()], 1)
    wanted_HC = torch.linalg.lstsq(hidden_VH, table_VC.double()).solution
    embedding.load_state_dict(state)
    left = (embedding(torch.arange(60)) - table_VC).square().mean()
    least = (hidden_VH @ wanted_HC - table_VC).square().mean()
    assert float(least) <= float(left) < 1.02 * float(least)
    assert 0.2 < float(least) < 0.9


@torch.no_grad()
def test_codes_stay_as_they_are_in_a_model_of_another_precision(model):
    code_VD = model.codebook_VD.clone()
    half = model.to(torch.bfloat16)
    assert half.velocity_head.linear.weight.dtype == torch.bfloat16
    assert torch.equal(half.codebook_VD, code_VD)
    made = half(LABEL_B, noise_for(half))
    assert made.vector_BLD.dtype == made.logit_BLV.dtype == torch.float32
