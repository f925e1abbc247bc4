"""Several actors of one service behind one name; without a cluster."""

from typing import Any, cast

from deploy.backend.proxies import ReplicaProxy


def test_calls_go_round_the_replicas():
    class Counts:
        def __init__(self):
            self.calls = 0

        def score(self, record):
            self.calls += 1
            return record

    replicas = [Counts() for _ in range(3)]
    one = ReplicaProxy(cast(Any, replicas), 1)
    assert [one.score(number) for number in range(7)] == list(range(7))
    assert [replica.calls for replica in replicas] == [2, 3, 2]
