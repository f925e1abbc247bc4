"""Distilled Decoding 1 on a teacher whose joint distribution is known: the acceptance tests S4 and
S5 of docs/one_step.md, through the learner itself; S4 at full size, through all roles, is in
tests/deploy/test_known_joint.py."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from building.dependent_codes import SPEC, TABLE

from benchmarks.dd1_toy import distances
from common.errors import InputError
from common.exchange.trajectory import TrajectoryBatch
from common.models.backbones import llamagen
from common.models.generator import gaussian
from common.models.generators import dd1_llamagen
from common.models.plan import raster_plan
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.objectives import dd1
from learner.resources import Resources

CODES = TABLE.codes
ROWS, PAIRS, DRAWN = 256, 8192, 5_000


@cache
def made():
    """The finite set: labels and tokens of the seeds 0, 1, 2, ..."""
    label_N = torch.arange(PAIRS) % 2
    return label_N, TABLE.carried(label_N, gaussian(range(PAIRS), 3, 2))


def pairs(first, *, shifted=0):
    """A batch of images `first` and on; `shifted` gives each row another row's noise."""
    id_B = torch.arange(first, first + ROWS)
    row_B = id_B % PAIRS
    label_B, token_BL = (of_N[row_B] for of_N in made())
    return TrajectoryBatch(
        spec=SPEC,
        id_B=id_B,
        version_B=torch.zeros_like(id_B),
        label_B=label_B,
        context=("teacher",) * ROWS,
        policy=("teacher",) * ROWS,
        law=("exact",) * ROWS,
        prefix_B=torch.zeros_like(id_B),
        plan=raster_plan(ROWS, 3),
        token_BL=token_BL,
        logprob_BL=torch.zeros(ROWS, 3),
        seed_B=row_B.roll(shifted),
    )


def resources_at(positions, weight=None):
    """A decoder with a parameter that must not be trained; features are not linear."""
    weight = torch.ones(3) if weight is None else weight

    def render(device):
        return lambda vector_BLD: (vector_BLD * weight[:, None])[:, None]

    def perceptual(device):
        return lambda image_BCHW: image_BCHW.flatten(1).tanh()

    return Resources(
        codebook=lambda: CODES.code_VD,
        render=render,
        perceptual=perceptual,
        positions=lambda: positions,
    )


def learner(steps, config=None, *, positions=(1, 3), weight=None, **settings):
    sizes = llamagen.Config(width=64, depth=2, heads=4, multiple_of=16, dropout=0.0)
    student = dd1_llamagen.Config(backbone=sizes, positions=(1, 3), split=3)
    optimizer = {"learning_rate": 8e-3, "warmup": 20, "schedule": "cosine", "ema": 0.99}
    settings = {"micro_batch": ROWS, **settings, "steps": steps, "global_batch_size": ROWS}
    objective = config or dd1.Config(distance="vectors")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = student.build(SPEC, CODES.code_VD)
    return Learner(
        LearnerConfig.model_validate({**settings, "optimizer": optimizer}),
        objective.build(resources_at(positions, weight)),
        built,
        seed=0,
        contexts=("teacher",),
    ), built


def trained(steps, *, shifted=0):
    """The averaged student after so many steps, and its last metrics."""
    ours, student = learner(steps)
    for step in range(steps):
        metrics = ours.step(pairs(step * ROWS, shifted=shifted))
    student.load_state_dict(dict(ours.states())["student_ema"])
    return student.eval(), metrics


def test_one_step_learns_how_the_teachers_codes_depend_on_each_other():
    """And two steps more of it; docs/one_step.md has what longer training gives."""
    student, metrics = trained(200)
    once, twice = (distances(TABLE, student, at, DRAWN) for at in ((1,), (1, 3)))
    assert all(found < bound / 2 for found, bound in zip(once, TABLE.independent(), strict=True))
    assert sum(twice) < sum(once)
    label_B, noise_BLD = torch.ones(1000).long(), gaussian(range(PAIRS, PAIRS + 1000), 3, 2)
    with torch.no_grad():
        right_BL = student(label_B, noise_BLD).token_BL == TABLE.carried(label_B, noise_BLD)
    first, _, last = right_BL.double().mean(0).tolist()
    assert first > 0.95
    assert 0.7 < last < first
    assert metrics["sequence_loss/teacher"] < 0.35


def test_with_another_rows_noise_nothing_is_learned():
    """The negative control: two rows on, the class is the same, the noise is not."""
    student, _ = trained(60, shifted=2)
    assert sum(distances(TABLE, student, (1,), DRAWN)) >= 0.8 * sum(TABLE.independent())


