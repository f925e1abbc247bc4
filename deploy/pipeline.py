"""Who talks to whom: the whole system on one page. Read this file first.

    ledger -- leases --> workers -- records --> scorers -- scored records --> buffer --> learner
       ^                    ^                                                              |
       |                    +---------------------- weights <------------------------------+
       +----------------------------- trained leases <-------------------------------------+

Every box is a plain class that is handed its neighbours; a `Launcher` (deploy/backend/launcher.py)
decides whether it lives in this process or in a Ray actor.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TypeAlias

from common.artifacts.model_file import ModelFile
from common.data.tokens import TokenDataset
from common.data.training_images import TrainingImages
from common.errors import ServiceDied, Verdict
from common.exchange.buffer import Buffer
from common.exchange.condition import ConditionTables
from common.exchange.ledger import Ledger
from common.exchange.metrics import MetricsHub
from common.exchange.weight_folder import FiledVersions, WeightFolder
from common.exchange.weights import WeightStore
from common.randomness import Draws, derive_seed
from deploy.backend.actors import ActorOptions
from deploy.backend.bundles import scorer_bundles
from deploy.backend.launcher import Launcher
from deploy.backend.role import ROLLOUT, Role, limits_of, role_name
from deploy.config import RunConfig
from learner.train import Outcome
from rollout.replay import ReplayWorker
from rollout.worker import RolloutWorker
from teacher_server.scorer import (
    Bypass,
    Delivery,
    Onward,
    ScorerFiles,
    ScorerLink,
)

Worker: TypeAlias = RolloutWorker | ReplayWorker


@dataclass(frozen=True, slots=True)
class Services:
    """Everything but the workers, which come and go, and the learner, which may restart."""

    ledger: Ledger
    buffer: Buffer
    weights: WeightStore | WeightFolder
    hub: MetricsHub

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
    conditions: ConditionTables | None = None,
    classifier: Path | None = None,
    versions: Path | None = None,
) -> tuple[Services, Role[Worker], dict[str, Role[ScorerLink]]]:
    """Create every service, hand each the ones it talks to, and say how workers and, by name,
    replicas of scorers are made, at any time: a worker that comes late samples with the weights of
    then, which it fetches and verifies with its first lease.

    `generated` is the teacher's own token dataset, where a context reads one; `conditions` are by
    default those of the config. What only the teacher may know of them is handed to nobody else.
    `classifier` is the run's own one, for scorers that look at images. `versions` is a folder of
    this run alone where the student's weights travel as files, if they do.
    """
    tables = conditions or config.conditions.tables(data.spec.num_classes)
    schedule = config.schedule()
    calls = 6 + 2 * config.rollout.most_workers * (1 + config.rollout.in_flight)
    ledger = place(Ledger, schedule, site=ActorOptions("ledger", calls))
    limit = int(config.buffer.max_mb * 2**20)
    buffer = place(
        Buffer, schedule, max_bytes=limit, ledger=ledger, site=ActorOptions("buffer", calls)
    )
    weights = _weights(place, schedule.versions_kept, versions, calls)
    services = Services(ledger, buffer, weights, place(MetricsHub, site=ActorOptions("metrics")))
    limits = limits_of(config)[ROLLOUT]
    if config.rollout.replay is not None:
        replay = _replay_factory(config, config.rollout.replay, place, ledger, buffer)
        return services, Role(limits, "worker", replay), {}
    reads, ordered, images = config.reads_entropy, config.learner.ordered, _images(config, data)
    files = ScorerFiles(config.teacher, teacher, ordered, tables, reads, classifier, images)
    onward, scorers = _chain(config, files, place, buffer, calls)
    make_worker = _worker_factory(
        config, data, teacher, place, generated, weights, ledger, onward, tables.for_student()
    )
    return services, Role(limits, "worker", make_worker), scorers


def _weights(
    place: Launcher, keep_behind: int, folder: Path | None, calls: int
) -> WeightStore | WeightFolder:
    """Where the bytes of versions lie; the service says in both cases which ones there are."""
    site = ActorOptions("weights", calls)
    if folder is None:
        return place(WeightStore, keep_behind, site=site)
    return WeightFolder(place(FiledVersions, keep_behind, site=site), folder, keep_behind)


def _draws(config: RunConfig, data: TokenDataset) -> Draws:
    return Draws(derive_seed(config.seed, "distill"), len(data))


def _images(config: RunConfig, data: TokenDataset) -> TrainingImages | None:
    """Those behind the indices that workers sample, where a scorer looks at them."""
    if not config.compares_pixels:
        return None
    return TrainingImages(config.images, config.tokens, data.spec, _draws(config, data))


def _chain(
    config: RunConfig,
    files: ScorerFiles,
    place: Launcher,
    buffer: Buffer,
    calls: int,
) -> tuple[Callable[[], Onward], dict[str, Role[ScorerLink]]]:
    """The scorers from the last to the first, each with a way to its neighbours; gives a worker its
    way in, and how replicas of each are made."""

    def end() -> Onward:
        return Delivery(buffer)

    onward: Callable[[], Onward] = end
    roles: dict[str, Role[ScorerLink]] = {}
    for name in reversed(config.scoring):
        roles[role := role_name(config, name)] = _scorer_role(
            config, name, files, place, calls, onward
        )
        onward = partial(place.any_of, role)
    schedule = config.schedule()
    if not schedule.phases:
        return onward, roles
    through = onward
    return lambda: Bypass(schedule, through(), end()), roles


def _scorer_role(
    config: RunConfig,
    name: str,
    files: ScorerFiles,
    place: Launcher,
    calls: int,
    onward: Callable[[], Onward],
) -> Role[ScorerLink]:
    """A scorer, with its first replicas; the teacher says itself how busy it is."""
    bundles, role = scorer_bundles(config, name), role_name(config, name)
    busy = None if role == "teacher" else role

    def make(actor: str) -> ScorerLink:
        site = ActorOptions(actor, calls, bundles.cpus, bundles.gpus, bundles.section)
        scorer = config.scoring[name]
        return place(ScorerLink, scorer, files, onward=onward(), name=busy, site=site)

    first = {f"{role}-{number}": make(f"{role}-{number}") for number in range(bundles.count)}
    place.announce(role, list(first.values()))
    return Role(limits_of(config)[role], role, make, first, is_asked=True)


def _worker_factory(
    config: RunConfig,
    data: TokenDataset,
    teacher: ModelFile,
    place: Launcher,
    generated: TokenDataset | None,
    weights: WeightStore | WeightFolder,
    ledger: Ledger,
    scorers: Callable[[], Onward],
    conditions: ConditionTables,
) -> Callable[[str], RolloutWorker]:
    shared = place.share(data)  # gigabytes for ImageNet: once per node, not once per worker
    shared_generated = None if generated is None else place.share(generated)

    def make_worker(name: str) -> RolloutWorker:
        return place(
            RolloutWorker,
            config.rollout,
            config.contexts,
            config.models.student if config.samples_student else None,
            name=name,
            schedule=config.schedule(),
            draws=_draws(config, data),
            data=shared,
            scorers=scorers(),
            weights=weights,
            ledger=ledger,
            teacher_file=teacher if config.contexts.teacher_sampling else None,
            generated=shared_generated,
            conditions=conditions,
            tokenizer=teacher.tokenizer,
            site=ActorOptions(name, 4, config.rollout.cpus, config.rollout.gpus, "rollout"),
        )

    return make_worker


def _replay_factory(
    config: RunConfig, folder: Path, place: Launcher, ledger: Ledger, buffer: Buffer
) -> Callable[[str], ReplayWorker]:
    """Workers that read instead, and go past the scorers."""

    def make_worker(name: str) -> ReplayWorker:
        return place(
            ReplayWorker,
            folder,
            name=name,
            seed=derive_seed(config.seed, "replay"),
            ledger=ledger,
            onward=Delivery(buffer),
            site=ActorOptions(name, 4, config.rollout.cpus, config.rollout.gpus, "rollout"),
        )

    return make_worker


def run_here(
    workers: Role[Worker], count: int, train: Callable[[Callable[[], object]], Outcome]
) -> Outcome:
    """Everything in this thread: whenever the learner waits, the next worker samples a lease."""
    turns = cycle([workers.make(f"{workers.member}-{number}") for number in range(count)])
    return train(lambda: next(turns).produce())
