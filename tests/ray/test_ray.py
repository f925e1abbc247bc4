"""The same run on real Ray actors: equal numbers, and failures that end well."""

import json
import time
from functools import partial

import pytest
import torch
from building.launchers import beside
from building.services import publish, start, take
from building.waiting import until

from common.errors import InputError, ServiceDied
from common.exchange.metric_files import read_rows
from common.exchange.trajectory import from_arrow
from common.files.tensors import load_tensors
from deploy.backend.role import ROLLOUT
from deploy.config import RunConfig
from deploy.control.client import RunFolder, ask, look
from deploy.control.rendezvous import Rendezvous
from deploy.control.view import lines
from deploy.pipeline import wire
from deploy.stages.distill import distill, preflight

pytestmark = pytest.mark.ray


def rows_of(workspace):
    return [json.loads(line) for line in (workspace.root / "metrics.jsonl").open()]


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def is_dead(worker):
    """Ray ends a process some time after it was asked to."""
    try:
        worker.stop()
    except ServiceDied:
        return True
    return False


def require_scores(record, student):
    """What a worker wrote down is what the weights of the stamped version say."""
    batch = from_arrow(record)
    assert set(batch.version_B.tolist()) == {0}
    with torch.no_grad():
        logprob = student(batch.label_B, batch.token_BL, batch.plan).log_softmax(-1)
    replayed = logprob.gather(-1, batch.token_BL[..., None])[..., 0]
    torch.testing.assert_close(
        replayed[batch.suffix_BL], batch.logprob_BL[batch.suffix_BL], atol=1e-4, rtol=1e-4
    )


def test_named_workers_sample_by_their_version_and_a_killed_ones_lease_is_reissued(
    placed, run_in, ray_cluster
):
    from ray.util import list_named_actors

    config: RunConfig
    only_sampled = ("contexts.sources.data.ratio=0", "rollout.class_dropout=0.0")
    alone = ("rollout.workers=2", "rollout.max_restarts=0")
    run = run_in("objective.kind=gkd", *alone, *only_sampled)
    config, _ = run
    services, crew, student = start(run, placed)
    named = list_named_actors(all_namespaces=True)
    mine = {entry["name"] for entry in named if entry["namespace"] == placed.namespace}
    roles = {"ledger", "buffer", "weights", "metrics", "teacher-0", "worker-0", "worker-1"}
    assert mine == roles, "actors have the names of their roles"
    services.ledger.restore({"step": 0, "frontier": 0, "beyond": []})
    ray_cluster.kill(crew.crews[ROLLOUT].members["worker-0"]._actor)
    wait_for(lambda: crew.check() or "worker-0" in crew.deaths)
    assert list(crew.crews[ROLLOUT].members) == ["worker-1"]
    assert crew.failure is None
    ids = []
    for step in range(config.learner.steps):
        share = take(services, step)
        for record in share.records:
            if step == 0:
                require_scores(record, student)
            ids += from_arrow(record).id_B.tolist()
        publish(services, student, step + 1)
        services.ledger.commit(step + 1, share.leases)
    wanted = list(range(config.learner.steps * config.learner.global_batch_size))
    assert sorted(ids) == wanted, "every image arrives, once"
    services.close("over")
    crew.dismiss()


def test_workers_join_and_leave_a_run_that_goes_on(placed, run_in):
    in_step = ("learner.max_staleness=0", "learner.publish_every=1")
    run = run_in("rollout.workers=1", "rollout.batch_size=2", *in_step)
    config, _ = run
    services, crew, student = start(run, placed)
    services.ledger.restore({"step": 0, "frontier": 0, "beyond": []})
    ids, by, versions = [], [], []

    def train(step):
        share = take(services, step)
        for record in share.records:
            batch = from_arrow(record)
            ids.extend(batch.id_B.tolist())
            by.append(batch.facts["worker"])
            if by[-1] == "worker-1":
                versions.extend(batch.version_B.tolist())
        publish(services, student, step + 1)
        services.ledger.commit(step + 1, share.leases)

    for step in range(config.learner.steps):
        if step == 1:
            assert crew.crews[ROLLOUT].add() == "worker-1"
            placed.wait_ready()
        if step == 3:
            gone = crew.crews[ROLLOUT].members["worker-0"]
            crew.crews[ROLLOUT].retire("worker-0")
            wait_for(lambda: crew.check() or list(crew.crews[ROLLOUT].members) == ["worker-1"])
            wait_for(partial(is_dead, gone))
        train(step)
    assert sorted(ids) == list(range(config.learner.steps * config.learner.global_batch_size))
    assert by[:8] == ["worker-0"] * 8, "the first step's"
    assert min(versions) >= 1, "a newcomer never has older weights than the current ones"
    assert set(by[-8:]) == {"worker-1"}, "the last step's"
    assert (crew.deaths, crew.failure) == ({}, None)
    services.close("over")
    crew.dismiss()


