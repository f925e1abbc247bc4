"""A dry run of a cluster whose nodes are labelled for roles (`cluster.role_label`)."""

import pytest

from common.errors import InputError
from deploy.backend.bundles import Bundles
from deploy.planning.hardware import Hardware
from deploy.planning.placement import place_actors
from deploy.planning.resources import Need


def need(role, count, label=None):
    """Of so many actors with a CPU and 1 MB each."""
    labels = {"l": label} if label else {}
    return Need(Bundles(role, count, 1, 0, role, placed="alone", labels=labels), 1, 1, lower="x")


def of_eight_cpus(nodes):
    return Hardware(nodes, 8, 0, memory_mb=1e9, gpu_memory_mb=1e9, is_here=False)


def test_a_labelled_node_is_for_one_role():
    """Though one would have room for all; who wants no label goes anywhere."""
    teacher, rank = need("teacher", 2, "teacher"), need("rank", 1, "learner")
    nodes = place_actors([teacher, rank, need("worker", 7)], of_eight_cpus(2))
    assert [node.labels for node in nodes] == [{"l": "teacher"}, {"l": "learner"}]
    assert [dict(node.actors) for node in nodes] == [
        {"teacher": 2, "worker": 3},
        {"rank": 1, "worker": 4},
    ]
    words = r"rank 1 of 1 finds no room: .* every node is for another role \(cluster\.role_label\)"
    with pytest.raises(InputError, match=words):
        place_actors([teacher, rank], of_eight_cpus(1))
