"""Students that are kept by FID of a run whose student lies over several ranks."""

import threading
from concurrent.futures import ThreadPoolExecutor

from building.objectives import Company

from common.errors import InputError, RunFailed
from common.files.tensors import read_metadata
from deploy.stages.learner_rank import starting_student
from deploy.stages.milestones import Milestones

PARTS = ("learner.world_size=2", "learner.parallel=fsdp")
KEPT = ("learner.export_every=1", "learner.keep_best=1", "learner.keep_best_by=fid")


class Half:
    """A spread learner as others see it: both ranks go through `states`, and rank 0 gets them."""

    is_spread = True

    def __init__(self, student, ranks):
        self._student, self._ranks = student, ranks
        self.steps_done = 0

    def states(self):
        for name in ("student", "student_ema"):
            self._ranks.barrier()
            if self._ranks.rank == 0:
                yield name, self._student.state_dict()


def on_two(work):
    """What `work` returns, or raises, on each of two ranks, which are threads."""
    shared, barrier = {}, threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        ranks = [pool.submit(work, Company(rank, shared, barrier)) for rank in range(2)]
        return [rank.exception() or rank.result() for rank in ranks]


def test_rank_0_compares_while_the_others_wait_for_it(run_in):
    config, workspace = run_in(*PARTS, *KEPT)
    student, fids, barriers = starting_student(config, workspace), {}, []

    def fid(path):
        fids[path.name] = abs(2.5 - int(path.stem[-8:])) + len(path.stem)
        return {"fid": fids[path.name]}

    def work(ranks):
        milestones = Milestones(config, workspace, ranks, fid)
        learner = Half(student, ranks)
        for learner.steps_done in (1, 2, 5):
            milestones(learner, {"loss": 1.0})
        barriers.append(ranks.rank)

    assert on_two(work) == [None, None]
    assert sorted(barriers) == [0, 1]
    assert len(fids) == 6, "rank 0 alone measures"
    best = [workspace.milestone(name, 2) for name in ("student", "student_ema")]
    assert sorted(workspace.milestones.glob("*.safetensors")) == sorted(best)
    for path in best:
        found = read_metadata(path)
        assert (found["measure"], found["mean"]) == ("fid", fids[path.name])


def test_all_ranks_hear_that_nothing_could_be_compared(run_in):
    config, workspace = run_in(*PARTS, *KEPT)
    student = starting_student(config, workspace)

    def fid(path):
        raise InputError(f"{path}: is full of holes")

    def work(ranks):
        learner = Half(student, ranks)
        learner.steps_done = 1
        Milestones(config, workspace, ranks, fid)(learner, {})

    first, second = on_two(work)
    assert isinstance(first, InputError)
    assert isinstance(second, RunFailed)
    assert "rank 0 failed" in str(second)
