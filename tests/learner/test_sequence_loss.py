"""A loss of whole sequences with a resource of its own, against a loop over rows in float64."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from building.objectives import Company

from common.exchange.entropy import entropies
from common.exchange.signals import guided_hidden
from common.files.tensors import state_digest
from common.models.plan import random_order_plan
from learner.config import LearnerConfig
from learner.divergence import forward_kl
from learner.learner import Learner
from learner.objective import Objective, ObjectiveConfig, PlainObjective, SequenceRows
from learner.resources import Resources
from learner.teacher_targets import TeacherTargets
from learner.token_weights import TokenWeights
from teacher_server.teacher import guided_features

V, L, D = 24, 6, 3
CODEBOOK_VD = torch.randn(V, D, generator=torch.Generator().manual_seed(5))


class Config(ObjectiveConfig):
    scale: float = 2.0

    def resources(self):
        return frozenset({"codebook"})

    def build(self, resources):
        return Decoded(self, resources.codebook_VD)


class Decoded(Objective):
    """KL(p || q) per token; per row the error of the expected code vectors, times an advantage."""

    def __init__(self, config, codebook_VD):
        self._config, self._codebook_VD = config, codebook_VD

    @property
    def config(self):
        return self._config

    def token_weights(self, batch, state, ranks):
        support_BL = self.support(batch)
        reward_B = batch.label_B.double() + batch.token_BL[:, 0]
        pair = ranks.sum_(torch.stack([reward_B.sum(), torch.tensor(len(batch)).double()]))
        column = {"advantage": (reward_B - pair[0] / pair[1]).float()}
        weight_B = 1 + batch.prefix_B.float()
        return TokenWeights(
            support_BL.float(),
            support_BL,
            support_BL,
            sequence_B=weight_B,
            sequence_column=column,
        )

    def token_loss(self, chunk):
        return forward_kl(chunk.student_NV, chunk.required_teacher_NV)

    def sequence_loss(self, rows):
        expected_BLD = rows.student_BLV.exp() @ self._codebook_VD
        error_BLD = expected_BLD - self._codebook_VD[rows.batch.token_BL]
        error_B = error_BLD.square().mean((1, 2))
        return self._config.scale * rows.sequence_column["advantage"] * error_B


@pytest.fixture
def pair(tiny):
    models = tiny("llamagen", 0), tiny("llamagen", 1)
    for module in (*models[0].modules(), *models[1].modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return models


@pytest.fixture
def scored(pair, sampled):
    """One data row and three rollouts with prefixes 0, 2 and 4, as the teacher sends them."""
    student, teacher = pair
    batch = sampled(student).rows(slice(1, 5))
    with torch.no_grad():
        hidden_BLC = guided_features(teacher, batch, None)
        columns = guided_hidden.Config().encode(hidden_BLC, teacher.head)
        columns["entropy"] = entropies(hidden_BLC, teacher.head)
    return batch.scored(columns, {"head": state_digest(teacher.head)})


@pytest.fixture
def step(pair):
    """Metrics and gradients of one step."""
    student, teacher = pair

    def run(batch, objective=None, ranks=None, **given):
        head = copy.deepcopy(teacher.head)
        settings = {"optimizer": {"max_grad_norm": 1e6}, "profile_every": 0} | given
        learner = Learner(
            LearnerConfig.model_validate(settings),
            objective or Config().build(Resources(codebook=lambda: CODEBOOK_VD)),
            copy.deepcopy(student),
            seed=0,
            contexts=("data", "student"),
            teacher=TeacherTargets(guided_hidden.Config(), head, state_digest(head)),
            ranks=ranks,
        )
        metrics = learner.step(batch)
        return metrics, {n: p.grad.clone() for n, p in learner._student.named_parameters()}

    return run


@pytest.fixture
def literal(pair, scored):
    """The step's loss as sums over rows and slots, and its gradients."""
    student, teacher = (copy.deepcopy(model).double() for model in pair)
    batch, code_VD = scored, CODEBOOK_VD.double()
    q = student(batch.label_B, batch.token_BL, batch.plan).log_softmax(-1)
    p = teacher(batch.label_B, batch.token_BL, batch.plan).log_softmax(-1).detach()
    rewards = [int(batch.label_B[b] + batch.token_BL[b, 0]) for b in range(4)]
    total, of_rows = torch.zeros((), dtype=torch.double), [0.0] * 4
    counts = {"data": L, "student": 6 + 4 + 2}
    for b, context in enumerate(batch.context):
        share = {"data": 1, "student": 3}[context] / 4
        first = 0 if context == "data" else int(batch.prefix_B[b])
        for t in range(first, L):
            divergence = (p[b, t].exp() * (p[b, t] - q[b, t])).sum()
            total = total + share / counts[context] * divergence
        error = sum(
            ((q[b, t].exp()[:, None] * code_VD).sum(0) - code_VD[batch.token_BL[b, t]]).square()
            for t in range(L)
        )
        loss = 2.0 * (rewards[b] - sum(rewards) / 4) * error.sum() / (L * D)
        of_rows[b] = float(loss.detach())
        total = total + (1 + int(batch.prefix_B[b])) * loss / 4
    total.backward()
    grads = {name: weight.grad.float() for name, weight in student.named_parameters()}
    return float(total.detach()), of_rows, grads


