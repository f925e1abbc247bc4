"""One-pass students of a teacher that is a table, through ledger, workers, scorers, buffer and
learner, for as long as it takes: the acceptance tests R1, S4, D5 and D6 of docs/one_step.md, of
three dependent slots of eight codes.

Minutes of training, so only `pytest -m long` runs them (with `--junitxml` it writes what it found;
the times here are CPU seconds of one thread); short ones of the same are in tests/learner
(test_dd1.py, test_dd2_joint.py).
"""

from dataclasses import replace
from itertools import count

import pytest
import torch

from benchmarks.dd1_toy import POSITIONS, distances, hits
from benchmarks.dd2_toy import diffused, first_stage, one_step, second_stage
from benchmarks.table_run import TableRun, averaged
from benchmarks.tabular import AT_ONCE, Tabular
from common.flow.solvers import rk4_rho
from rollout.sampler import SamplingConfig, sample

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
TABLE = Tabular()
ALONE = TABLE.independent()
"""By class: the best that slots alone can do."""
EARLY = 100
"""Steps of the generator after which it is compared with untaught networks."""


class Shuffled:
    """A learner that is told another row's noise."""

    def __init__(self, learner):
        self._learner = learner

    def __getattr__(self, name):
        return getattr(self._learner, name)

    def step(self, batch):
        return self._learner.step(replace(batch, seed_B=batch.seed_B.roll(1)))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def test_rows_of_the_flow_have_the_teachers_joint_distribution(folder, record_testsuite_property):
    """R1, 200,000 rows of a class; 30 s."""
    run = TableRun(TABLE, folder / "rows", "dd1")
    teacher, sampling = run.teacher.load(), SamplingConfig(flow=rk4_rho.Config(steps=20))
    first = count(0, AT_ONCE)

    def make(label_B):
        seeds = range(start := next(first), start + len(label_B))
        return sample(teacher, label_B, seeds, sampling, codes=TABLE.codes).token_BL

    found = TABLE.distances(make, 200_000)
    record_testsuite_property("R1, by class", found)
    assert max(found) <= 0.02
    assert all(apart <= alone / 10 for apart, alone in zip(found, ALONE, strict=True))


def test_one_step_learns_the_joint_distribution_and_two_learn_it_better(
    folder, record_testsuite_property
):
    """S4, 1,500 steps; 200 s."""
    run = TableRun(TABLE, folder / "dd1", "dd1")
    student = run.train(run.student())
    once, twice = (distances(TABLE, student, at) for at in ((1,), POSITIONS))
    right = hits(TABLE, student)
    record_testsuite_property("S4: one step, two steps, codes hit", (once, twice, right))
    assert max(once) <= 0.10
    assert all(two <= one for one, two in zip(once, twice, strict=True))
    assert all(share >= least for share, least in zip(right, (0.98, 0.94, 0.86), strict=True))


def test_with_another_rows_noise_nothing_is_learned(folder, record_testsuite_property):
    """The negative control of S4; 45 s."""
    run = TableRun(TABLE, folder / "shuffled", "dd1", "learner.steps=300")
    found = distances(TABLE, run.train(run.student(), around=Shuffled), (1,))
    record_testsuite_property("S4, shuffled", found)
    assert all(apart >= 0.8 * alone for apart, alone in zip(found, ALONE, strict=True))


@pytest.fixture(scope="module")
def start(folder):
    return first_stage(TABLE, folder / "gts")


def test_the_teachers_score_makes_a_better_diffusion_model_than_drawn_noise(
    start, folder, record_testsuite_property
):
    """D5: beside the ordinary diffusion loss after as many steps; 190 s."""
    control = first_stage(TABLE, folder / "diffusion", "objective.kind=diffusion")
    found, its = diffused(TABLE, start), diffused(TABLE, control)
    record_testsuite_property("D5: ground-truth score, diffusion loss", (found, its))
    assert max(found) <= 0.10
    assert sum(found) < sum(its)


def test_the_generator_learns_how_slots_depend_on_each_other(
    start, folder, record_testsuite_property
):
    """D6: K = 5, 500 and 1,500 steps of the generator, at the end .2 below slots alone; networks
    that nothing taught are farther away after as many steps. 800 s."""
    seen = {}

    def measure(run, learner, metrics):
        counts = int(metrics["generator/steps"]), int(metrics["guidance/steps"])
        if "loss" in metrics and counts[0] in (EARLY, 500, 1500):
            seen[counts] = one_step(TABLE, averaged(run, learner))

    second_stage(TABLE, start, folder / "csd", "learner.steps=9000", after_step=measure)
    steps = f"learner.steps={6 * EARLY}"
    control = one_step(TABLE, second_stage(TABLE, None, folder / "untaught", steps))
    record_testsuite_property("D6: after 100, 500 and 1,500 steps, untaught", (seen, control))
    assert list(seen) == [(steps, 5 * steps) for steps in (EARLY, 500, 1500)]
    early, late, last = seen.values()
    assert max(late) <= 0.45
    assert max(last) <= 0.30
    assert all(its <= alone - 0.2 for its, alone in zip(last, ALONE, strict=True))
    assert all(its > ours for its, ours in zip(control, early, strict=True))
