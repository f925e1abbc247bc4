"""Distil the student from the teacher: rollout workers, teacher server, buffer, learner.

Runs on a private local Ray cluster, or on the one that RAY_ADDRESS names (`ray job submit`).
Writes student.safetensors, student_ema.safetensors, metrics and distill.json.

For example:
  varkd distill cifar10 --dry-run
  varkd distill runs/cifar10 learner.steps=2000 rollout.workers=4
"""

import argparse

from deploy.arguments import add_config, add_local, open_from

INTERRUPTED = "if steps were done, go on with --resume; --restart throws them away"


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_local(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest snapshot of this config"
    )
    parser.add_argument(
        "--restart", action="store_true", help="throw an unfinished run of this config away"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check, resolve and print the run; start nothing"
    )


def run(arguments: argparse.Namespace) -> int:
    config, workspace = open_from(arguments)
    from deploy.dryrun import plan_run
    from deploy.progress import console, results

    target = console()
    plan = plan_run(config, workspace, timed=arguments.dry_run)
    if arguments.dry_run:
        plan.show(results())
        return 0
    arguments.held.enter_context(workspace.locked(arguments.command))
    from deploy.distill import distill
    from deploy.ending import end, quoted

    facts = distill(
        config,
        workspace,
        target,
        local=arguments.local,
        resume=arguments.resume,
        restart=arguments.restart,
    )
    root = quoted(workspace.root)
    again = f"varkd distill {root} --resume" + (" --local" if arguments.local else "")
    end(
        f"{facts['steps']} steps in {facts['wall_seconds']:.1f} s, {facts['published']} versions "
        f"published ({facts['cause'] or 'all steps done'})",
        files=(workspace.student, workspace.student_ema, workspace.metrics),
        following=again if facts["cause"] else f"varkd evaluate {root}",
    )
    return 0
