"""An actor without whom nobody goes on, on a machine that hangs: nobody who waits for it hears."""

import threading
from types import SimpleNamespace

import pytest
from building.waiting import until

from common.errors import RunFailed
from deploy.backend.head_watch import HeadWatch
from deploy.backend.heartbeat import Heartbeat


@pytest.fixture
def head():
    """One that is there."""
    ended = threading.Event()
    return SimpleNamespace(lost=lambda: None, wait=ended.wait, end=ended.set, ended=ended)


def heartbeat(lost, watch, unheard=0.0):
    """Gives up that watch alone: other tests may have clusters in this process."""
    return Heartbeat(dict, lambda: 1.0, lost, unheard=unheard, give_up=watch.give_up)


def test_the_command_ends_with_the_cause(head):
    forced, others = [], {"worker-1": "others take its place", "metrics": "nobody needs it"}
    with HeadWatch(head, force=forced.append) as watch:
        heartbeat(others, watch).check()
        heartbeat({"buffer": "the buffer hangs"}, watch, unheard=60.0).check()
        with pytest.raises(RunFailed, match=r"^the buffer hangs$"):
            heartbeat({"buffer": "the buffer hangs"}, watch).check()
    assert not forced, "it ended in order"


def test_a_command_that_hangs_on_its_way_out_is_ended_with_it(head, capfd):
    forced = []
    with HeadWatch(head, force=forced.append, patience=0.1) as watch:
        with pytest.raises(RunFailed):
            heartbeat({"ledger": "the ledger hangs"}, watch).check()
        until(lambda: forced)
    assert forced == [1]
    assert head.ended.is_set()
    assert capfd.readouterr().err.splitlines()[-1] == "varkd: the ledger hangs"
