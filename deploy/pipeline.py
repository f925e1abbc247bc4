"""Who talks to whom: the whole system on one page. Read this file first.

    ledger -- leases --> workers -- records --> teacher -- scored records --> buffer --> learner
       ^                    ^                                                              |
       |                    +---------------------- weights <------------------------------+
       +----------------------------- trained leases <-------------------------------------+

Every box is a plain class that is handed its neighbours; a `Launcher` (deploy/backend/launcher.py)
decides whether it lives in this process or in a Ray actor.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import cycle

from common.artifacts.model_file import ModelFile
from common.data.tokens import TokenDataset
from common.errors import ServiceDied, Verdict
from common.exchange.buffer import Buffer
from common.exchange.ledger import Ledger
from common.exchange.metrics import MetricsHub
from common.exchange.weights import WeightStore
from common.randomness import Draws, derive_seed
from deploy.backend.actors import ActorOptions
from deploy.backend.launcher import Launcher
from deploy.config import RunConfig
from learner.train import Outcome
from rollout.worker import RolloutWorker
from teacher_server.teacher import Teacher


@dataclass(frozen=True, slots=True)
class Services:
    """Everything but the learner."""

    ledger: Ledger
    buffer: Buffer
    weights: WeightStore
    hub: MetricsHub
    workers: dict[str, RolloutWorker]

    def without_workers(self) -> "Services":
        """For the learner's ranks; one that restarts talks to the same services."""
        return replace(self, workers={})

    def close(self, cause: str | Verdict) -> None:
        """End the run for everybody who is left; whoever waits learns the cause."""
        for service in (self.ledger, self.buffer, self.weights):
            with suppress(ServiceDied):
                service.close(cause)


def wire(
    config: RunConfig,
    data: TokenDataset,
    teacher: ModelFile,
    place: Launcher,
    generated: TokenDataset | None = None,
) -> Services:
    """Create every service and hand each the ones it talks to; `generated` is the teacher's own
    token dataset, where a context reads one."""
    schedule = config.schedule()
    calls = 4 + 2 * config.rollout.workers * (1 + config.rollout.in_flight)
    ledger = place(Ledger, schedule, site=ActorOptions("ledger", calls))
    limit = int(config.buffer.max_mb * 2**20)
    buffer = place(
        Buffer, schedule, max_bytes=limit, ledger=ledger, site=ActorOptions("buffer", calls)
    )
    weights = place(WeightStore, schedule.versions_kept, site=ActorOptions("weights", calls))
    hub = place(MetricsHub, site=ActorOptions("metrics"))
    teachers = [
        place(
            Teacher,
            config.teacher,
            teacher,
            coalesce=not config.learner.ordered,
            buffer=buffer,
            site=ActorOptions(f"teacher-{index}", calls, config.teacher.cpus, config.teacher.gpus),
        )
        for index in range(config.teacher.replicas)
    ]
    workers = _workers(
        config,
        data,
        generated,
        place,
        weights=weights,
        ledger=ledger,
        teachers=teachers,
        file=teacher,
    )
    return Services(ledger, buffer, weights, hub, workers)


def _workers(
    config: RunConfig,
    data: TokenDataset,
    generated: TokenDataset | None,
    place: Launcher,
    *,
    weights: WeightStore,
    ledger: Ledger,
    teachers: list[Teacher],
    file: ModelFile,
) -> dict[str, RolloutWorker]:
    shared = place.share(data)  # gigabytes for ImageNet: once per node, not once per worker
    shared_generated = None if generated is None else place.share(generated)
    return {
        name: place(
            RolloutWorker,
            config.rollout,
            config.contexts,
            config.models.student,
            name=name,
            schedule=config.schedule(),
            draws=Draws(derive_seed(config.seed, "distill"), len(data)),
            data=shared,
            teacher=place.any_of(teachers),
            weights=weights,
            ledger=ledger,
            teacher_file=file if config.contexts.teacher_sampling else None,
            generated=shared_generated,
            site=ActorOptions(name, 4, config.rollout.cpus, config.rollout.gpus),
        )
        for name in (f"worker-{index}" for index in range(config.rollout.workers))
    }


def run_here(
    services: Services, train: Callable[[Services, Callable[[], object]], Outcome]
) -> Outcome:
    """Everything in this thread: whenever the learner waits, the next worker samples a lease."""
    turns = cycle(services.workers.values())
    return train(services, lambda: next(turns).produce())
