"""Two minutes, no network: distil a small model of handwritten digits through the whole pipeline.

Tokenizer, teacher, student, distillation on Ray, evaluation, report; see deploy/configs/smoke.toml.

For example:
  varkd smoke
  varkd smoke --family var seed=1 --out runs/var
  varkd smoke --method dd1
"""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.backend.early_imports import begin_imports
from deploy.cli.arguments import add_overrides, open_from
from deploy.run_folder.shipped import smoke_config, smoke_configs

if TYPE_CHECKING:
    from rich.console import Console

    from deploy.config import RunConfig
    from deploy.run_folder.workspace import Workspace


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
        help=f"the objective; dd1 has students of one pass (default: {usual})",
    )


def run(arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    begin_imports(arguments.held)
    arguments.config = Path(smoke_config(arguments.method, arguments.family))
    config, workspace = open_from(arguments)
    arguments.held.enter_context(workspace.locked(arguments.command))
    import torch

    from deploy.cli.ending import end, quoted
    from deploy.console.progress import console
    from deploy.stages.evaluate import write_report

    torch.set_num_threads(1)
    facts = _distilled(config, workspace, target := console())
    if facts["stopped"]:
        return _stopped(facts, workspace.root)
    wall = time.monotonic() - started
    fid = write_report(config, workspace, target, wall_seconds=wall)["fid"]
    total = time.monotonic() - started
    before = f"{fid['student_before']:.3f} -> " if "student_before" in fid else ""
    end(
        f"FID teacher {fid['teacher']:.3f}, student {before}{fid['student_after']:.3f} after "
        f"{facts['steps']} steps; {total:.0f} s in all",
        files=[workspace.root / name for name in ("samples.png", "report.md")],
        following=f"varkd sample {quoted(workspace.root)}  # for your images: varkd init FOLDER",
    )
    return 0


def _distilled(config: "RunConfig", workspace: "Workspace", target: "Console") -> dict[str, Any]:
    """From images to a student, on a private cluster; what the distillation says of itself. The
    features of the evaluation get ready beside the models."""
    from deploy.backend.beside import beside
    from deploy.backend.session import cluster, warm_up
    from deploy.stages.distill import distill
    from deploy.stages.generate import dataset_source, generate
    from deploy.stages.pretrain import pretrain_model, trained_models
    from deploy.stages.quality import prepare_features
    from deploy.stages.tokenize import tokenize
    from deploy.stages.training import require_finished

    with cluster(config, told=target):
        warm_up(config)
        tokenize(config, workspace, target, local=True)
        with beside("features", prepare_features, config, workspace):
            for which in trained_models(config):
                facts = pretrain_model(config, workspace, which, target, restart=True)
                require_finished(facts, target)
        if dataset_source(config) is not None:
            generate(config, workspace, target, local=True)
        target.print("placing ledger, buffer, weights, teacher, workers and learner")
        return distill(config, workspace, target, local=False, restart=True)


def _stopped(facts: dict[str, Any], root: Path) -> int:
    """Without a student there is nothing to report."""
    from deploy.cli.ending import end, to_go_on
    from deploy.console.stopping import EXIT_CODES

    end(
        f"{facts['cause']} after {facts['steps']} steps of distillation",
        following=to_go_on(root) if facts["begun"] else "varkd smoke",
    )
    return EXIT_CODES[facts["stopped"]]
