"""One distillation run from files to files: check, start, watch, store the student.

Nothing in the run folder changes before the first step is done: see deploy/run_folder/start.py.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from common.data.tokens import TokenDataset, load_tokens
from common.data.training_images import require_images
from common.errors import Closed, InputError, RunFailed
from common.exchange.metrics import MetricsLog
from deploy.backend.bundles import node_labels, run_bundles
from deploy.backend.launcher import Launcher, LocalLauncher, threads_as_on_ray
from deploy.backend.role import ROLLOUT, Role
from deploy.backend.session import cluster
from deploy.config import RunConfig
from deploy.console.faults import FaultLog
from deploy.console.progress import Bar
from deploy.console.stopping import StopRequest, stop_request
from deploy.control.live import LiveRun
from deploy.pipeline import Services, Worker, run_here, wire
from deploy.run_folder.identity import identify
from deploy.run_folder.lock import Tenancy
from deploy.run_folder.precision import settled_precision
from deploy.run_folder.start import Begin, Start, plan, run_snapshots
from deploy.run_folder.version_files import version_files
from deploy.run_folder.workspace import Workspace
from deploy.stages.generate import load_generated
from deploy.stages.learner_rank import learn
from deploy.stages.milestone_quality import require_judge
from deploy.stages.perceptual import compared_by
from deploy.stages.run_facts import account, store
from deploy.stages.run_logs import run_logs
from deploy.stages.steering import Steering
from deploy.stages.watch import Watch, clusters_unless_begun
from learner.alternating_config import AlternatingConfig
from learner.process_group import SingleProcess
from learner.train import Outcome
from teacher_server.scorer import ScorerLink

POLL_SECONDS = 0.2
GIVE_UP_SECONDS = 60.0


@dataclass(frozen=True)
class Run:
    """A run that was checked and is ready to start."""

    config: RunConfig
    workspace: Workspace
    data: TokenDataset
    generated: TokenDataset | None
    """The teacher's own tokens, where a context reads them."""
    start: Start
    versions: Path | None = None
    """The folder where the student's weights travel as files, while there is one."""

    def wire(self, place: Launcher) -> tuple[Services, Role[Worker], dict[str, Role[ScorerLink]]]:
        teacher = self.workspace.model(self.config, "teacher")
        classifier = self.workspace.classifier if self.config.uses_classifier else None
        return wire(
            self.config,
            self.data,
            teacher,
            place,
            self.generated,
            classifier=classifier,
            versions=self.versions,
        )


def preflight(config: RunConfig, workspace: Workspace) -> TokenDataset:
    """Load the tokens and refuse models that do not speak them, before anything is started.

    Raises:
        InputError: a file is missing, or vocabulary, grid, classes or conditions differ.
    """
    objective, tokens = config.objective, workspace.existing_tokens()
    if isinstance(objective, AlternatingConfig) and config.learner.weights is None:
        raise InputError(
            f"objective.kind={objective.kind} begins with what a run of dd2_gts learned, but "
            "learner.weights is not set; give it the student_ema.safetensors of such a run"
        )
    data = load_tokens(tokens)
    config.conditions.tables(data.spec.num_classes)
    if config.compares_pixels:
        require_images(config.images, config.tokens, data)
    for name in ("student_before", "teacher"):
        if workspace.has_model(config, name):
            workspace.model(config, name).check()
    return data


def distill(
    config: RunConfig,
    workspace: Workspace,
    target: Console,
    *,
    local: bool,
    resume: bool = False,
    restart: bool = False,
    resume_from: int | None = None,
    launch: Callable[[], Any] | None = None,
) -> dict[str, Any]:
    """Run to the end (or to Ctrl-C or SIGTERM) and write the student; the facts of the run.

    `resume` goes on from the newest snapshot, `resume_from` from the one of that step; `restart`
    throws an earlier run in the folder away, once this one has done a step. `launch` makes another
    launcher of the services than LocalLauncher (with `local`) or RayLauncher.

    Raises:
        InputError: something in the user's files.
        RunFailed: workers or the learner failed for good; finished steps are in the snapshots.
    """
    started, config = time.monotonic(), settled_precision(config, target)
    resume = resume or resume_from is not None
    begin: Begin = "restart" if restart else "resume" if resume else "new"
    with stop_request(60 * config.learner.max_minutes) as stop:
        outcome, gauges, first = Outcome(0, 0, 0.0), {}, 0
        try:
            run = _check(config, workspace, target, begin, resume_from)
            outcome = Outcome(first := run.start.step, 0, 0.0)
            outcome, gauges = _train(run, target, stop, local=local, launch=launch)
        except KeyboardInterrupt:  # Stopped, or what Ray made of it
            if stop.name is None:
                raise
        is_done = outcome.steps == config.learner.steps
        facts = {**account(outcome, first, None if is_done else stop.name), **gauges}
        facts |= {"wall_seconds": time.monotonic() - started, "local": local}
        if facts["begun"] or is_done:
            store(config, workspace, facts)
    return facts


def _check(
    config: RunConfig,
    workspace: Workspace,
    target: Console,
    begin: Begin,
    resume_from: int | None,
) -> Run:
    """Everything that can be refused before anything is started; reads and writes nothing."""
    for logger in config.loggers.values():
        logger.require()
    data, generated = preflight(config, workspace), load_generated(config, workspace)
    identity = identify(config, workspace, data, generated)
    start = plan(config, workspace, identity, begin, resume_from)
    for words in start.words:
        target.print(words)
    return Run(config, workspace, data, generated, start)


