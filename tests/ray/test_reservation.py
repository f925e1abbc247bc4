"""Room for a run is asked of Ray before anything starts: exactly the bundles of the config."""

import pytest
from building.launchers import groups

from common.errors import InputError, RunFailed
from deploy.backend.actors import ActorOptions
from deploy.backend.bundles import Bundles, run_bundles
from deploy.stages.distill import distill

pytestmark = pytest.mark.ray
SEVERAL = ("scorers.teacher.kind=teacher", "scorers.opinion.kind=token_logprob")


@pytest.fixture
def occupied(ray_cluster):
    """13 of the cluster's 16 CPUs belong to somebody else."""
    from ray.util.placement_group import placement_group, remove_placement_group

    theirs = placement_group([{"CPU": 13}])
    assert theirs.wait(20)
    yield [{"CPU": 13.0}]
    remove_placement_group(theirs)


def where_class():
    """Made here, so that it travels by value."""

    class Where:
        def group(self):
            from ray.util import get_current_placement_group

            found = get_current_placement_group()
            return None if found is None else found.id.hex()

    return Where


def test_ray_is_asked_for_the_bundles_of_the_config_and_actors_live_in_them(ray_cluster, run_in):
    from deploy.backend.proxies import RayLauncher

    workers = ("rollout.workers=2", "rollout.cpus=0.5", "teacher.cpus=2")
    config, _ = run_in(*SEVERAL, *workers, "learner.cpus=3", "scorers.opinion.replicas=2")
    before = groups()
    place = RayLauncher()
    with place.reserved(run_bundles(config), 30, print):
        held = groups()
        for bundles in before:
            held.remove(bundles)
        lasting = [{"CPU": 2.0}, {"CPU": 1.0}, {"CPU": 1.0}]
        assert sorted(held, key=repr) == sorted(
            [lasting, [{"CPU": 0.5}], [{"CPU": 0.5}], [{"CPU": 3.0}]], key=repr
        )
        place.give_ranks_back()
        assert [{"CPU": 3.0}] not in groups()
        sites = [("teacher", 2), ("scorers.opinion", 1), ("rollout", 0.5), ("rollout", 0.5)]
        made = [
            place(where_class(), site=ActorOptions(f"{section}-{index}", 1, cpus, 0, section))
            for index, (section, cpus) in enumerate([*sites, ("rollout", 0.5)])
        ]
        found = [where.group() for where in made]
        assert found[0] == found[1], "roles that last share a group"
        assert len({*found[1:4]}) == 3, "a worker may leave, so it has one of its own"
        assert found[4] is None, "one that comes later finds its room as ever"
        place.end(made[0])
        again = place(where_class(), site=ActorOptions("teacher-1", 1, 2, 0, "teacher"))
        assert again.group() == found[0], "who takes the place of one that lasts has its room"
        place.end(made[2])
        assert held.count([{"CPU": 0.5}]) - groups().count([{"CPU": 0.5}]) == 1
    place.shutdown()
    assert groups() == before


def test_a_run_without_room_is_refused_in_a_sentence_and_leaves_nothing(occupied, run_in, quiet):
    run = run_in("learner.cpus=2", "rollout.workers=1", "cluster.wait_seconds=3")
    with pytest.raises(InputError) as refused:
        distill(*run, quiet, local=False)
    assert str(refused.value) == (
        "no room in 3 s for learner x1 (2 CPUs and 0 GPUs each) beside teacher server x1 (1 CPUs "
        "and 0 GPUs each), rollout worker x1 (1 CPUs and 0 GPUs each): the cluster has 16 CPUs (1 "
        "free) and 0 GPUs (0 free) on 1 node; lower learner.world_size, learner.cpus or "
        "learner.gpus, or make room"
    )
    assert groups() == [occupied]
    assert not run[1].has_run()


def test_who_waits_is_said_and_room_that_comes_late_is_taken(occupied, ray_cluster):
    from ray.util.placement_group import placement_group, remove_placement_group

    from deploy.backend.reservation import reserved

    others = placement_group([{"CPU": 2}])
    assert others.wait(20)
    heard = []

    def hear(words):
        heard.append(words)
        remove_placement_group(others)

    with reserved([Bundles("rollout", 2, 1, 0, "rollout worker", placed="alone")], 60, hear):
        assert sorted(groups(), key=repr) == [[{"CPU": 1.0}], [{"CPU": 1.0}], occupied]
    assert heard == ["waiting for room for rollout worker x1 (1 CPUs and 0 GPUs each)"]


def test_ranks_whose_room_was_taken_meanwhile_end_with_a_sentence(
    occupied, ray_cluster, run_in, monkeypatch, tmp_path
):
    from deploy.backend.train_job import TrainJob

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    config, _ = run_in("learner.cpus=4")
    job = TrainJob(config.learner, tmp_path, None, None, patience=0)
    with pytest.raises(RunFailed, match="the learner failed: WorkerGroupStartupTimeout"):
        job.result()


def test_a_role_with_a_label_takes_room_on_nodes_that_have_it_alone(ray_cluster, run_in):
    from ray.exceptions import GetTimeoutError

    from deploy.backend.proxies import RayLauncher
    from deploy.backend.reservation import reserved
    from deploy.backend.train_job import scaling

    config, _ = run_in("cluster.role_label=varkd-role", *SEVERAL)
    wanted = run_bundles(config)
    assert [(b.section, *b.labels.items()) for b in wanted] == [
        ("teacher", ("varkd-role", "teacher")),
        ("scorers.opinion", ("varkd-role", "teacher")),
        ("rollout", ("varkd-role", "rollout")),
        ("learner", ("varkd-role", "learner")),
    ]
    ranks = scaling(config.learner, wanted[-1].labels)
    assert ranks.label_selector == {"varkd-role": "learner"}
    before, (node,) = groups(), ray_cluster.nodes()
    labels = {"ray.io/node-id": node["NodeID"]}
    with reserved([Bundles("rollout", 1, 1, 0, placed="alone", labels=labels)], 30, print):
        assert groups() == [*before, [{"CPU": 1.0}]]
    place, late = RayLauncher(), Bundles("rollout", 0, 1, 0, labels=wanted[2].labels)
    with place.reserved([late], 1, print):
        place(where_class(), site=ActorOptions("late", 1, 1, 0, "rollout"))
        with pytest.raises(GetTimeoutError):
            ray_cluster.get(place.living().popitem()[0].ready.remote(), timeout=0.5)
    place.shutdown()
    none = r"no room in 1 s for .* each\): .*; no node is labelled varkd-role=rollout: start some"
    with pytest.raises(InputError, match=none), reserved([wanted[2]], 1, print):
        pass
    assert groups() == before
