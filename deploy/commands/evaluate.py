"""Measure teacher and student, before and after, and write the report.

Writes report.json, report.md, samples.png, curves.png and diagnostics.png into the run folder.

For example:
  varkd evaluate runs/cifar10
"""

import argparse

from deploy.cli.arguments import add_config, open_from


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    config, workspace = open_from(arguments)
    arguments.held.enter_context(workspace.locked(arguments.command))
    from deploy.cli.ending import end, quoted
    from deploy.console.progress import console
    from deploy.stages.evaluate import write_report

    report = write_report(config, workspace, console())
    fids = ", ".join(f"{name} {value:.3f}" for name, value in report["fid"].items())
    pictures = ("samples.png", "curves.png", "diagnostics.png")
    end(
        f"FID: {fids}",
        files=[workspace.root / name for name in ("report.md", *pictures)],
        following=f"varkd sample {quoted(workspace.named)}",
    )
    return 0
