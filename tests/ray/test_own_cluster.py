"""What only a cluster of a test's own shows: a dashboard's answers, and a node that dies."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]

SCRIPT = """
import time
import pyarrow as pa, ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors, list_tasks
from common.exchange.buffer import Buffer
from common.exchange.ledger import Ledger
from common.exchange.schedule import Schedule
from common.exchange.weights import Weights, WeightStore
from deploy.backend.actors import ActorOptions
from deploy.backend.proxies import RayLauncher
from teacher_server.scorer import Delivery

quick = {"health_check_period_ms": 300, "health_check_failure_threshold": 2}
node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
head = {**node, "_system_config": quick, "include_dashboard": True}
cluster = Cluster(initialize_head=True, head_node_args=head)
gcs = ray.init(address=cluster.address, log_to_driver=False).address_info["gcs_address"]
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


store = place(WeightStore, 2, site=ActorOptions("weights"))
store.publish(Weights.of(0, b"bytes"))
assert store.get(0, 1.0) == Weights.of(0, b"bytes")
(actor,) = list_actors(gcs, [("ray_namespace", "=", place.namespace)], timeout=60)
assert (actor.name, actor.class_name) == ("weights", "WeightStore"), actor
deadline = time.monotonic() + 60
while not {"weights.publish", "weights.get"} <= {task.name for task in list_tasks(gcs, timeout=60)}:
    assert time.monotonic() < deadline
    time.sleep(0.5)
print("shown", flush=True)

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
print("sampled again", flush=True)
ray.shutdown()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def said():
    """(lines that the script wrote in turn, all its words)."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.splitlines(), done.stdout + done.stderr


def test_rays_own_tools_show_actors_and_tasks_by_their_roles(said):
    """On a cluster with a dashboard, which the tests' cluster has not."""
    assert "shown" in said[0], said[1]


def test_a_record_whose_node_died_is_sampled_again(said):
    """On two nodes, of which one is killed with the record that lies there."""
    assert "sampled again" in said[0], said[1]  # Ray tells the end of the node in between
