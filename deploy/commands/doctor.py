"""Check a machine, or a cluster, before a long run: one page to attach to a report.

Versions, devices, threads, disks and limits; whether attention, bfloat16 and decoding on this
device are float32's but for rounding; a sum over ranks; the files that a config names. Each line
is ok, warn or FAIL, with what to do. The exit code is 1 where something fails. --cluster asks every
node as well, by Ray: the same software, a run folder that all see and write, the same arithmetic.

For example:
  varkd doctor
  varkd doctor cifar10 --out /shared/runs/cifar10 --cluster
"""

import argparse
from pathlib import Path

from deploy.cli.arguments import CONFIGS, add_overrides, complete, path_or_url


def configure(parser: argparse.ArgumentParser) -> None:
    config = parser.add_argument(
        "config",
        type=path_or_url,
        nargs="?",
        help="TOML file, run folder or its URL, or shipped config",
    )
    complete(config, CONFIGS)
    add_overrides(parser)
    parser.add_argument("--cluster", action="store_true", help="ask every node, by Ray")


def run(arguments: argparse.Namespace) -> int:
    from deploy.cli.arguments import open_from
    from deploy.console.progress import busy, console, results

    has_config = arguments.config is not None
    arguments.config = arguments.config or Path("smoke")  # for what every config has
    config, workspace = open_from(arguments)
    from deploy.doctor.arithmetic import arithmetic
    from deploy.doctor.collectives import collectives
    from deploy.doctor.finding import examined
    from deploy.doctor.machine import machine
    from deploy.doctor.nodes import nodes
    from deploy.doctor.run_files import run_files

    root = workspace.root if has_config or arguments.out is not None else None
    store_mb = config.cluster.object_store_mb
    with busy(console(), "doctor: looking at this machine", at_once=False):
        found = examined("machine", lambda: machine(root, store_mb))
        found += examined("arithmetic", arithmetic)
        found += examined("collectives", collectives)
        if has_config:
            found += examined("files", lambda: run_files(config, workspace))
    if arguments.cluster:
        found += examined("cluster", lambda: nodes(config, workspace.root, console()))
    target = results()
    for finding in found:
        target.print(finding.line())
    failed = [finding.name for finding in found if finding.state == "FAIL"]
    target.print(
        f"{len(found)} checks, {len(failed)} failed" + ": " * bool(failed) + ", ".join(failed)
    )
    return int(bool(failed))
