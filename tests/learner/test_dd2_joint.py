"""Both stages of Distilled Decoding 2 on a teacher whose joint distribution is known, through the
learners of the pipeline: the acceptance tests D5 and D6 (docs/one_step.md, "Checked on tables").

Three codes in three slots, so that a short training already tells what is learned from what is not;
`benchmarks/dd2_toy.py` has eight codes and takes its time.
"""

import copy
from functools import cache

import torch
from torch import nn

from benchmarks.dd2_toy import Loops, Settings
from benchmarks.tabular import Tabular
from common.exchange.signals import guided_hidden
from common.exchange.trajectory import TrajectoryBatch
from common.models.plan import raster_plan
from learner.alternation import alternation
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.objectives import dd2_csd, dd2_gts
from learner.resources import Resources
from learner.teacher_targets import TeacherTargets

TABLE = Tabular(codes=3, spread=2.5, seed=104)
ROWS, STAGE1, STAGE2, K, DRAWN = 128, 200, 40, 3, 5_000
LABEL_B = torch.arange(ROWS) % 2
SMALL = Settings(width=32, depth=2, head_width=32)


def optimizer(rate):
    return {"learning_rate": rate, "ema": 0.9, "warmup": 5, "schedule": "cosine"}


def settings(steps, rate):
    given = {"steps": steps, "optimizer": optimizer(rate), "max_staleness": 0}
    sizes = {"global_batch_size": ROWS, "micro_batch": ROWS}
    return LearnerConfig.model_validate({**given, **sizes})


def resources(guidance=None):
    return Resources(codebook=lambda: TABLE.codes.code_VD, guidance=lambda: guidance)


def targets():
    """Of a teacher that sends its log-probabilities themselves."""
    head = nn.Linear(3, 3, bias=False)
    nn.init.eye_(head.weight)
    return TeacherTargets(guided_hidden.Config(), head, "table")


def rows(step, token_BL, policy, **columns):
    id_B = torch.arange(ROWS) + step * ROWS
    given = {"version_B": torch.zeros_like(id_B), **columns}
    return TrajectoryBatch(
        spec=TABLE.spec,
        id_B=id_B,
        label_B=LABEL_B,
        context=(policy,) * ROWS,
        policy=(policy,) * ROWS,
        law=("exact",) * ROWS,
        prefix_B=torch.zeros_like(id_B),
        plan=raster_plan(ROWS, 3),
        token_BL=token_BL,
        logprob_BL=torch.zeros(ROWS, 3),
        signal={"hidden": TABLE.logprob(LABEL_B, token_BL)},
        facts={"head": "table"},
        **given,
    )


@torch.no_grad()
def generated(model, step, version):
    """Rows of the generator; what comes before a slot is to the teacher its nearest code."""
    seed_B = torch.arange(ROWS) + 10**6 + step * ROWS
    made = model.generate(LABEL_B, seed_B.tolist())
    columns = {"seed_B": seed_B, "vector_BLD": made.vector_BLD}
    return rows(step, made.token_BL, "student", version_B=torch.full((ROWS,), version), **columns)


@cache
def first_stage():
    """An autoregressive diffusion model."""
    model, random = Loops(TABLE, SMALL).model(), torch.Generator().manual_seed(1)
    objective = dd2_gts.Config(draws=2).build(resources())
    ours = Learner(
        settings(STAGE1, 1e-2), objective, model, seed=0, contexts=("teacher",), teacher=targets()
    )
    for step in range(STAGE1):
        ours.step(rows(step, TABLE.sample(LABEL_B, random), "teacher"))
    return model.eval()


def second_stage(start):
    """(averaged generator, counts of steps) after so many steps of both."""
    generator, guidance = copy.deepcopy(start), copy.deepcopy(start)
    config = dd2_csd.Config.model_validate(
        {"guidance": {"steps": K, "optimizer": optimizer(8e-3)}, "mismatch": 0.0, "draws": 2}
    )
    ours = alternation(
        settings(STAGE2 * (K + 1), 4e-3),
        config,
        resources(guidance),
        (generator, guidance),
        seed=0,
        contexts=("student",),
        teacher=targets(),
    )
    version, metrics = 0, {}
    for step in range(STAGE2 * (K + 1)):
        version = step if ours.schedule.is_published(step) else version
        metrics = ours.step(generated(generator, step, version))
    generator.load_state_dict(dict(ours.states())["student_ema"])
    return generator.eval(), (metrics["generator/steps"], metrics["guidance/steps"])


@torch.no_grad()
def distance(model):
    """Total variation of one step from fresh noise, mean of the classes."""

    def make(label_B):
        return model.generate(label_B, range(10**9, 10**9 + DRAWN)).token_BL

    return sum(TABLE.distances(make, DRAWN)) / 2


def bound():
    """Of the best that slots alone could do."""
    return sum(TABLE.independent()) / 2


def test_the_first_stage_makes_a_diffusion_model_and_no_generator():
    model = first_stage()
    with torch.no_grad():
        assert Loops(TABLE, SMALL).diffused(model, count=4_000) < 0.2
    assert distance(model) > bound()


def test_the_second_stage_makes_a_generator_whose_slots_depend_on_each_other():
    """Below what slots alone could do at best; networks that nothing taught do not get there in as
    many steps. (Begun from other weights, it ends between .29 and .46, the bound is .56.)"""
    generator, counts = second_stage(first_stage())
    assert counts == (STAGE2, STAGE2 * K)
    assert distance(generator) < bound() - 0.05
    control, _ = second_stage(Loops(TABLE, SMALL).model())
    assert distance(control) > distance(generator) + 0.1
