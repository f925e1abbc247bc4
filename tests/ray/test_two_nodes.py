"""What only a second node shows: it dies, and with it the records that lie there."""

import time
from contextlib import contextmanager
from pathlib import Path
from platform import node as host

import pyarrow as pa
import pytest
from building.records import START
from building.waiting import until

from common.exchange.buffer import Buffer
from common.exchange.ledger import Ledger
from common.exchange.schedule import Schedule
from common.exchange.weights import Weights, WeightStore
from deploy.backend.actors import ActorOptions
from deploy.backend.node_check import NodeLook, ask_others, carried_seconds, check_nodes, look
from deploy.doctor.finding import judged
from deploy.doctor.nodes import condensed, nodes
from deploy.run_folder.opening import open_run
from teacher_server.scorer import Delivery

pytestmark = pytest.mark.ray
CPUS = 20
"""More than the tests' cluster has, so that an actor that wants them lives on the other node."""


@contextmanager
def other_node(ray):
    """A second node of the tests' cluster for the block, at whose end it dies."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    from deploy.backend.private_head import run_by

    head = ray._private.worker._global_node
    wanted = RayParams(
        gcs_address=head.gcs_address,
        num_cpus=CPUS,
        object_store_memory=80 * 2**20,
        min_worker_port=0,
        max_worker_port=0,
        node_manager_port=0,
        include_log_monitor=False,
    )
    with run_by(Path(head.get_temp_dir_path()) / "python"):
        node = Node(wanted, head=False, shutdown_at_exit=False, spawn_reaper=False)
    yield
    node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


@pytest.fixture
def sending():
    """A class of senders; it travels to actors, which cannot import this file."""

    class Sender:
        def __init__(self, onward):
            self.onward = onward

        def send(self, lease):
            facts = {"lease": lease.number, "generation": lease.generation, "oldest": -1}
            body = {"id": list(lease.indices), "body": [b"x" * 2**20] * lease.size}
            record = pa.RecordBatch.from_pydict(body)
            metadata = {name: str(value) for name, value in facts.items()}
            return self.onward.score(record.replace_schema_metadata(metadata))

        def node(self):
            import ray

            return ray.get_runtime_context().get_node_id()

    return Sender


def test_a_record_whose_node_died_is_sampled_again(placed, sending, ray_cluster):
    schedule = Schedule(10, 4, 2, max_staleness=4, publish_every=1)
    ledger = placed(Ledger, schedule, site=ActorOptions("ledger"))
    buffer = placed(Buffer, schedule, max_bytes=2**30, ledger=ledger, site=ActorOptions("buffer"))
    staying = placed(sending, Delivery(buffer), site=ActorOptions("staying"))
    placed.wait_ready()
    with other_node(ray_cluster):
        going = placed(sending, Delivery(buffer), site=ActorOptions("going", cpus=CPUS))
        placed.wait_ready()
        assert going.node() != staying.node()
        assert [*ask_others(host).values()] == [host()], "not the driver's"
        assert [*ask_others(host, 0.0).values()] == ["nothing was calculated there in 0 s"]
        ledger.restore(START)
        assert going.send(ledger.lease("w", 0))
        assert staying.send(ledger.lease("w", 0))
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


def test_rays_own_tools_show_actors_and_tasks_by_their_roles(placed, ray_cluster):
    """What `ray list` and the dashboard show is read from the same tables as here."""
    from ray._private.state import actors

    store = placed(WeightStore, 2, site=ActorOptions("weights"))
    store.publish(Weights.of(0, [b"bytes"]))
    assert bytes(*store.get(0, 1.0).verified()) == b"bytes"
    alive = [actor for actor in actors().values() if actor["State"] != "DEAD"]
    # Those of Ray's own libraries, which other tests began, have an underscore.
    named = [(actor["Name"], actor["ActorClassName"]) for actor in alive]
    assert [pair for pair in named if not pair[1].startswith("_")] == [("weights", "WeightStore")]
    until(lambda: {"task::weights.publish", "task::weights.get"} <= kinds_of(ray_cluster), 60)


def kinds_of(ray):
    """Of the tasks that ran so far; they are told every second."""
    return {event["cat"] for event in ray.timeline()}


def test_every_node_is_asked_for_its_software_and_the_run_folder(ray_cluster, tmp_path, quiet):
    config, _ = open_run(Path("smoke"), [f"rollout.weights_folder={tmp_path}"])
    found, versions = nodes(config, tmp_path / "not" / "yet", quiet)
    assert (versions.state, versions.name) == ("ok", found.name)
    assert versions.said == f"rollout.weights_folder: shares {tmp_path}"
    assert found.state == "ok", found
    assert f"same software, shares {tmp_path}" in found.said
    assert "8 MB through the object stores and back in" in found.said
    assert list(tmp_path.iterdir()) == []
    (answer,) = check_nodes(tmp_path).values()
    assert isinstance(answer, NodeLook)
    assert carried_seconds(b"something else", ray_cluster.put(b"sent"), "DEFAULT") is None
    away = look(str(tmp_path / "away"), "mark", "own")
    assert (away.sees, away.refusal) == (False, "No such file or directory")


def test_what_is_not_well_on_a_node_has_a_line_of_its_own():
    found = [
        judged("device 0", "a card", ""),
        judged("gloo", "2 ranks sum to [3.0, 3.0]", ""),
        judged("decoding bfloat16", "differs", "report this page", fails=True),
    ]
    first, second = condensed("node n", found)
    assert first.line().endswith("a card; as they should be: gloo")
    assert second.line().startswith("FAIL  node n")
    assert second.line().endswith("decoding bfloat16: differs; report this page")
