"""Give a live run another number of rollout workers, from any machine that sees its folder.

Between rollout.min_workers and rollout.max_workers (or twice rollout.workers). The run keeps that
number from then on; `auto` lets it choose again, where rollout.max_workers is set. Who retires
finishes what it has begun; who finds no room on the cluster waits for it, and the run goes on.

For example:
  varkd scale runs/cifar10 rollout=8
  varkd scale runs/cifar10 rollout=auto
"""

import argparse

from deploy.cli.arguments import add_run_folder

INTERRUPTED = "see `varkd status` for what became of it"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_folder(parser)
    parser.add_argument("target", metavar="rollout=N", help="how many workers, or auto")


def run(arguments: argparse.Namespace) -> int:
    from common.errors import InputError
    from common.files.paths import shortened
    from deploy.console.progress import results
    from deploy.control.client import ask, require_live

    role, _, text = arguments.target.partition("=")
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 5 else None
    if role != "rollout" or (number is None and text != "auto"):
        raise InputError(
            f"{shortened(arguments.target)}: expected rollout=N or rollout=auto, for the number of "
            "rollout workers alone changes while a run goes on"
        )
    seen = require_live(arguments.run_folder)
    results().print(ask(seen, "scale", {role: "auto" if number is None else number}))
    return 0
