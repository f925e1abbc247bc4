"""What goes by reference on Ray: records and weights travel once, and outlive who sent them."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from building.records import START

from common.errors import ServiceDied
from common.exchange.buffer import Buffer
from common.exchange.ledger import Ledger
from common.exchange.schedule import Schedule
from common.exchange.weights import Weights, WeightStore
from deploy.backend.actors import COMES_ALONG, ActorOptions, WeightActorHost
from teacher_server.scorer import Delivery

SCHEDULE = Schedule(10, 4, 4, max_staleness=4, publish_every=1)


@pytest.fixture
def sending():
    """A class of senders whose records count how often they were serialised; it travels to actors,
    which cannot import this file."""

    class Counted:
        def __init__(self, lease):
            facts = {"lease": lease.number, "generation": lease.generation, "oldest": -1}
            self.facts = {name: str(value) for name, value in facts.items()}
            self.num_rows, self.nbytes, self.times = lease.size, 2**20, 0
            self.content = bytes(self.nbytes)

        @property
        def schema(self):
            return pa.schema([], metadata=self.facts)

        def __getstate__(self):
            self.times += 1
            return self.__dict__

    class Sender:
        def __init__(self, buffer):
            self.buffer, self.delivery, self.records = buffer, Delivery(buffer), {}

        def make(self, lease):
            self.records[lease.number] = Counted(lease)

        def put(self, number, timeout):
            return self.buffer.put(self.records[number], timeout)

        def deliver(self, number):
            return self.delivery.score(self.records[number])

        def times(self):
            return [record.times for record in self.records.values()]

    return Sender


@pytest.fixture
def wired(placed, sending):
    """(ledger, buffer, sender)."""
    ledger = placed(Ledger, SCHEDULE, site=ActorOptions("ledger"))
    buffer = placed(Buffer, SCHEDULE, max_bytes=1, ledger=ledger, site=ActorOptions("buffer"))
    sender = placed(sending, buffer, site=ActorOptions("sender"))
    placed.wait_ready()
    ledger.restore(START)
    for _ in range(3):
        sender.make(ledger.lease("w", 0))
    return ledger, buffer, sender


def take(buffer, step):
    share = buffer.take(step, shard=0, shards=1, timeout=20)
    assert share is not None
    return share.records


def test_a_record_is_serialised_once_however_long_it_waited_for_room(wired):
    _, buffer, sender = wired
    assert sender.deliver(0)
    assert sender.deliver(1)
    for _ in range(3):
        assert not sender.put(2, 0.01), "two steps' worth are there, which is more than max_bytes"
    assert sender.times() == [1, 1, 0], "nothing travels that has no room"
    assert [record.times for record in take(buffer, 0)] == [1], "once on the whole way"
    assert sender.deliver(2)
    assert [record.times for step in (1, 2) for record in take(buffer, step)] == [1, 1]
    assert sender.times() == [1, 1, 1]


def test_a_record_outlives_the_process_that_sent_it(wired, ray_cluster):
    ledger, buffer, sender = wired
    assert sender.deliver(0)
    ray_cluster.kill(sender._actor)
    (record,) = take(buffer, 0)
    assert record.content == bytes(2**20)
    assert ledger.gauges()["ledger/leased"] == 2, "those that it had not sent"


def test_whoever_is_no_actor_can_send_too(wired):
    _, buffer, _ = wired
    facts = {"lease": "0", "generation": "1", "oldest": "-1"}
    record = pa.RecordBatch.from_pydict({"id": [1, 2]}).replace_schema_metadata(facts)
    assert buffer.put(record, 1)
    assert take(buffer, 0)[0].equals(record)


def test_weights_outlive_the_process_that_published_them(placed, ray_cluster):
    class Publisher:
        def __init__(self, weights):
            self.weights = weights

        def publish(self, version, payload):
            self.weights.publish(Weights(version, payload))  # its digest is found meanwhile

    weights = placed(WeightStore, 2, site=ActorOptions("weights"))
    publisher = placed(Publisher, weights, site=ActorOptions("publisher"))
    placed.wait_ready()
    payload = [bytes(range(256)) * 2**12, b"a part"]
    publisher.publish(0, payload)
    ray_cluster.kill(publisher._actor)
    assert weights.newest(0) == 0
    assert [bytes(part) for part in weights.get(0, 20).verified()] == payload


def test_a_version_has_the_bytes_of_its_own_offer(ray_cluster):
    """Whatever comes first, and whatever a publisher left that died before it could say whose."""
    host = WeightActorHost(WeightStore, (2,), {})

    def offer(key, content):
        return SimpleNamespace(key=key, take=lambda: ray_cluster.put([content]))

    host.fetch(offer("lost", b"old"))
    with ThreadPoolExecutor() as pool:
        kept = pool.submit(host.keep, Weights(0, (), "digest"), [], "next")
        host.fetch(offer("next", b"new"))
        assert kept.result(20) is None
    held, _ = host.get("node", 0, 0)
    assert held.fetched().payload == [b"new"]


def test_a_publisher_that_died_meanwhile_is_named(ray_cluster):
    def take():
        raise ServiceDied("the process of learner died")

    host = WeightActorHost(WeightStore, (2,), {})
    host.fetch(SimpleNamespace(key="a", take=take))
    with pytest.raises(ServiceDied, match="learner died"):
        host.keep(Weights(0, (), "digest"), [], "a")
    with pytest.raises(TimeoutError):
        host.get("node", 0, 0)


@pytest.mark.parametrize("size", [4096, 2 * COMES_ALONG])
def test_what_lasts_is_sent_once(placed, size):
    """And read where it lies already, unless it is so little that it comes with every answer."""

    class Publisher:
        def __init__(self, weights):
            self.weights = weights
            self.table = np.zeros(size, np.uint8)

        def publish(self, version, *, changed=False):
            if changed:
                self.table = self.table + 1
            payload = [self.table, np.full_like(self.table, version)]
            self.weights.publish(Weights(version, payload, lasting=1))

    weights = placed(WeightStore, 9, site=ActorOptions("weights"))
    publisher = placed(Publisher, weights, site=ActorOptions("publisher"))
    found = []
    for version, changed in enumerate((False, False, True)):
        publisher.publish(version, changed=changed)
    for version in range(3):
        first, last = weights.get(version, 0).verified()
        assert last.tolist() == [version] * size
        found.append(first)
    assert [first[0] for first in found] == [0, 0, 1]
    if size > COMES_ALONG:
        addresses = [first.ctypes.data for first in found]
        assert addresses[0] == addresses[1] != addresses[2]


def test_many_bytes_are_added_up_once_for_all_workers_of_a_node(placed, ray_cluster):
    """Shown by a digest that is wrong: whoever adds up finds that out."""
    weights = placed(WeightStore, 2, site=ActorOptions("weights"))
    weights.publish(Weights(0, [np.ones(2**26, np.uint8)], "wrong"))
    for _ in range(2):  # the first one says so, and the second one looks himself
        with pytest.raises(ValueError, match="version 0 arrived damaged"):
            weights.get(0, 20)
    weights.publish(Weights(1, [np.ones(2**26, np.uint8)], "wrong"))
    node = ray_cluster.get_runtime_context().get_node_id()
    held, is_first = ray_cluster.get(weights._actor.get.remote(node, 1, 20))
    assert is_first
    ray_cluster.get(weights._actor.found.remote(held.copy_on(node), True))
    assert weights.get(1, 20).verified()[0].nbytes == 2**26
    weights.publish(Weights(2, [np.ones(2**20, np.uint8)], "wrong"))
    assert not weights.get(2, 20).is_checked, "few bytes are left to whoever loads them"


def test_whoever_is_no_actor_can_publish_too(placed):
    weights = placed(WeightStore, 2, site=ActorOptions("weights"))
    payload = [bytes(range(256)) * 2**12, b"a part"]
    weights.publish(Weights.of(3, payload))
    assert [bytes(part) for part in weights.get(3, 20).verified()] == payload