def test_the_loss_is_the_papers():
    """0.1 times the cross-entropy of the noise slots, plus the distance of the vectors there."""
    ours, student = learner(10, positions=(1,))
    batch = pairs(0)
    noise_BLD = gaussian(batch.id_B.tolist(), 3, 2)
    nothing_BL = torch.zeros(ROWS, 3, dtype=torch.bool)
    with torch.no_grad():
        deep_BLC = student.trunk(batch.label_B, noise_BLD, nothing_BL)
        logit_BLV = student.head(student.normed(deep_BLC, batch.label_B))
        vector_BLD = student.embed(deep_BLC, batch.label_B)
    entropy = torch.nn.functional.cross_entropy(logit_BLV.flatten(0, 1), batch.token_BL.flatten())
    distance = (vector_BLD - CODES.code_VD[batch.token_BL]).square().mean()
    metrics = ours.step(batch)
    assert metrics["loss"] == pytest.approx(float(0.1 * entropy + distance), rel=1e-4)
    assert metrics["sequence_loss/teacher"] == pytest.approx(float(distance), rel=1e-4)


def test_known_slots_have_no_loss_and_are_read_as_data():
    """From position 3 on one slot is noise: what the others' noise was does not matter."""
    batch = pairs(0)
    alike = []
    for seeds in (batch.seed_B, batch.seed_B.roll(2)):
        objective = dd1.Config().build(resources_at((1, 3)))
        student = learner(10)[1]
        known = [objective._is_data(batch)[b].sum() == 2 for b in range(ROWS)]
        read = objective.read(student, batch.label_B, replace(batch, seed_B=seeds))
        alike.append(read.hidden_BLC[torch.tensor(known)])
    assert 0.3 < sum(known) / ROWS < 0.7
    assert torch.equal(alike[0][:, :2], alike[1][:, :2])
    assert not torch.equal(alike[0][:, 2], alike[1][:, 2])


def test_images_are_compared_after_the_decoder_which_stays_as_it_is():
    weight = torch.ones(3, requires_grad=True)
    config = dd1.Config(cross_entropy=0.0)
    ours, student = learner(10, config, positions=(1,), weight=weight.detach())
    batch = pairs(0)
    noise_BLD = gaussian(batch.id_B.tolist(), 3, 2)
    deep_BLC = student.trunk(batch.label_B, noise_BLD, torch.zeros(ROWS, 3, dtype=torch.bool))
    vector_BLD = student.embed(deep_BLC, batch.label_B)
    wanted = (vector_BLD.tanh() - CODES.code_VD[batch.token_BL].tanh()).square().sum((1, 2)).mean()
    (grad,) = torch.autograd.grad(wanted, student.final_layer_conti.linear.weight)
    before = student.final_layer_conti.linear.weight.detach().clone()
    metrics = ours.step(batch)
    assert metrics["loss"] == pytest.approx(wanted.item(), rel=1e-4)
    assert grad.abs().max() > 0  # through the decoder to the vectors
    assert not torch.equal(student.final_layer_conti.linear.weight, before)
    assert torch.equal(weight, torch.ones(3))


def test_the_average_is_that_of_every_number_by_itself():
    """min(0.99, (1 + step) / (10 + step)), small at first."""
    ours, student = learner(20)
    weight_D = student.final_layer_conti.linear.bias.detach()
    wanted = weight_D.tolist()
    for step in range(1, 6):
        ours.step(pairs(step * ROWS))
        decay = min(0.99, (1 + step) / (10 + step))
        wanted = [
            decay * w + (1 - decay) * v for w, v in zip(wanted, weight_D.tolist(), strict=True)
        ]
    found_D = dict(ours.states())["student_ema"]["final_layer_conti.linear.bias"]
    assert found_D.tolist() == pytest.approx(wanted, abs=1e-6)
    assert float((found_D - weight_D).abs().max()) > 1e-5


def test_rows_without_their_noise_are_refused():
    ours, _ = learner(10)
    for seed_B in (None, torch.full((ROWS,), -1)):
        with pytest.raises(InputError, match="given rows without the noise"):
            ours.step(replace(pairs(0), seed_B=seed_B))


def test_chunks_and_micro_batches_change_nothing(assert_same_gradients):
    found = []
    for micro_batch, chunk_tokens in ((ROWS, 4096), (100, 7)):
        settings = {"micro_batch": micro_batch, "chunk_tokens": chunk_tokens}
        ours, student = learner(10, dd1.Config(), **settings)
        metrics = ours.step(pairs(0))
        found.append((metrics, {n: p.grad.clone() for n, p in student.named_parameters()}))
    (wanted, its), (metrics, grads) = found
    assert metrics["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert_same_gradients(grads, its)


@pytest.mark.parametrize("shares", [{"data": 1.0}, {"teacher": 0.5, "student": 0.5}, {}])
def test_other_sources_than_the_teacher_are_refused(shares):
    with pytest.raises(InputError, match="learns from pairs of noise and the teacher's tokens"):
        dd1.Config().check(shares)
    dd1.Config().check({"teacher": 1.0})
