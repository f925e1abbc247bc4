"""Give a live run another number of rollout workers or of replicas of a scorer, from any machine
that sees its folder or URL.

Workers between rollout.min_workers and rollout.max_workers (or twice rollout.workers); replicas
from 1 to teacher.max_replicas (or twice teacher.replicas), and those of another table of [scorers]
likewise, as scorer-NAME. The run keeps that number from then on; `auto` lets it choose again, where
a largest number is set. Who retires finishes what it has begun; who finds no room on the cluster
waits for it, and the run goes on.

For example:
  varkd scale runs/cifar10 rollout=8
  varkd scale runs/cifar10 teacher=2
  varkd scale runs/cifar10 rollout=auto
"""

import argparse

from deploy.cli.arguments import add_run_folder

INTERRUPTED = "see `varkd status` for what became of it"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_folder(parser)
    parser.add_argument(
        "target",
        metavar="ROLE=N",
        help="rollout, teacher or scorer-NAME, and how many of them, or auto",
    )


def run(arguments: argparse.Namespace) -> int:
    from common.errors import InputError
    from common.files.paths import shortened
    from deploy.console.progress import results
    from deploy.control.client import ask, require_live
    from deploy.control.place import place_of

    role, _, text = arguments.target.partition("=")
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 5 else None
    if not (role == "rollout" or role == "teacher" or role.startswith("scorer-")) or (
        number is None and text != "auto"
    ):
        raise InputError(
            f"{shortened(arguments.target)}: expected rollout=N, teacher=N or scorer-NAME=N, or "
            "auto for N: these numbers alone change while a run goes on"
        )
    place = place_of(arguments.run_folder)
    require_live(place)
    results().print(ask(place, "scale", {role: "auto" if number is None else number}))
    return 0