def require_refusals(found):
    """Of counts that this run cannot have."""
    assert found["judge", 9] == "judge=9, but this run has rollout, teacher; name one of them"
    assert "1 to 2 (2 * teacher.replicas)" in found["teacher", 9]
    assert "1 (rollout.min_workers) to 3 (rollout.max_workers)" in found["rollout", 4]
    assert found["rollout", 0].startswith("rollout=0, but this run has")
    assert "no request that this run knows" in found["rollout", "many"]


def test_a_live_run_is_scaled_on_request_and_replaces_who_dies(ray_cluster, run_in, quiet):
    run = run_in("rollout.workers=1", "rollout.max_workers=3", "learner.steps=100000")
    root, found = run[1].root, {}

    def there(*names, role="rollout"):
        status = Rendezvous(root).status()
        return status["crews"][role]["there"] == list(names) and status["state"] == "running"

    def harm(made):
        until(lambda: Rendezvous(root).status()["state"] == "running")
        found["answer"] = ask(RunFolder(root), "scale", {"rollout": 2})
        until(lambda: there("worker-0", "worker-1"))
        wrong = [("rollout", 4), ("rollout", 0), ("rollout", "many"), ("judge", 9), ("teacher", 9)]
        for role, wanted in wrong:
            with pytest.raises(InputError) as refused:
                ask(RunFolder(root), "scale", {role: wanted})
            found[role, wanted] = str(refused.value)
        ray_cluster.kill(made["worker-0"]._actor)
        ray_cluster.kill(made["teacher-0"]._actor)
        until(lambda: there("worker-1", "worker-2") and there("teacher-1", role="teacher"))
        before = len(read_rows(run[1].metrics))
        until(lambda: len(read_rows(run[1].metrics)) > before + 2)
        found["lines"] = lines(look(root), time.time())
        ask(RunFolder(root), "scale", {"rollout": 1})
        until(lambda: there("worker-1"))
        found["auto"] = ask(RunFolder(root), "scale", {"rollout": "auto"})
        ask(RunFolder(root), "stop")

    with run[1].locked("distill"):
        facts = distill(*run, quiet, local=False, launch=lambda: beside(harm))
    assert facts["stopped"] == "varkd stop"
    assert sorted(facts["deaths"]) == ["teacher-0", "worker-0"]
    assert read_rows(run[1].metrics)[-1]["actors/teacher"] == 1
    require_refusals(found)
    assert set(facts["busy"]) == {"learner", "teacher", "rollout"}
    assert found["answer"] == "rollout workers: 1 -> 2; 1 on their way"
    assert found["auto"].endswith("from now on 1 to 3 as the load asks")
    sampling = "2 sample (worker-1, worker-2); 1 to 3 may run, as somebody says"
    for words in (sampling, "the process of worker-0 died", "worker-2 takes its place"):
        assert words in "\n".join(found["lines"])