def _train(
    run: Run,
    target: Console,
    stop: StopRequest,
    *,
    local: bool,
    launch: Callable[[], Any] | None,
) -> tuple[Outcome, dict[str, Any]]:
    if run.start.step >= run.config.learner.steps:
        with closing(MetricsLog(run.workspace.root)) as log:
            log.write([*run.start.rows])
        return Outcome(run.start.step, 0, 0.0), {}
    perceptual = compared_by(run.config, run.workspace, run.start.identity["contents"], target)
    require_judge(run.config, run.workspace, target)
    log = run_logs(run.config, run.workspace, target)
    try:
        steps, checkpoints = run.config.learner.steps, run_snapshots(run.workspace)
        with (
            Bar(target, "distill", steps) as bar,
            LiveRun(run.workspace.root, stop, checkpoints, lambda: bar.line, steps) as live,
        ):
            steering = Steering(run.config, live, target)
            tenancy = Tenancy(run.workspace.root)
            watch = Watch(log, bar, stop, target, steering, tenancy, run.start.rows)
            with (
                clusters_unless_begun(run.workspace, watch),
                version_files(run.config, run.workspace.root) as versions,
            ):
                run = replace(run, versions=versions)
                found = (_run_local if local else _run_on_ray)(run, watch, launch)
            if watch.failure is not None:
                raise watch.failure
            live.tell(cause=found[0].cause)
            return found[0], found[1] | steering.facts() | {"perceptual": perceptual}
    finally:
        log.close()


def _run_local(
    run: Run, watch: Watch, launch: Callable[[], Any] | None
) -> tuple[Outcome, dict[str, Any]]:
    services, workers, _ = run.wire((launch or LocalLauncher)())

    def train(sample: Callable[[], object]) -> Outcome:
        def while_waiting() -> None:
            watch.poll(services)
            sample()

        root = run.workspace.root
        return learn(run.config, root, services, SingleProcess(), run.start, while_waiting)

    watch.stop.poll_from_here()
    try:
        with threads_as_on_ray(run.config, watch.target.print):
            outcome = run_here(workers, run.config.rollout.workers, train)
    finally:
        watch.poll(services)
    return outcome, _gauges(services)


def _run_on_ray(
    run: Run, watch: Watch, launch: Callable[[], Any] | None
) -> tuple[Outcome, dict[str, Any]]:
    config = run.config
    with cluster(config, told=watch.bar, needed="deploy.backend.train_job"):
        from deploy.backend.proxies import RayLauncher
        from deploy.backend.reservation import patience

        place = (launch or RayLauncher)()
        with place.reserved(run_bundles(config), seconds := patience(config), watch.bar.say):
            return _run_in_actors(run, watch, place, seconds)


def _run_in_actors(
    run: Run, watch: Watch, place: Any, patience: float
) -> tuple[Outcome, dict[str, Any]]:
    """On a cluster that has room; `place` is a RayLauncher, `patience` the learner's."""
    from deploy.backend.heartbeat import Heartbeat
    from deploy.backend.supervisor import Supervisor
    from deploy.backend.train_job import TRAIN_STORAGE, TrainJob

    config, root, bar = run.config, run.workspace.root, watch.bar
    services, workers, scorers = run.wire(place)
    tell, faults = watch.steering.say, FaultLog(root)
    crew = Supervisor(services, {ROLLOUT: workers, **scorers}, place, tell, faults)
    rank = partial(learn, config, root, start=run.start)
    place.give_ranks_back()  # and the learner starts up beside the actors
    job = TrainJob(config.learner, root, services, rank, patience, node_labels(config, "learner"))
    silence = partial(watch.patience, config.learner.stall_seconds)
    with Heartbeat(place.living, silence, crew.known_causes) as heartbeat:
        try:
            place.wait_ready(bar.say)
            bar.say("waiting for the learner")
            watch.stop.poll_from_here()
            while job.running():
                heartbeat.check()
                crew.check()
                watch.follow(services, crew, config.learner.stop_seconds)
                time.sleep(POLL_SECONDS)
            watch.poll(services)
            return job.result(), _gauges(services) | crew.facts(watch.deaths)
        except RunFailed as error:
            raise heartbeat.blamed(error) from error.__cause__
        finally:
            watch.is_closing = True
            watch.stop.poll_from_here()  # ended in order from here, whatever happened
            if job.running():  # an actor was refused, or Ctrl-C: let the learner end in order
                services.close("the run was given up")
                job.wait(min(GIVE_UP_SECONDS, config.learner.stop_seconds))
            _last_rows(watch, services)
            crew.dismiss()
            place.shutdown()
            shutil.rmtree(root / TRAIN_STORAGE, ignore_errors=True)


def _last_rows(watch: Watch, services: Services) -> None:
    """What the learner posted before it failed, if the hub still lives."""
    try:
        watch.poll(services)
    except (Closed, RunFailed):
        return


def _gauges(services: Services) -> dict[str, Any]:
    ledger = services.ledger
    found = {**services.buffer.gauges(), **ledger.gauges(), "restarts": ledger.restarts()}
    return {**found, "deaths": {}}
