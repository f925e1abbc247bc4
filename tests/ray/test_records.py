"""What goes by reference on Ray: records and weights travel once, and outlive who sent them."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from building.records import START

from common.exchange.buffer import Buffer
from common.exchange.ledger import Ledger
from common.exchange.schedule import Schedule
from common.exchange.weights import Weights, WeightStore
from deploy.backend.actors import ActorOptions
from teacher_server.scorer import Delivery

ROOT = Path(__file__).parents[2]
SCHEDULE = Schedule(10, 4, 4, max_staleness=4, publish_every=1)


@pytest.fixture
def placed(ray_cluster):
    from deploy.backend.proxies import RayLauncher

    place = RayLauncher()
    yield place
    place.shutdown()


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
            self.weights.publish(Weights.of(version, payload))

    weights = placed(WeightStore, 2, site=ActorOptions("weights"))
    publisher = placed(Publisher, weights, site=ActorOptions("publisher"))
    placed.wait_ready()
    payload = bytes(range(256)) * 2**12
    publisher.publish(0, payload)
    ray_cluster.kill(publisher._actor)
    assert weights.newest(0) == 0
    assert weights.get(0, 20).verified() == payload


LOST = """
import time
import pyarrow as pa, ray
from ray.cluster_utils import Cluster
from common.exchange.buffer import Buffer
from common.exchange.ledger import Ledger
from common.exchange.schedule import Schedule
from deploy.backend.actors import ActorOptions
from deploy.backend.proxies import RayLauncher
from teacher_server.scorer import Delivery

quick = {"health_check_period_ms": 300, "health_check_failure_threshold": 2}
node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={**node, "_system_config": quick})
ray.init(address=cluster.address, log_to_driver=False)
place = RayLauncher()


class Sender:
    def __init__(self, onward):
        self.onward = onward

    def send(self, lease):
        facts = {"lease": lease.number, "generation": lease.generation, "oldest": -1}
        body = {"id": list(lease.indices), "body": [b"x" * 2**20] * lease.size}
        record = pa.RecordBatch.from_pydict(body)
        metadata = {name: str(value) for name, value in facts.items()}
        return self.onward.score(record.replace_schema_metadata(metadata))


def sender(name):
    return place(Sender, Delivery(buffer), site=ActorOptions(name, cpus=1))


schedule = Schedule(10, 4, 2, max_staleness=4, publish_every=1)
ledger = place(Ledger, schedule, site=ActorOptions("ledger"))
buffer = place(Buffer, schedule, max_bytes=2**30, ledger=ledger, site=ActorOptions("buffer"))
place.wait_ready()
staying = sender("staying")  # on the only node
place.wait_ready()
other = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
going = sender("going")
place.wait_ready()
ledger.restore({"step": 0, "frontier": 0, "beyond": []})
assert going.send(ledger.lease("w", 0)) and staying.send(ledger.lease("w", 0))
cluster.remove_node(other, allow_graceful=False)
deadline = time.monotonic() + 60
while ledger.gauges()["ledger/stored"] == 2:
    assert time.monotonic() < deadline
    assert buffer.take(0, shard=0, shards=1, timeout=0.5) is None, "with half of its records"
again = ledger.lease("w", 0)
assert (again.number, ledger.lease("w", 0).number) == (0, 2)
assert staying.send(again)
share = buffer.take(0, shard=0, shards=1, timeout=20)
assert [part.column("id").to_pylist() for part in share.records] == [[0, 1], [2, 3]]
ledger.commit(1, share.leases)
assert ledger.state() == {"step": 1, "frontier": 2, "beyond": []}
print("sampled again")
ray.shutdown()
cluster.shutdown()
"""


def test_a_record_whose_node_died_is_sampled_again():
    """On two nodes of its own, of which one is killed with the record that lies there."""
    done = subprocess.run([sys.executable, "-c", LOST], cwd=ROOT, capture_output=True, text=True)
    # Ray tells the end of the node in between.
    assert "sampled again" in done.stdout.splitlines(), done.stdout + done.stderr
