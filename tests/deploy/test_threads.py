"""How many threads a process computes with."""

import pytest
import torch

from deploy.backend.launcher import threads_as_on_ray
from deploy.stages.distill import distill


@pytest.fixture(autouse=True)
def _three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_only_an_ordered_run_in_one_process_has_the_threads_of_an_actor(run_in):
    with threads_as_on_ray(run_in("learner.ordered=true")[0]):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3, "as before"
    with threads_as_on_ray(run_in(name="free")[0]):
        assert torch.get_num_threads() == 3


def test_an_ordered_run_leaves_the_threads_as_they_were(run_in, quiet):
    distill(*run_in("learner.ordered=true", "learner.steps=1"), quiet, local=True)
    assert torch.get_num_threads() == 3
