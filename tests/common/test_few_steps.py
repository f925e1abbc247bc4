"""Both ways to sample a student of Distilled Decoding 1 in more steps than one.

The acceptance test S3 of docs/one_step.md, "Students".
"""

from itertools import combinations

import pytest
import torch
from building.students import codes_of, student_of
from pydantic import ValidationError

from common.errors import InputError
from common.flow.laws import FlowCodes
from common.flow.solver import carry
from common.flow.solvers import rk4_rho
from common.models.few_steps import few_steps, nearest, teacher_inserted
from common.models.generator import Generated, gaussian
from common.models.guidance import Guidance
from rollout.inserted import inserted
from rollout.sampler import SamplingConfig, decode, noise

LABEL_B = torch.tensor([0, 2, 1])
SEEDS = [5, 6, 7]


def noise_for(student):
    return gaussian(SEEDS, student.spec.length, student.code_width)


class Exact:
    """F itself: every slot's noise is carried along the closed-form flow to a code, behind what the
    slots before it became; no approximation but the solver's."""

    def __init__(self, teacher):
        self.teacher, self.codes = teacher, FlowCodes(codes_of(teacher))
        self.known = []

    @torch.no_grad()
    def __call__(self, vector_BLD, known):
        self.known.append(known)
        teacher, code_VD = self.teacher, self.codes.code_VD
        plan = teacher.plan(SEEDS)
        token_BL = torch.cdist(vector_BLD, code_VD).argmin(-1)
        token_BL[:, known:] = 0
        for step, start in enumerate(plan.starts[:-1]):
            if start < known:
                continue
            logit_BnV = teacher(LABEL_B, token_BL, plan)[:, plan.slots(step)]
            law = self.codes.law(logit_BnV.log_softmax(-1).flatten(0, 1))
            noise_ND = vector_BLD[:, plan.slots(step)].flatten(0, 1)
            carried = carry(rk4_rho.Config(steps=20), law, noise_ND)
            token_BL[:, plan.slots(step)] = carried.token_N.view(3, -1)
        logit_BLV = torch.zeros(*token_BL.shape, 24).scatter(2, token_BL[..., None], 1.0)
        return Generated(token_BL, code_VD[token_BL], logit_BLV)


def test_few_steps_of_an_exact_student_give_the_same_tokens_from_any_points(teacher):
    exact = Exact(teacher)
    noise_BLD = gaussian(SEEDS, teacher.spec.length, codes_of(teacher).shape[1])
    once = exact(noise_BLD, 0)
    starts = teacher.plan(SEEDS).starts[1:-1]
    for count in range(len(starts) + 1):
        for chosen in combinations(starts, count):
            exact.known.clear()
            made = few_steps(exact, noise_BLD, (0, *chosen))
            assert exact.known == [0, *chosen]
            assert torch.equal(made.token_BL, once.token_BL)
    # What becomes of a trajectory whose noise is not put back.
    assert not torch.equal(exact(once.vector_BLD, starts[0]).token_BL, once.token_BL)


@pytest.mark.parametrize("guidance", [None, Guidance(scale=2.0)])
def test_a_teacher_is_asked_once_for_every_step_that_is_inserted(teacher, guidance):
    """Between two jumps, of which the first is left out where it would give nothing; the inserted
    tokens are what the sampler draws behind the same prefix, the rest follows from them."""
    sampling = SamplingConfig(top_k=12, guidance=guidance)
    exact, calls = Exact(teacher), []
    noise_BLD = gaussian(SEEDS, teacher.spec.length, codes_of(teacher).shape[1])
    once = exact(noise_BLD, 0).token_BL
    plan = teacher.plan(SEEDS)
    handle = teacher.head.register_forward_hook(lambda *_: calls.append(1))
    steps = len(plan.step_sizes)
    for first, last in combinations(range(steps + 1), 2):
        start, stop = plan.starts[first], plan.starts[last]
        draw = inserted(teacher, LABEL_B, SEEDS, sampling)
        exact.known.clear()
        asked = []

        def counted(token_Bn, end, draw=draw, asked=asked):
            before = len(calls)
            token_Bn = draw(token_Bn, end)
            asked.append(len(calls) - before)
            return token_Bn

        codes_VD = codes_of(teacher)
        made = teacher_inserted(exact, counted, noise_BLD, codes_VD, start=start, stop=stop)
        assert asked == [last - first]
        assert exact.known == ([0, stop] if start else [stop])
        assert torch.equal(made.token_BL[:, :start], once[:, :start])
        drawn = decode(
            teacher,
            LABEL_B,
            sampling=sampling,
            noise_BL=noise(SEEDS, teacher.spec.length),
            plan=plan,
            given_BL=once,
            prefix_B=torch.full((3,), start),
        )
        assert torch.equal(made.token_BL[:, :stop], drawn.token_BL[:, :stop])
        vector_BLD = torch.cat([codes_VD[made.token_BL[:, :stop]], noise_BLD[:, stop:]], 1)
        assert torch.equal(made.token_BL, exact(vector_BLD, stop).token_BL)
    handle.remove()


@torch.no_grad()
def test_trained_steps_are_jumps_with_the_noise_put_back(kind, make):
    positions = (1, 2, 3) if kind == "dd1_var" else (1, 3, 5)
    second = {"dd1_var": 1, "dd1_llamagen": 2}[kind]
    student = make(positions=positions, split=second)
    noise_BLD = noise_for(student)
    once = student(LABEL_B, noise_BLD)
    assert torch.equal(student.steps(LABEL_B, noise_BLD, [1]).vector_BLD, once.vector_BLD)
    mixed_BLD = torch.cat([once.vector_BLD[:, :second], noise_BLD[:, second:]], 1)
    twice = student.jump(LABEL_B, mixed_BLD, second)
    made = student.steps(LABEL_B, noise_BLD, positions[:2])
    assert torch.equal(made.vector_BLD, twice.vector_BLD)
    assert torch.equal(made.token_BL, twice.token_BL)
    assert not torch.equal(made.token_BL, once.token_BL)
    for wrong in ([], [2], [1, 4], [3, 1], [1, 1]):
        with pytest.raises(InputError, match="the student was trained at 1, "):
            student.steps(LABEL_B, noise_BLD, wrong)


def test_points_that_no_trajectory_has_are_refused(kind, teacher):
    with pytest.raises(ValidationError, match="positions 2, 3 do not rise from 1"):
        student_of(kind, teacher, positions=(2, 3))
    with pytest.raises(InputError, match=r"positions 1, 15 end behind the sequence"):
        student_of(kind, teacher, positions=(1, 15))
    with pytest.raises(InputError, match="split is 99"):
        student_of(kind, teacher, split=99)
    if kind == "dd1_var":
        with pytest.raises(InputError, match="whole scales; choose one of 0, 1, 5, 14"):
            student_of(kind, teacher, split=2)
    config, student = student_of(kind, teacher)
    with pytest.raises(InputError, match="24 codes, but there are 23 code vectors"):
        config.build(teacher.spec, student.codebook_VD[1:])


def test_the_nearest_code_is_the_one_of_least_distance():
    codebook_VD = torch.randn(50, 4) * torch.rand(50, 1)
    vector_BnD = torch.randn(3, 200, 4)
    wanted = torch.cdist(vector_BnD.double(), codebook_VD.double()).argmin(-1)
    assert torch.equal(nearest(vector_BnD, codebook_VD), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest(vector_BnD, codebook_VD), wanted)
    assert torch.equal(nearest(codebook_VD[None], codebook_VD)[0], torch.arange(50))