@pytest.mark.parametrize(("micro_batch", "chunk_tokens"), [(4, 1000), (3, 5), (1, 1)])
def test_the_step_is_the_sum_over_rows_under_any_split(
    scored, step, literal, assert_same_gradients, micro_batch, chunk_tokens
):
    wanted, of_rows, wanted_grads = literal
    metrics, grads = step(scored, micro_batch=micro_batch, chunk_tokens=chunk_tokens)
    assert metrics["loss"] == pytest.approx(wanted, rel=1e-5)
    assert metrics["sequence_loss/data"] == pytest.approx(of_rows[0], rel=1e-5)
    assert metrics["sequence_loss/student"] == pytest.approx(sum(of_rows[1:]) / 3, rel=1e-5)
    assert_same_gradients(grads, wanted_grads, share=1e-3)


def test_two_ranks_with_unequal_shares_learn_as_one(scored, step, literal, assert_same_gradients):
    wanted, of_rows, wanted_grads = literal
    shared, barrier = {}, threading.Barrier(2)
    shares = [scored.rows(slice(0, 1)), scored.rows(slice(1, 4))]
    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(lambda rank: step(shares[rank], ranks=Company(rank, shared, barrier)), (0, 1))
        )
    for metrics, grads in found:
        assert metrics["loss"] == pytest.approx(wanted, rel=1e-5)
        assert metrics["sequence_loss/student"] == pytest.approx(sum(of_rows[1:]) / 3, rel=1e-5)
        assert_same_gradients(grads, wanted_grads, share=1e-3)


def test_without_autocast_the_rows_are_float32_whatever_the_forward_pass_is(scored, step):
    half, _ = step(scored, dtype="bfloat16")
    whole, _ = step(scored)
    assert half["sequence_loss/student"] == pytest.approx(whole["sequence_loss/student"], rel=0.1)
    assert half["sequence_loss/student"] != whole["sequence_loss/student"]


class Contexts(PlainObjective):
    """Counts rows: 1 for each."""

    uses_data = False

    def token_loss(self, chunk):
        return 0 * chunk.student_token_N

    def sequence_loss(self, rows):
        return rows.hidden_BLC.sum((1, 2)) * 0 + 1


def test_rows_of_a_context_without_a_loss_have_none(scored, step):
    metrics, _ = step(scored, Contexts())
    assert metrics["loss"] == pytest.approx(3 / 4)
    assert metrics["sequence_loss/student"] == 1
    assert "sequence_loss/data" not in metrics


class OneNumber(Contexts):
    def sequence_loss(self, rows):
        return rows.hidden_BLC.sum()


def test_a_loss_that_is_no_number_per_row_is_refused(scored, step):
    with pytest.raises(ValueError, match="expected one number for each of 4 rows"):
        step(scored, OneNumber())


def test_rows_come_back_in_the_order_of_the_grid(scored, pair):
    plan = random_order_plan(range(4), (1,) * L)
    batch = replace(scored, plan=plan)
    rows = SequenceRows(batch, torch.zeros(4, L, 2), pair[0], {}, {})
    cell_BL = rows.in_grid_order(batch.token_BL)
    value_BL2 = torch.stack([batch.token_BL, -batch.token_BL], dim=-1)
    for b in range(4):
        for slot in range(L):
            place = int(plan.order_BL[b, slot])
            assert cell_BL[b, place] == batch.token_BL[b, slot]
            assert rows.in_grid_order(value_BL2)[b, place, 1] == -batch.token_BL[b, slot]
