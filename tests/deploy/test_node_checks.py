"""Who of a node's workers adds up a version's bytes."""

from threading import Timer

from deploy.backend.node_checks import Copy, NodeChecks

HERE, THERE = Copy("here", "object"), Copy("there", "object")


def test_one_of_every_node_checks_and_the_others_hear_of_it():
    checks = NodeChecks()
    assert [checks.is_first(copy) for copy in (HERE, HERE, THERE)] == [True, False, True]
    Timer(0.05, checks.found, (HERE, True)).start()
    assert checks.is_whole(HERE, 60)
    checks.found(THERE, False)
    assert not checks.is_whole(THERE, 60)
    assert not checks.is_first(HERE)


def test_who_was_to_check_may_be_gone():
    checks = NodeChecks()
    assert checks.is_first(HERE)
    assert not checks.is_whole(HERE, 0.01)
    assert not checks.is_whole(THERE, 60), "nobody was asked to"


def test_a_check_does_not_last():
    checks = NodeChecks(lasting=0)
    assert checks.is_first(HERE)
    checks.found(HERE, True)
    assert checks.is_first(HERE)
    assert not checks.is_whole(HERE, 0.01)
