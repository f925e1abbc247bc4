"""Two minutes, no network: distil a small model of handwritten digits through the whole pipeline.

Tokenizer, teacher, student, distillation on Ray, evaluation, report; see deploy/configs/smoke.toml.

For example:
  varkd smoke
  varkd smoke --family var seed=1 --out runs/var
  varkd smoke --method dd1
  varkd smoke --method dd2
"""

import argparse
import importlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.backend.early_imports import also_import, begin_imports
from deploy.cli.arguments import add_overrides, open_from
from deploy.run_folder.shipped import first_stage, smoke_config, smoke_configs

if TYPE_CHECKING:
    from rich.console import Console

    from deploy.backend.beside import Beside, Here, Job
    from deploy.backend.forking.fork_server import ForkServer
    from deploy.config import RunConfig
    from deploy.run_folder.workspace import Workspace

FIRST = "first_stage"
"""Folder of the run whose student another one begins with."""


def configure(parser: argparse.ArgumentParser) -> None:
    add_overrides(parser)
    methods, families = map(dict.fromkeys, zip(*smoke_configs(), strict=True))
    parser.add_argument(
        "--family",
        choices=tuple(families),
        default=(first := next(iter(families))),
        help=f"of both models (default: {first})",
    )
    parser.add_argument(
        "--method",
        choices=tuple(methods),
        default=(usual := next(iter(methods))),
        help=f"the objective; students of dd1 and dd2 need one pass, and longer (default: {usual})",
    )


def run(arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    server = begin_imports(arguments.held)
    arguments.config = Path(smoke_config(arguments.method, arguments.family))
    config, workspace = open_from(arguments)
    from deploy.stages.learner_rank import imported_late

    also_import(*imported_late(config, workspace))
    arguments.held.enter_context(workspace.locked(arguments.command))
    import torch

    from deploy.backend.beside import beside
    from deploy.cli.ending import end, quoted
    from deploy.console.progress import console
    from deploy.stages.evaluate import write_report

    torch.set_num_threads(1)
    facts, config = _distilled(
        config, workspace, target := console(), _first_stage(arguments, workspace), server
    )
    if facts["stopped"]:
        return _stopped(facts, workspace.root)
    wall = time.monotonic() - started
    with beside(server) as jobs:
        report = write_report(config, workspace, target, wall_seconds=wall, jobs=jobs)
    fid = report["fid"]
    total = time.monotonic() - started
    before = f"{fid['student_before']:.3f} -> " if "student_before" in fid else ""
    end(
        f"FID teacher {fid['teacher']:.3f}, student {before}{fid['student_after']:.3f} after "
        f"{facts['steps']} steps; {total:.0f} s in all",
        files=[workspace.root / name for name in ("samples.png", "report.md")],
        following=f"varkd sample {quoted(workspace.named)}  # for your images: varkd init FOLDER",
    )
    return 0


def _first_stage(
    arguments: argparse.Namespace, workspace: "Workspace"
) -> "tuple[RunConfig, Workspace] | None":
    """The run whose student this one begins with, in a folder of its folder; overrides hold for
    both, but those of objective and contexts."""
    name = first_stage(arguments.config.name)
    if name is None:
        return None
    from deploy.run_folder.opening import open_run

    own = ("objective.", "contexts.")
    overrides = [key for key in arguments.overrides if not key.startswith(own)]
    return open_run(Path(name), overrides, workspace.root / FIRST)


def _distilled(
    config: "RunConfig",
    workspace: "Workspace",
    target: "Console",
    first: "tuple[RunConfig, Workspace] | None",
    server: "ForkServer | None",
) -> "tuple[dict[str, Any], RunConfig]":
    """From images to a student, on a private cluster, which starts while models are trained; what
    the distillation says of itself, and the config that it had."""
    from deploy.backend.beside import beside
    from deploy.backend.session import cluster, warm_up
    from deploy.stages.distill import distill
    from deploy.stages.generate import dataset_source, generate
    from deploy.stages.second_stage import second_stage
    from deploy.stages.tokenize import tokenize

    begun = first or (config, workspace)
    tokenize(*begun, target, local=True)
    with beside(server) as jobs:
        trainings = _trainings(*begun, jobs)
        with cluster(config, told=target, needed="deploy.backend.train_job"):
            if server is None:
                warm_up(config)
            _finish(*begun, target, trainings)
            if dataset_source(begun[0]) is not None:
                generate(*begun, target, local=True)
            target.print("placing ledger, buffer, weights, teacher, workers and learner")
            facts = distill(*begun, target, local=False, restart=True)
            if first is None or facts["stopped"]:
                return facts, config
            config = second_stage(config, workspace, first[1])
            return distill(config, workspace, target, local=False, restart=True), config


def _trainings(
    config: "RunConfig", workspace: "Workspace", jobs: "Beside"
) -> "dict[str, Job | Here]":
    """The models, and the features of the evaluation, which are made while a core is idle."""
    from deploy.stages.pretrain import pretrain_silently, trained_models
    from deploy.stages.quality import prepare_features

    begun = {
        which: jobs.begin(
            f"pretrain {which}", pretrain_silently, config, workspace, which, niceness=niceness
        )
        for which, niceness in zip(trained_models(config), (0, 5), strict=False)
    }
    return begun | {
        "features": jobs.begin("features", prepare_features, config, workspace, niceness=10)
    }


def _finish(
    config: "RunConfig",
    workspace: "Workspace",
    target: "Console",
    trainings: "dict[str, Job | Here]",
) -> None:
    """Wait for what was begun, and show how far it is.

    Raises:
        Stopped: by Ctrl-C or SIGTERM; what was trained is in snapshots.
    """
    from deploy.backend.beside import wait_for
    from deploy.console.followed import followed
    from deploy.console.stopping import Stopped
    from deploy.stages.pretrain import courses, trained_models
    from deploy.stages.training import require_finished

    importlib.import_module("matplotlib.pyplot")  # of the report: there is time for it now
    with followed(target, *courses(config, workspace)):
        stopped = wait_for([*trainings.values()])
        for which in trained_models(config):
            require_finished(trainings[which].result(), target)
        trainings["features"].result()
    if stopped is not None:
        raise Stopped(stopped)


def _stopped(facts: dict[str, Any], root: Path) -> int:
    """Without a student there is nothing to report."""
    from deploy.cli.ending import end, to_go_on
    from deploy.console.stopping import EXIT_CODES

    end(
        f"{facts['cause']} after {facts['steps']} steps of distillation",
        following=to_go_on(root) if facts["begun"] else "varkd smoke",
    )
    return EXIT_CODES[facts["stopped"]]
