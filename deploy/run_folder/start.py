"""How a run begins: from step 0 or from a snapshot, and never over somebody's work unasked.

`plan` looks and touches nothing. `take_over` is the moment when a folder becomes this run's: after
the first step, because until then a run may still be refused.
"""

import shutil
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from common.errors import InputError
from common.exchange.metric_files import read_rows
from common.files.snapshots import Snapshots
from deploy.config import RunConfig
from deploy.run_folder.identity import NOTED, Identity
from deploy.run_folder.lock import Tenancy
from deploy.run_folder.workspace import Workspace

Begin = Literal["new", "resume", "restart"]
"""What to do with an earlier run in the folder: refuse, go on with it, or throw it away."""
MOST_NAMED = 4
"""Differences that one sentence holds."""


@dataclass(frozen=True)
class Start:
    """Where a run begins; it travels to the learner's ranks."""

    identity: dict[str, Any]
    """What the run depends on, for its snapshots."""
    step: int = 0
    """The snapshot's step; 0 begins anew."""
    words: tuple[str, ...] = ()
    """What the user should know of it."""
    rows: tuple[dict[str, Any], ...] = ()
    """Rows of metrics that nobody may have written when the snapshot was made."""
    aside: Path | None = None
    """Where the results of an earlier run move that left no snapshot to tell it by."""


def run_snapshots(
    workspace: Workspace,
    identity: dict[str, Any] | None = None,
    keep: int = 2,
    tenancy: Tenancy | None = None,
) -> Snapshots:
    """The run's snapshots; those that are written say what the run depends on."""
    facts = {"identity": identity}
    finite = ("student", "ema", "optimizer")
    guard = tenancy.require if tenancy else lambda: None
    return Snapshots(workspace.snapshots, keep=keep, facts=facts, finite=finite, guard=guard)


def plan(
    config: RunConfig,
    workspace: Workspace,
    identity: Identity,
    begin: Begin,
    at_step: int | None = None,
) -> Start:
    """Decide how to begin; `at_step` names the snapshot to go on from, by default the newest.

    Raises:
        InputError: there is a run in the folder and it was not said what to do with it, or it
            cannot go on as asked; the message says which key, file or snapshot is in the way.
    """
    fresh = Start(identity.as_dict())
    steps = run_snapshots(workspace).steps()
    if begin == "restart":
        return fresh
    if begin == "new":
        _refuse_a_run(config, workspace, steps)
        return _beside_results(workspace, fresh)
    if not steps and at_step is None and not workspace.has_run():
        nothing = f"nothing to resume in {workspace.root}: the run begins at step 0"
        return Start(fresh.identity, words=(nothing,))
    step, facts = _snapshot(workspace, steps, at_step)
    words = _compare(config, workspace, identity, facts, step)
    read_rows(workspace.metrics)  # refuses rows that cannot be gone on with
    read_rows(workspace.profiles)
    if at_step is not None and step < steps[-1]:
        words = (*words, f"steps {step + 1} to {steps[-1]} are thrown away")
    words, rows = (*words, f"going on after step {step}"), tuple(facts.get("rows", ()))
    return Start(fresh.identity, step, words, rows)


def take_over(config: RunConfig, workspace: Workspace, start: Start) -> None:
    """Make the folder this run's, which has just done its first step."""
    if start.step:
        run_snapshots(workspace).drop_after(start.step)
        for path in workspace.milestones_after(start.step):
            path.unlink()
    elif start.aside is not None:
        start.aside.mkdir()
        for path in workspace.traces():
            path.rename(start.aside / path.name)
    else:
        for path in workspace.traces():
            if path not in workspace.rows:
                remove(path)  # the rows are the driver's, which begins them anew itself
    workspace.keep_config(config)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _refuse_a_run(config: RunConfig, workspace: Workspace, steps: list[int]) -> None:
    if not steps:
        return
    beside = f"start another beside it with --from {workspace.root} --out NEW"
    wanted = config.learner.steps
    if steps[-1] < wanted:
        raise InputError(
            f"{workspace.root}: this run stopped at step {steps[-1]} of {wanted}; go on with "
            f"--resume, throw it away with --restart, or {beside}"
        )
    raise InputError(
        f"{workspace.root}: holds a run of {steps[-1]} steps; {beside}, train it further with "
        "--resume learner.steps=MORE, or throw it away with --restart"
    )


def _beside_results(workspace: Workspace, fresh: Start) -> Start:
    """A run whose snapshots somebody removed cannot go on, but what it made is not thrown away."""
    found = workspace.traces()
    if not found:
        return fresh
    numbers = (workspace.root / f"earlier-{number}" for number in count(1))
    aside = next(folder for folder in numbers if not folder.exists())
    names = " and others" if len(found) > 1 else ""
    words = (
        f"{workspace.root}: {found[0].name}{names} are of an earlier run without snapshots; they "
        f"move to {aside.name}/ after the first step",
    )
    return Start(fresh.identity, words=words, aside=aside)


def _snapshot(
    workspace: Workspace, steps: list[int], at_step: int | None
) -> tuple[int, dict[str, Any]]:
    """(step, facts) of the snapshot to go on from, which is whole."""
    if not steps:
        raise InputError(
            f"{workspace.snapshots}: no snapshot to go on from; begin again with --restart"
        )
    step = steps[-1] if at_step is None else at_step
    if step not in steps:
        raise InputError(
            f"--resume-from {step}: {workspace.snapshots} has snapshots of step "
            f"{' and '.join(map(str, steps))}"
        )
    snapshots = run_snapshots(workspace)
    try:
        return step, snapshots.verify(step)
    except InputError as error:
        whole = [other for other in steps if other != step and _is_whole(snapshots, other)]
        remedy = "begin again with --restart"
        if whole:
            remedy = f"go on from the whole one beside it with --resume-from {whole[-1]}"
        raise InputError(f"{error}; {remedy}") from None


def _is_whole(snapshots: Snapshots, step: int) -> bool:
    try:
        snapshots.verify(step)
    except InputError:
        return False
    return True


def _compare(
    config: RunConfig, workspace: Workspace, identity: Identity, facts: dict[str, Any], step: int
) -> tuple[str, ...]:
    """What changed since the snapshot and may; refuses what may not."""
    before = facts.get("identity") or {"fields": {}, "contents": {}}
    found = list(identity.differences(before))
    refused = [f"{key} {what}" for key, what in found if key not in NOTED]
    if refused:
        more = f", and {len(refused) - MOST_NAMED} more" if len(refused) > MOST_NAMED else ""
        raise InputError(
            f"{workspace.root}: the snapshot of step {step} is of another run: "
            f"{'; '.join(refused[:MOST_NAMED])}{more}; put it back, begin again with --restart, or "
            f"start another beside it with --from {workspace.root} --out NEW"
        )
    if step > config.learner.steps:
        raise InputError(
            f"{workspace.root}: learner.steps is {config.learner.steps}, but the run is at step "
            f"{step} already; raise it, or go back with --resume-from"
        )
    return tuple(f"{key} {what}: {NOTED[key]}" for key, what in found if key in NOTED)
