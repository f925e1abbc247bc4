"""Several ranks learn what one learns, and a block that is computed twice what it does once."""

import copy
from functools import partial

import pytest
import torch
from building.objectives import Company
from building.ranks import learner_of, on_ranks, trained

from common.exchange.signal import entropies
from common.exchange.signals import guided_hidden
from common.exchange.trajectory import concatenate
from common.files.tensors import state_digest
from learner.config import LearnerConfig
from learner.gradient_sum import GradientSum
from learner.process_group import SingleProcess

RUNS = [{}, {"activation_checkpointing": True}]


@torch.no_grad()
def score(batch, teacher):
    hidden_BLC = teacher.features(batch.label_B, batch.token_BL, batch.plan)
    columns = guided_hidden.Config().encode(hidden_BLC, teacher.head)
    columns["entropy"] = entropies(hidden_BLC, teacher.head)
    return batch.scored(columns, {"head": state_digest(teacher.head)})


@pytest.fixture
def parts(tiny, sampled):
    """Student, teacher and eight rows, of which the first two have no loss (they are data)."""
    student, teacher = tiny("llamagen", 0), tiny("llamagen", 1)
    batch = concatenate([sampled(student, seed) for seed in (0, 5)]).rows(slice(0, 8))
    return student, teacher, score(batch, teacher)


def without_dropout(student):
    student = copy.deepcopy(student)
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return student


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_learn_what_one_learns(parts, tmp_path, world):
    student, teacher, batch = parts
    work = partial(trained, without_dropout(student), teacher, batch)
    (alone,) = work([{}], SingleProcess())
    first, *_ = on_ranks(world, partial(work, RUNS), tmp_path)
    for found in first:
        for mine, theirs in zip(found.rows, alone.rows, strict=True):
            for key in ("loss", "grad_norm"):
                assert mine[key] == pytest.approx(theirs[key], rel=1e-6)
        assert found.sent.canary == pytest.approx(alone.sent.canary, rel=1e-6)
        for name, state in alone.states.items():
            for key, value in state.items():
                torch.testing.assert_close(found.states[name][key], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["llamagen", "var", "arpg"])
def test_what_is_computed_twice_has_the_same_dropout(tiny, sampled, kind):
    student, teacher = tiny(kind, 0), tiny(kind, 1)
    batch = score(sampled(student), teacher)
    once, twice = (
        learner_of(student, teacher, SingleProcess(), activation_checkpointing=again)
        for again in (False, True)
    )
    for _ in range(2):
        assert once.step(batch) == pytest.approx(twice.step(batch), abs=0, nan_ok=True)
    assert state_digest(once._student) == state_digest(twice._student)


class Alone(Company):
    """One rank of two, whose other is a copy of it; notes what is there when a sum begins."""

    def __init__(self, layers):
        self.rank, self._layers, self.begun = 0, layers, []

    def sum_(self, tensor):
        return tensor.mul_(2)

    def begin_sum(self, tensor):
        self.begun.append([layer.weight.grad is not None for layer in self._layers])
        return super().begin_sum(tensor)


def test_sums_are_under_way_before_the_backward_pass_ends():
    layers = torch.nn.ModuleList(torch.nn.Linear(3, 3, bias=False) for _ in range(3))
    unused = torch.nn.Parameter(torch.ones(2))
    ranks = Alone(layers)
    sums = GradientSum([unused, *layers.parameters()], ranks, 1)

    def loss():
        return torch.nn.Sequential(*layers)(torch.ones(1, 3)).square().sum()

    loss().backward()
    wanted = [4 * layer.weight.grad for layer in layers]
    assert not ranks.begun, "more micro-batches of the step follow"
    sums.begin()
    loss().backward()
    assert len(ranks.begun) == 3, "the one without a gradient waits for the end"
    sums.finish()
    assert len(ranks.begun) == 4
    for layer, grad in zip(layers, wanted, strict=True):
        torch.testing.assert_close(layer.weight.grad, grad)
    assert unused.grad.tolist() == [0, 0]
    for layer in layers:
        layer.weight.grad = None
    ranks.begun.clear()
    sums.begin()
    loss().backward()
    sums.finish()
    assert ranks.begun[0] == [False, False, True], "the last layer's leaves first"


def test_blocks_are_not_compiled_and_computed_twice():
    with pytest.raises(ValueError, match=r"learner\.compile and learner\.activation_checkpointing"):
        LearnerConfig(compile=True, activation_checkpointing=True)
