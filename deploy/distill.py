"""One distillation run from files to files: check, start, watch, store the student."""

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from common.checkpoint import write_text
from common.errors import InputError, RunFailed
from common.metrics import PROFILE, MetricsHub, MetricsLog
from common.tokens import TokenDataset, load_tokens
from deploy.cluster import cluster
from deploy.config import RunConfig, Workspace
from deploy.faults import FaultLog
from deploy.generating import load_generated
from deploy.learning import learn, run_snapshots, store_student
from deploy.pipeline import Services, run_here, wire
from deploy.place import Here
from deploy.progress import Bar
from deploy.room import require_room, run_demands
from learner.learner import Solo
from learner.train import Outcome

Datasets = tuple[TokenDataset, TokenDataset | None]
"""The training images' tokens, and the teacher's own where a context reads them."""
POLL_SECONDS = 0.2
GIVE_UP_SECONDS = 60.0
SHOWN = {
    "loss": "loss",
    "img/s": "images_per_second",
    "version": "version",
    "lag": "lag_mean",
    "buffer": "buffer/fill",
}


@dataclass
class Watch:
    """Moves metric rows from the hub to disk and to the screen."""

    hub: MetricsHub
    log: MetricsLog
    bar: Bar
    cursor: int = 0
    recent: list[tuple[float, int]] = field(default_factory=list)
    shown: dict[str, float] = field(default_factory=dict)

    def poll(self) -> None:
        rows = self.hub.since(self.cursor)
        self.cursor += len(rows)
        steps = [row for row in rows if PROFILE not in row]
        for row in steps:
            self.recent = [*self.recent[-19:], (row["time"], int(row["images_total"]))]
            (first, before), (last, after) = self.recent[0], self.recent[-1]
            row["images_per_second"] = (after - before) / (last - first) if last > first else 0.0
        if rows:
            self.log.write(rows)
        if steps:
            for row in steps:  # a step without student rows has no lag: show the last one
                self.shown |= {name: row[key] for name, key in SHOWN.items() if key in row}
            self.bar.show(steps[-1]["step"], self.shown)


def preflight(config: RunConfig, workspace: Workspace) -> TokenDataset:
    """Load the tokens and refuse models that do not speak them, before anything is started.

    Raises:
        InputError: a file is missing, or vocabulary, grid or classes differ.
    """
    tokens = workspace.existing_tokens()
    data = load_tokens(tokens)
    for name in ("student_before", "teacher"):
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
) -> dict[str, Any]:
    """Run to the end (or to SIGTERM) and write the student; returns the facts of the run.

    Raises:
        InputError: something in the user's files.
        RunFailed: workers or the learner failed for good; finished steps are in the snapshots.
    """
    data, generated = preflight(config, workspace), load_generated(config, workspace)
    resuming = _prepare_snapshots(config, workspace, resume=resume, restart=restart)
    log = MetricsLog(workspace.root, fresh=not resuming)
    started = time.monotonic()
    try:
        with Bar(target, "distill", config.learner.steps) as bar, _config_unless_refused(workspace):
            runner = _run_local if local else _run_on_ray
            outcome, gauges = runner(config, workspace, (data, generated), log, bar)
    finally:
        log.close()
    if outcome.steps:  # a run that was stopped while starting up has nothing to store
        _store_students(config, workspace)
    facts = {
        **outcome.as_dict(),
        "wall_seconds": time.monotonic() - started,
        "resumed": resuming,
        "local": local,
        **gauges,
    }
    write_text(workspace.root / "distill.json", json.dumps(facts, indent=2))
    return facts


@contextmanager
def _config_unless_refused(workspace: Workspace) -> Iterator[None]:
    """A gate may be refused only at the first rollouts: the folder then keeps the config it had."""
    before = workspace.config.read_text() if workspace.config.exists() else None
    try:
        yield
    except InputError:
        if before is not None:
            write_text(workspace.config, before)
        raise


def _prepare_snapshots(
    config: RunConfig, workspace: Workspace, *, resume: bool, restart: bool
) -> bool:
    """Whether the run goes on from a snapshot; unfinished work is never thrown away unasked.

    Raises:
        InputError: an unfinished run of this config is there, and it was not said what to do.
    """
    snapshots = run_snapshots(config, workspace)
    done = snapshots.newest_step()
    if done is None or (resume and not restart):
        return done is not None
    if done < config.learner.steps and not restart:
        raise InputError(
            f"{workspace.snapshots}: this run stopped at step {done} of {config.learner.steps}; "
            "go on with --resume, or throw it away with --restart"
        )
    snapshots.clear()
    return False


def _run_local(
    config: RunConfig, workspace: Workspace, datasets: Datasets, log: MetricsLog, bar: Bar
) -> tuple[Outcome, dict[str, Any]]:
    data, generated = datasets
    services = wire(config, data, workspace.model(config, "teacher"), Here(), generated)
    workspace.keep_config(config)  # not before every part accepted it
    watch = Watch(services.hub, log, bar)

    def train(services: Services, sample: Callable[[], object]) -> Outcome:
        def while_waiting() -> None:
            watch.poll()
            sample()

        return learn(config, workspace.root, services, Solo(), while_waiting)

    with _stop_on_sigterm(services):
        outcome = run_here(services, train)
    watch.poll()
    return outcome, _gauges(services, deaths={})


def _run_on_ray(
    config: RunConfig, workspace: Workspace, datasets: Datasets, log: MetricsLog, bar: Bar
) -> tuple[Outcome, dict[str, Any]]:
    with cluster(config, told=bar):
        from deploy.crew import Crew
        from deploy.ddp import TRAIN_STORAGE, TrainJob
        from deploy.remote import OnRay

        require_room(run_demands(config), bar.say)
        place = OnRay()
        data, generated = datasets
        services = wire(config, data, workspace.model(config, "teacher"), place, generated)
        job = TrainJob(config, workspace.root, services)  # starts up beside the actors
        faults = FaultLog(workspace.root)
        crew = Crew(services, min_workers=config.rollout.min_workers, faults=faults)
        try:
            place.wait_ready(bar.say)
            bar.say("waiting for the learner")
            workspace.keep_config(config)
            watch = Watch(services.hub, log, bar)
            with _stop_on_sigterm(services):
                while job.running():
                    crew.check()
                    watch.poll()
                    time.sleep(POLL_SECONDS)
            watch.poll()
            return job.result(), _gauges(services, crew.deaths)
        finally:
            if job.running():  # an actor was refused, or Ctrl-C: let the learner end in order
                services.close("the run was given up")
                job.wait(GIVE_UP_SECONDS)
            crew.dismiss()
            place.shutdown()
            shutil.rmtree(workspace.root / TRAIN_STORAGE, ignore_errors=True)


def _gauges(services: Services, deaths: dict[str, str]) -> dict[str, Any]:
    return {**services.buffer.gauges(), **services.ledger.gauges(), "deaths": deaths}


@contextmanager
def _stop_on_sigterm(services: Services) -> Iterator[None]:
    """SIGTERM ends the run in order: no more leases, a snapshot, exit code 0."""

    def stop(number: int, frame: object) -> None:
        services.close("stopped by SIGTERM; run again with --resume to go on")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _store_students(config: RunConfig, workspace: Workspace) -> None:
    """Write the newest snapshot's student and its average."""
    found = run_snapshots(config, workspace).latest()
    if found is None:
        raise RunFailed("the learner ended without a snapshot")
    tensors, facts = found
    steps = facts["ledger"]["step"]
    store_student(config, workspace, workspace.student, tensors["student"], steps)
    store_student(config, workspace, workspace.student_ema, tensors["ema"], steps)
