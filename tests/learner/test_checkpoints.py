"""Snapshots that are written beside training: of that moment, one at a time, no error lost."""

import threading

import pytest
import torch

from common.errors import Diverged, InputError
from common.files.snapshots import Snapshots
from learner.checkpoints import Checkpoints


class Slow(Snapshots):
    """Writes when it is let."""

    def __init__(self, root, *, error=None):
        super().__init__(root, finite=("student",))
        self.let, self.error = threading.Event(), error

    def write(self, step, tensors, facts):
        assert self.let.wait(10)
        if self.error is not None:
            raise self.error
        super().write(step, tensors, facts)


def test_what_is_written_is_the_state_of_that_moment(tmp_path):
    slow = Slow(tmp_path)
    checkpoints = Checkpoints(slow, every=2, minutes=0)
    checkpoints.begin(0)
    shared = torch.zeros(4)
    state = {"student": {"a": shared, "b": shared.view(4)}, "optimizer": {"groups": [{"lr": 0.5}]}}
    bytes_, facts = torch.arange(3, dtype=torch.uint8), {"ledger": {"step": 2}}
    assert checkpoints.is_due(2)
    checkpoints.save(2, state, {"versions": {"1": bytes_}}, facts)
    shared += 1
    assert slow.steps() == [], "training goes on meanwhile"
    assert not checkpoints.is_missing(2)
    assert not checkpoints.is_due(2)
    assert not checkpoints.is_due(3)
    threading.Timer(0.05, slow.let.set).start()
    checkpoints.save(4, state, {"versions": {}}, facts)
    assert slow.steps() == [2], "the second one waits for the first one"
    checkpoints.close()
    assert slow.steps() == [2, 4]
    found = slow.load(2)[0]
    assert found["student"]["a"].tolist() == [0] * 4
    assert found["student"]["a"].data_ptr() == found["student"]["b"].data_ptr(), "stored once"
    assert found["optimizer"] == state["optimizer"]
    assert found["versions"]["1"].tolist() == [0, 1, 2]
    assert slow.load(4)[0]["student"]["a"].tolist() == [1] * 4


@pytest.mark.parametrize("told_by", ["check", "settle", "save"])
def test_what_could_not_be_written_is_said_and_missing(tmp_path, told_by):
    slow = Slow(tmp_path, error=InputError("the disk is full"))
    checkpoints = Checkpoints(slow, every=1, minutes=0)
    state = {"student": {"a": torch.zeros(4)}}
    checkpoints.save(2, state, {}, {})
    checkpoints.check()
    slow.let.set()
    calls = {"settle": checkpoints.settle, "save": lambda: checkpoints.save(3, state, {}, {})}
    if told_by == "check":
        checkpoints._writing.exception(10)
    with pytest.raises(InputError, match="the disk is full"):
        calls.get(told_by, checkpoints.check)()
    assert checkpoints.is_missing(2)
    slow.error = None
    checkpoints.save(2, state, {}, {})
    checkpoints.settle()
    assert slow.steps() == [2]


def test_what_is_not_finite_is_refused_at_once(tmp_path):
    checkpoints = Checkpoints(Slow(tmp_path), every=1, minutes=0)
    with pytest.raises(Diverged, match=r"step 3: student\.a is not finite"):
        checkpoints.save(3, {"student": {"a": torch.tensor([torch.nan])}}, {}, {})
    assert checkpoints.describe() == "there is no snapshot"
