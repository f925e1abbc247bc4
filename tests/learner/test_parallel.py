"""Several ranks learn what one learns, and a block that is computed twice what it does once."""

import copy
from functools import partial

import pytest
import torch
from building.objectives import Company
from building.ranks import Trial, learner_of, on_ranks
from torch.distributed.fsdp import FSDPModule

from common.errors import InputError
from common.exchange.entropy import entropies
from common.exchange.signals import guided_hidden
from common.exchange.trajectory import concatenate
from common.files.snapshots import Snapshots
from common.files.tensors import state_digest
from common.models.canary import canary
from learner.config import LearnerConfig
from learner.gradient_sum import GradientSum
from learner.process_group import SingleProcess
from learner.sharded import require_sums

RUNS = [
    {"parallel": parallel, "activation_checkpointing": again}
    for parallel in ("ddp", "fsdp")
    for again in (False, True)
]


@torch.no_grad()
def score(batch, teacher):
    hidden_BLC = teacher.features(batch.label_B, batch.token_BL, batch.plan)
    columns = guided_hidden.Config().encode(hidden_BLC, teacher.head)
    columns["entropy"] = entropies(hidden_BLC, teacher.head)
    return batch.scored(columns, {"head": state_digest(teacher.head)})


@pytest.fixture
def parts(tiny, sampled):
    """Student, teacher and eight rows, of which the first two are data and have no loss."""
    student, teacher = tiny("llamagen", 0), tiny("llamagen", 1)
    batch = concatenate([sampled(student, seed) for seed in (0, 5)]).rows(slice(0, 8))
    return student, teacher, score(batch, teacher)


def without_dropout(student):
    student = copy.deepcopy(student)
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return student


def assert_same(found, wanted, steps=slice(None)):
    """Losses to 1e-6, and what is seen of the student."""
    assert len(found.rows) == len(wanted.rows[steps])
    for mine, theirs in zip(found.rows, wanted.rows[steps], strict=True):
        for key in ("loss", "grad_norm"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-6)
    assert found.sent.canary.value == pytest.approx(wanted.sent.canary.value, rel=1e-6)
    assert found.states.keys() == wanted.states.keys()
    for name, state in wanted.states.items():
        for key, value in state.items():
            torch.testing.assert_close(found.states[name][key], value, atol=1e-6, rtol=0)
        assert list(found.states[name]) == list(state)


@pytest.mark.parametrize(("world", "runs"), [(2, RUNS), (4, RUNS[::3])])
def test_ranks_learn_what_one_learns(parts, tmp_path, world, runs):
    student, teacher, batch = parts
    trial = Trial(without_dropout(student), teacher, batch)
    (alone,) = trial.runs([{}], SingleProcess())
    first, *_ = on_ranks(world, partial(trial.runs, runs), tmp_path)
    for found in first:
        assert_same(found, alone)


FSDP = {"parallel": "fsdp"}


def test_snapshots_move_between_ranks_that_hold_parts_and_others(parts, tmp_path):
    student, teacher, batch = parts
    trial = Trial(without_dropout(student), teacher, batch)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    whole = trial.stored({}, ours, SingleProcess())
    on_ranks(2, partial(trial.stored, FSDP, theirs), tmp_path)
    shards = [f"rows-{number}-of-2-1.safetensors" for number in (1, 2)]
    stored = theirs / "step-00000001"
    assert sorted(path.name for path in stored.iterdir()) == ["facts.json", *shards, "tensors.pt"]
    after = slice(1, None)
    assert_same(trial.stored({}, theirs, SingleProcess()), whole, after)
    for root, settings in ((ours, FSDP), (theirs, {})):
        (tmp_path / "meet-2").unlink()
        first, _ = on_ranks(2, partial(trial.stored, settings, root), tmp_path)
        assert_same(first, whole, after)

    snapshots = Snapshots(theirs)
    assert snapshots.verify(1) == {"by": 0}
    shard = stored / shards[1]
    kept = shard.read_bytes()
    for damage in (kept[:-1], kept[:-1] + bytes([kept[-1] ^ 1])):
        shard.write_bytes(damage)
        for read in (snapshots.verify, snapshots.load):
            with pytest.raises(InputError, match=r"rows-2-of-2-1\.safetensors is damaged"):
                read(1)
    shard.unlink()
    with pytest.raises(InputError, match=r"rows-2-of-2-1\.safetensors is damaged: No such file"):
        snapshots.verify(1)


def test_parts_in_half_precision_are_gathered_by_a_rank_that_may_take_long(parts, tmp_path):
    (found, *first), other = on_ranks(2, Trial(*parts).awaited, tmp_path)
    assert first == [["student", "student_ema"], "done", 7]
    assert other == (None, [], None, 7)
    exact = canary(parts[0])
    assert found == (pytest.approx(exact, abs=0.05), 0.1)
    assert abs(found.value - exact) > 1e-6, "computed as a step computes"


@pytest.mark.parametrize(("who", "kept"), [((0, 1), [2]), ((1,), [])])
def test_a_run_of_parts_that_fails_is_stored_where_all_ranks_answer(parts, tmp_path, who, kept):
    root = tmp_path / "snapshots"
    found = on_ranks(2, partial(Trial(*parts).failing, who, root), tmp_path)
    assert Snapshots(root).steps() == kept
    if kept:
        assert found == ["the teacher is gone"] * 2
        assert Snapshots(root).verify(2)["ledger"]["step"] == 2
    else:
        lost = "not all learner ranks answered, so step 2 could not be stored"
        said = f"the teacher is gone; {lost}: there is no snapshot"
        assert found == ["another rank left", said]


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


def test_a_torch_that_only_averages_is_refused():
    require_sums(FSDPModule)
    with pytest.raises(InputError, match=r"learner\.parallel is fsdp, but torch .*parallel=ddp"):
        require_sums(torch.nn.Module)


def test_blocks_are_not_compiled_and_computed_twice():
    with pytest.raises(ValueError, match=r"learner\.compile and learner\.activation_checkpointing"):
        LearnerConfig(compile=True, activation_checkpointing=True)
    with pytest.raises(ValueError, match=r"learner\.compile is true and learner\.parallel is fsdp"):
        LearnerConfig(compile=True, parallel="fsdp")
