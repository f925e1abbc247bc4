"""Train a student on the rollouts that a run kept, with neither teacher nor rollout workers.

For a run with buffer.keep_gb set. The new run has that one's config with overrides, such as another
objective, and reads its files in place. Its first steps take the records in the order in which they
were leased; with more steps they come again, in another order. With the same config in ordered mode
the student is the same to the bit.

For example:
  varkd replay runs/cifar10 --out runs/again
  varkd replay runs/cifar10 --out runs/tau objective.gate.tau=0.3 learner.steps=5000
"""

import argparse

from common.errors import InputError
from common.files.paths import is_url
from deploy.cli.arguments import add_config, add_local
from deploy.commands import distill

INTERRUPTED = distill.INTERRUPTED


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_local(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--resume", action="store_true", help="go on with the replay in --out, from its snapshot"
    )
    how.add_argument(
        "--restart", action="store_true", help="throw the replay in --out away, done or not"
    )
    parser.set_defaults(
        **dict.fromkeys(("resume_from", "source", "mirror", "max_minutes")),
        dry_run=False,
        needs_snapshots=True,
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.out is None:
        raise InputError("varkd replay needs --out: a folder for the new run, beside the kept one")
    if is_url(arguments.config):
        from deploy.cli.at_url import bring

        bring(arguments)
    root = arguments.config
    if not root.is_dir():
        raise InputError(f"{root}: no run folder; give one whose run had buffer.keep_gb set")
    if not any((root / "rollouts").glob("*.json")):
        raise InputError(
            f"{root / 'rollouts'}: no kept rollouts are there; run `varkd distill` with "
            "buffer.keep_gb=GIGABYTES, then replay that"
        )
    arguments.source = None if arguments.resume else root
    arguments.overrides = [*arguments.overrides, f"rollout.replay={root / 'rollouts'}"]
    return distill.run(arguments)