def test_replicas_are_replaced_added_and_retired_and_who_sends_to_them_hears_of_it(
    placed, run_in, ray_cluster
):
    """One worker, which was handed the way to the first replica alone."""
    fresh = ("learner.max_staleness=0", "learner.publish_every=1")
    run = run_in("rollout.workers=1", "teacher.max_restarts=1", "teacher.max_replicas=2", *fresh)
    services, crew, student = start(run, placed)
    replicas = crew.crews["teacher"]
    assert run[0].teacher.is_elastic
    ray_cluster.kill(replicas.members["teacher-0"]._actor)
    services.ledger.restore({"step": 0, "frontier": 0, "beyond": []})
    wait_for(lambda: crew.check() or (list(replicas.there) == ["teacher-1"]))
    share = take(services, 0)
    assert crew.scale("teacher", 2) == ["teacher-2"]
    wait_for(lambda: crew.check() or not crew.pending)
    assert crew.counts == {"rollout": 1, "teacher": 2}
    replicas.retire("teacher-1")
    wait_for(lambda: crew.check() or list(replicas.members) == ["teacher-2"])
    publish(services, student, 1)
    services.ledger.commit(1, share.leases)
    assert take(services, 1).records, "the newest alone"
    ray_cluster.kill(replicas.members["teacher-2"]._actor)
    wait_for(lambda: crew.check() or crew.failure is not None)
    assert "0 teacher replicas are left: the process of teacher-2 died" in str(crew.failure)
    assert list(crew.deaths) == ["teacher-0", "teacher-2"]
    crew.dismiss()


def test_an_error_in_an_actors_constructor_arrives_as_itself(placed, run_in):
    config, workspace = run_in("teacher.device=cuda")
    wire(config, preflight(config, workspace), workspace.model(config, "teacher"), placed)
    with pytest.raises(InputError, match="torch sees no CUDA device"):
        placed.wait_ready()


def test_workers_of_a_node_read_one_copy_of_the_tokens(placed, data):
    class Peek:
        def __init__(self, data):
            self._data = data

        def where(self):
            from pathlib import Path

            address = self._data.token_NAL.data_ptr()
            for line in Path("/proc/self/maps").read_text().splitlines():
                low, high = (int(end, 16) for end in line.split()[0].split("-"))
                if low <= address < high:
                    return line, int(self._data.token_NAL.sum()), self._data.spec
            raise AssertionError("the tensor is nowhere")

    shared = placed.share(data)
    for peek in (placed(Peek, data=shared), placed(Peek, data=shared)):
        mapping, total, spec = peek.where()
        assert "/dev/shm" in mapping or "plasma" in mapping, mapping
        assert total == int(data.token_NAL.sum())
        assert spec == data.spec


@pytest.mark.slow
def test_two_learner_ranks_equal_one(ray_cluster, run_in, quiet):
    """Each gets whole groups, and holds a part of the student; its snapshot is one rank's."""
    settings = ("learner.ordered=true", "models.student.dropout=0.0", "learner.micro_batch=16")
    settings += ("rollout.group.size=2",)
    one = run_in(*settings, name="one")
    parts = ("learner.parallel=fsdp", "learner.checkpoint_every=2", "learner.export_every=2")
    two = run_in(*settings, *parts, "learner.world_size=2", name="two")
    distill(*one, quiet, local=True, resume=False)
    distill(*two, quiet, local=False, resume=False)
    more = "learner.steps=8"
    distill(*run_in(*settings, more, name="one"), quiet, local=True, resume=True)
    distill(*run_in(*settings, *parts, more, name="two"), quiet, local=True, resume=True)
    losses = [[row["loss"] for row in rows_of(run[1])] for run in (one, two)]
    assert len(losses[0]) == 8
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    milestones = [two[1].milestone(name, 2) for name in ("student", "student_ema")]
    assert all(path.exists() for path in milestones)
    for name in ("student", "student_ema"):
        whole, joined = (load_tensors(getattr(run[1], name))[0] for run in (one, two))
        for key, value in whole.items():
            torch.testing.assert_close(joined[key], value, atol=1e-5, rtol=0)


def test_two_runs_on_one_cluster_do_not_meet(placed):
    from deploy.backend.actors import ActorOptions
    from deploy.backend.proxies import RayLauncher

    other, site = RayLauncher(), ActorOptions("ledger")
    try:
        first, second = placed(list, [1], site=site), other(list, [2], site=site)
        assert (first.pop(), second.pop()) == (1, 2)
    finally:
        other.shutdown()
