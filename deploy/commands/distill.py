"""Distil the student from the teacher: rollout workers, teacher server, buffer, learner.

Runs on a private local Ray cluster, or on the one that RAY_ADDRESS names (`ray job submit`).
Writes student.safetensors, student_ema.safetensors, metrics and distill.json. A run folder holds
one run: another one is started beside it, from the same files, with --from RUN --out NEW.

Ctrl-C (exit code 130) and SIGTERM (exit code 0) end the run in order: the step is finished and a
snapshot stored, from which --resume goes on. A second one ends it at once.

For example:
  varkd distill cifar10 --dry-run
  varkd distill runs/cifar10 learner.steps=2000 rollout.workers=4
  varkd distill cifar10 --out s3://bucket/runs/cifar10 --resume
  varkd distill runs/cifar10 --from runs/cifar10 --out runs/kd objective.kind=kd
"""

import argparse
from typing import TYPE_CHECKING

from deploy.backend.early_imports import also_import, begin_imports
from deploy.cli.arguments import add_config, add_local, folder_or_url, open_from

if TYPE_CHECKING:
    from rich.console import Console

    from deploy.config import RunConfig
    from deploy.planning.plan import RunPlan
    from deploy.run_folder.workspace import Workspace

INTERRUPTED = "the run had not begun; the folder is as it was"


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_local(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest snapshot; more learner.steps lengthen the schedule from there",
    )
    how.add_argument(
        "--resume-from", type=int, metavar="STEP", help="go on from the snapshot of this step"
    )
    how.add_argument(
        "--restart", action="store_true", help="throw the run in the folder away, done or not"
    )
    parser.add_argument(
        "--from",
        dest="source",
        type=folder_or_url,
        metavar="RUN",
        help="read tokens, tokenizer, teacher and base student of another run folder in place, or "
        "of a run at a URL",
    )
    parser.add_argument(
        "--mirror",
        metavar="URL",
        help="copy snapshots, metrics, report and students to s3://, gs://, ... or file:// while "
        "the run goes on; --resume in a folder without a run fetches them",
    )
    parser.add_argument(
        "--max-minutes",
        metavar="M",
        help="end in order, with a snapshot, after so long; as learner.max_minutes=M",
    )
    parser.set_defaults(needs_snapshots=True)
    parser.add_argument(
        "--dry-run", action="store_true", help="check, resolve and print the run; start nothing"
    )


def _planned(
    arguments: argparse.Namespace,
    config: "RunConfig",
    workspace: "Workspace",
    target: "Console",
) -> "tuple[RunConfig, RunPlan]":
    """With the files and the precision that the run will have; its workers' imports go on
    meanwhile."""
    from deploy.planning.plan import plan_run
    from deploy.run_folder.borrowing import with_files_of
    from deploy.run_folder.precision import settled_precision
    from deploy.stages.learner_rank import imported_late

    also_import(*imported_late(config, workspace))

    if arguments.source is not None:
        workspace = with_files_of(arguments.source, workspace)
    config = settled_precision(config, target)
    return config, plan_run(config, workspace, timed=arguments.dry_run)


def _begin_mirror(arguments: argparse.Namespace, workspace: "Workspace", target: "Console") -> None:
    from deploy.run_folder.mirror import Mirror
    from deploy.run_folder.remote import Remote

    mirror = Mirror(Remote(arguments.mirror), workspace, target.print)
    if arguments.resume or arguments.resume_from is not None:
        mirror.fetch(all_snapshots=arguments.resume_from is not None)
    elif arguments.restart:
        mirror.replace()
    else:
        mirror.require_free()
    arguments.held.enter_context(mirror)


def run(arguments: argparse.Namespace) -> int:
    if not (arguments.local or arguments.dry_run):
        begin_imports(arguments.held)
    if arguments.max_minutes is not None:
        arguments.overrides.append(f"learner.max_minutes={arguments.max_minutes}")
    config, workspace = open_from(arguments)
    from deploy.console.progress import console, results

    target = console()
    config, plan = _planned(arguments, config, workspace, target)
    if arguments.dry_run:
        plan.show(results())
        return 0
    arguments.held.enter_context(workspace.locked(arguments.command))
    if arguments.source is not None:
        from deploy.run_folder.borrowing import borrowed

        arguments.held.enter_context(borrowed(arguments.source, workspace))
    if arguments.mirror is not None:
        _begin_mirror(arguments, workspace, target)
    from deploy.cli.ending import end, quoted, to_go_on
    from deploy.console.stopping import EXIT_CODES
    from deploy.stages.distill import distill

    how = {name: getattr(arguments, name) for name in ("local", "resume", "restart", "resume_from")}
    facts = distill(config, workspace, target, **how)
    if facts["stopped"] and not facts["begun"]:
        target.print(f"{facts['cause']} before its first step; {workspace.root} is as it was")
    else:
        end(
            f"{facts['steps']} steps in {facts['wall_seconds']:.1f} s, {facts['published']} "
            f"versions published ({facts['cause'] or 'all steps done'})",
            files=(workspace.student, workspace.student_ema, workspace.metrics),
            following=to_go_on(workspace.named, local=arguments.local)
            if facts["cause"]
            else f"varkd evaluate {quoted(workspace.named)}",
        )
    return EXIT_CODES.get(facts["stopped"], 0)
