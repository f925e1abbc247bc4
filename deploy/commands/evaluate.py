"""Measure teacher and student, before and after, and write the report.

Writes report.json, report.md, samples.png, curves.png and diagnostics.png into the run folder.

For example:
  varkd evaluate runs/cifar10
"""

import argparse

from deploy.arguments import add_config, open_from


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    config, workspace = open_from(arguments)
    arguments.held.enter_context(workspace.locked(arguments.command))
    from deploy.progress import console
    from deploy.report import write_report

    target = console()
    report = write_report(config, workspace, target)
    fids = ", ".join(f"{name} {value:.3f}" for name, value in report["fid"].items())
    target.print(f"FID: {fids}; report in {workspace.root / 'report.md'}")
    return 0
