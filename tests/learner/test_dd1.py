"""Distilled Decoding 1 on a teacher whose joint distribution is known: the acceptance tests S4 and
S5 of docs/one_step.md, through the learner itself."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from building.dependent_codes import EVERY, V, independent, total_variation

from common.errors import InputError
from common.exchange.trajectory import TrajectoryBatch
from common.flow.laws import FlowCodes
from common.flow.solver import carry
from common.flow.solvers import rk4_rho
from common.models.backbones import llamagen
from common.models.generator import gaussian
from common.models.generators import dd1_llamagen
from common.models.plan import raster_plan
from common.spec import SequenceSpec
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.objectives import dd1
from learner.resources import Resources

SPEC = SequenceSpec(V, 3, (1, 3), num_classes=2)
CODES = FlowCodes(torch.randn(V, 2, generator=torch.Generator().manual_seed(0)))
TABLE = 2.5 * torch.randn(2, V + 1, V + 1, V, generator=torch.Generator().manual_seed(1))
"""Logits of a code after the class and the two codes before it; V where there is none."""
ROWS, PAIRS, DRAWN = 256, 8192, 5_000


def logprob(label_B, token_BL, slot):
    nothing = torch.full_like(label_B, V)
    before = token_BL[:, slot - 1] if slot > 0 else nothing
    second = token_BL[:, slot - 2] if slot > 1 else nothing
    return TABLE[label_B, second, before].log_softmax(-1)


def tokens_of(label_B, noise_BLD):
    """What the flow carries noise to, slot after slot."""
    token_BL = torch.zeros(len(label_B), 3, dtype=torch.long)
    for slot in range(3):
        law = CODES.law(logprob(label_B, token_BL, slot))
        token_BL[:, slot] = carry(rk4_rho.Config(steps=10), law, noise_BLD[:, slot]).token_N
    return token_BL


def joint(label):
    label_N = torch.full((len(EVERY),), label)
    parts = [logprob(label_N, EVERY, k).gather(1, EVERY[:, k : k + 1]) for k in range(3)]
    return torch.cat(parts, 1).double().sum(1).exp()


@cache
def made():
    """The finite set: labels and tokens of the seeds 0, 1, 2, ..."""
    label_N = torch.arange(PAIRS) % 2
    return label_N, tokens_of(label_N, gaussian(range(PAIRS), 3, 2))


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


@torch.no_grad()
def distances(student, positions):
    """By class: total variation of what the student makes of fresh noise."""
    seeds = range(10**7, 10**7 + DRAWN)
    noise_BLD = gaussian(seeds, 3, 2)
    found = []
    for label in (0, 1):
        label_B = torch.full((DRAWN,), label)
        found.append(
            total_variation(student.steps(label_B, noise_BLD, positions).token_BL, joint(label))
        )
    return found


def bounds():
    """By class: total variation of the best that slots alone can do."""
    return [independent(joint(label)) for label in (0, 1)]


def test_one_step_learns_how_the_teachers_codes_depend_on_each_other():
    """And two steps more of it; docs/one_step.md has what longer training gives."""
    student, metrics = trained(200)
    once, twice = distances(student, (1,)), distances(student, (1, 3))
    assert all(found < bound / 2 for found, bound in zip(once, bounds(), strict=True))
    assert sum(twice) < sum(once)
    label_B, noise_BLD = torch.ones(1000).long(), gaussian(range(PAIRS, PAIRS + 1000), 3, 2)
    with torch.no_grad():
        right_BL = student(label_B, noise_BLD).token_BL == tokens_of(label_B, noise_BLD)
    first, _, last = right_BL.double().mean(0).tolist()
    assert first > 0.95
    assert 0.7 < last < first
    assert metrics["sequence_loss/teacher"] < 0.35


def test_with_another_rows_noise_nothing_is_learned():
    """The negative control: two rows on, the class is the same, the noise is not."""
    student, _ = trained(60, shifted=2)
    assert sum(distances(student, (1,))) >= 0.8 * sum(bounds())


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
    weight_D = student.final_layer_conti.linear.bias
    wanted = weight_D.tolist()
    for step in range(1, 6):
        ours.step(pairs(step * ROWS))
        decay = min(0.99, (1 + step) / (10 + step))
        wanted = [decay * w + (1 - decay) * float(v) for w, v in zip(wanted, weight_D, strict=True)]
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
