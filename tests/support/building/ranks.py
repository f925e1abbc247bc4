"""Several learner ranks on this machine, in processes of their own that gloo joins."""

import copy
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import distributed

from common.errors import RunFailed
from common.exchange.assembly import Share
from common.exchange.schedule import Schedule
from common.exchange.signals import guided_hidden
from common.exchange.trajectory import TrajectoryBatch, to_arrow
from common.exchange.weights import Canary, Weights
from common.files.snapshots import Snapshots
from common.files.tensors import state_digest
from common.models.backbone import Backbone
from learner.checkpoints import Checkpoints
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.objectives import gkd
from learner.process_group import ProcessGroup, TorchProcesses, first_says, led
from learner.resources import Resources
from learner.spread_checkpoints import checkpoints_of, own_part
from learner.teacher_targets import TeacherTargets
from learner.train import Trainer

SECONDS = 60
STEPS = 3


def on_ranks(world: int, work: Callable[[ProcessGroup], Any], folder: Path) -> list[Any]:
    """What `work` returns on each of `world` ranks; their processes are forked from one that has
    imported what they need. `folder` is where they meet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["building.ranks", "learner.sharded", "torch._dynamo"])
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
        return work(TorchProcesses(meet_seconds=3))
    finally:
        distributed.destroy_process_group()


def wait_at_most(seconds: int) -> None:
    """From here on a rank that is silent for longer is taken for dead."""
    group = distributed.distributed_c10d._get_default_group()
    distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


class OnRollouts(gkd.Config):
    """Where a rank has data alone it has no loss, but a part in all that others do."""

    uses_data: ClassVar[bool] = False


def learner_of(
    student: Backbone, teacher: Backbone, ranks: ProcessGroup, **settings: Any
) -> Learner:
    head = copy.deepcopy(teacher.head)
    return Learner(
        LearnerConfig.model_validate({"micro_batch": 1, "chunk_tokens": 4} | settings),
        OnRollouts().build(Resources(torch.device("cpu"))),
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


@dataclass(frozen=True)
class Trial:
    """Steps on the same rows of a batch, of which every rank has its share."""

    student: Backbone
    teacher: Backbone
    batch: TrajectoryBatch

    def runs(self, settings: list[dict[str, Any]], ranks: ProcessGroup) -> list[Seen]:
        """One for each of the settings."""
        return [self.run(each, ranks) for each in settings]

    def run(
        self, settings: dict[str, Any], ranks: ProcessGroup, snapshots: Snapshots | None = None
    ) -> Seen:
        """Goes on from the newest of `snapshots` if there is one, and stores one after the first
        step if not, beside the others."""
        each = len(self.batch) // ranks.world
        own = self.batch.rows(slice(ranks.rank * each, (ranks.rank + 1) * each))
        learner = learner_of(self.student, self.teacher, ranks, **settings)
        checkpoints = None
        if snapshots is not None:
            if step := snapshots.newest_step():
                found, _ = snapshots.load(step, own=own_part(learner, ranks))
                learner.restore(found, step)
            else:
                checkpoints = checkpoints_of(learner, snapshots, ranks, every=1, minutes=0)
        rows = []
        while learner.steps_done < STEPS:
            rows.append(learner.step(own))
            if checkpoints is not None:
                store(checkpoints, learner, ranks)
        if checkpoints is not None:
            checkpoints.settle()
            checkpoints.close()
        states = {
            name: {k: v.clone() for k, v in state.items()} for name, state in learner.states()
        }
        return Seen(rows, states, learner.published("float32", checked=True).copied())

    def stored(self, settings: dict[str, Any], root: Path, ranks: ProcessGroup) -> Seen:
        """`run` with the snapshots of a folder."""
        return self.run(settings, ranks, Snapshots(root, keep=9, finite=("student", "ema")))

    def awaited(self, ranks: ProcessGroup) -> tuple[Canary | None, list[str], str | None, int]:
        """What is published, and both students, by way of rank 0, which then takes longer than the
        group waits."""
        half = {"parallel": "fsdp", "dtype": "bfloat16"}
        learner = learner_of(self.student, self.teacher, ranks, **half)
        sent = learner.published("float32", checked=True)
        ranks.barrier()
        wait_at_most(6)
        names: list[str] = [name for name, _ in learner.states()]
        found = led(ranks, lambda: time.sleep(8) or "done")
        return sent.canary, names, found, first_says(ranks, 7 + ranks.rank)

    def failing(self, who: tuple[int, ...], root: Path, ranks: ProcessGroup) -> str:
        """What a run says of which these ranks have no third batch."""
        each = len(self.batch) // ranks.world
        own = self.batch.rows(slice(ranks.rank * each, (ranks.rank + 1) * each))
        learner = learner_of(self.student, self.teacher, ranks, parallel="fsdp")
        services: Any = Services(to_arrow(own), who)
        if len(who) < ranks.world:
            wait_at_most(10)  # the others stand in the next step's sums
        snapshots = Snapshots(root, keep=9)
        trainer = Trainer(
            learner,
            Schedule(9, len(self.batch), len(self.batch), 1, 1),
            buffer=services,
            weights=services,
            ledger=services,
            metrics=services,
            checkpoints=checkpoints_of(learner, snapshots, ranks, every=0, minutes=0),
            ranks=ranks,
            weights_dtype=None,
            stall_seconds=SECONDS,
        )
        try:
            trainer.run()
        except RunFailed as error:
            return str(error)
        except RuntimeError:
            return "another rank left"
        return "nothing failed"


class Services:
    """Those of a run as far as a learner sees them; they forget what they are told."""

    def __init__(self, record: Any, who: tuple[int, ...]) -> None:
        self._record = record
        self._who = who

    def take(self, step: int, *, shard: int, **_: Any) -> Share:
        if step == 2 and shard in self._who:
            raise RunFailed("the teacher is gone")
        return Share([self._record], [step])

    def pending(self) -> list[Any]:
        return []

    def gauges(self) -> dict[str, float]:
        return {}

    def ignored(self, *_: Any) -> int:
        return 0

    publish = rewind = restore = commit = post = clear = ignored


def store(checkpoints: Checkpoints, learner: Learner, ranks: ProcessGroup) -> None:
    """As the loop around a learner does it, but after the first step alone."""
    checkpoints.check()
    if checkpoints.is_due(learner.steps_done) and learner.steps_done == 1:
        checkpoints.save(1, learner.snapshot(), {}, {"by": ranks.rank})
