"""An actor without whom nobody goes on, on a machine that hangs: nobody who waits for it hears."""

import threading
from types import SimpleNamespace

import pytest
from building.waiting import until

from common.errors import RunFailed
from deploy.backend.head_watch import HeadWatch
from deploy.backend.heartbeat import Heartbeat


def heartbeat(lost, unheard=0.0):
    return Heartbeat(dict, lambda: 1.0, lost, unheard=unheard)


@pytest.fixture
def head():
    """One that is there."""
    ended = threading.Event()
    return SimpleNamespace(lost=lambda: None, end=ended.set, ended=ended)


def test_the_command_ends_with_the_cause(head):
    forced = []
    with HeadWatch(head, force=forced.append):
        heartbeat({"worker-1": "others take its place", "metrics": "nobody needs it"}).check()
        heartbeat({"buffer": "the buffer hangs"}, unheard=60.0).check()
        with pytest.raises(RunFailed, match=r"^the buffer hangs$"):
            heartbeat({"buffer": "the buffer hangs"}).check()
    assert not forced, "it ended in order"


def test_a_command_that_hangs_on_its_way_out_is_ended_with_it(head, capfd):
    forced = []
    with HeadWatch(head, force=forced.append, patience=0.1):
        with pytest.raises(RunFailed):
            heartbeat({"ledger": "the ledger hangs"}).check()
        until(lambda: forced)
    assert forced == [1]
    assert head.ended.is_set()
    assert capfd.readouterr().err.splitlines()[-1] == "varkd: the ledger hangs"
