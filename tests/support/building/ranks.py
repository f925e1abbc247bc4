"""Several learner ranks on this machine, in processes of their own that gloo joins."""

import copy
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from common.exchange.signals import guided_hidden
from common.exchange.trajectory import TrajectoryBatch
from common.exchange.weights import Weights
from common.files.tensors import state_digest
from common.models.backbone import Backbone
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.objectives import gkd
from learner.process_group import ProcessGroup, TorchProcesses
from learner.resources import Resources
from learner.teacher_targets import TeacherTargets

SECONDS = 60
STEPS = 3


def on_ranks(world: int, work: Callable[[ProcessGroup], Any], folder: Path) -> list[Any]:
    """What `work` returns on each of `world` ranks; their processes are forked from one that has
    imported what they need. `folder` is where they meet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["building.ranks", "learner.learner", "torch._dynamo"])
    meet = folder / f"meet-{world}"
    with ProcessPoolExecutor(world, mp_context=context) as pool:
        ranks = [pool.submit(_joined, work, rank, world, str(meet)) for rank in range(world)]
        return [rank.result(timeout=2 * SECONDS) for rank in ranks]


def _joined(work: Callable[[ProcessGroup], Any], rank: int, world: int, meet: str) -> Any:
    torch.set_num_threads(1)
    store = distributed.FileStore(meet, world)  # type: ignore[reportPrivateImportUsage]
    joined = partial(distributed.init_process_group, "gloo", timeout=timedelta(seconds=SECONDS))
    joined(store=store, rank=rank, world_size=world)
    try:
        return work(TorchProcesses())
    finally:
        distributed.destroy_process_group()


def learner_of(
    student: Backbone, teacher: Backbone, ranks: ProcessGroup, **settings: Any
) -> Learner:
    head = copy.deepcopy(teacher.head)
    return Learner(
        LearnerConfig.model_validate({"micro_batch": 1, "chunk_tokens": 4} | settings),
        gkd.Config().build(Resources(torch.device("cpu"))),
        copy.deepcopy(student),
        seed=0,
        contexts=("data", "student"),
        teacher=TeacherTargets(guided_hidden.Config(), head, state_digest(head)),
        ranks=ranks,
    )


@dataclass(frozen=True)
class Seen:
    """What a run left."""

    rows: list[dict[str, float]]
    states: dict[str, dict[str, torch.Tensor]]
    sent: Weights


def trained(
    student: Backbone,
    teacher: Backbone,
    batch: TrajectoryBatch,
    runs: list[dict[str, Any]],
    ranks: ProcessGroup,
) -> list[Seen]:
    """A rank's part of some steps with each of the settings."""
    each = len(batch) // ranks.world
    own = batch.rows(slice(ranks.rank * each, (ranks.rank + 1) * each))
    found = []
    for settings in runs:
        learner = learner_of(student, teacher, ranks, **settings)
        rows = [learner.step(own) for _ in range(STEPS)]
        states = {
            name: {k: v.clone() for k, v in state.items()} for name, state in learner.states()
        }
        found.append(Seen(rows, states, learner.published("float32", checked=True).copied()))
    return found
