"""End a live run in order, from any machine that sees its folder, and wait until it has ended.

As SIGTERM does: the step is finished and a snapshot stored, from which
`varkd distill RUN --resume` goes on. The exit code is 1 where the run fails on its way out.

For example:
  varkd stop runs/cifar10
"""

import argparse

from deploy.cli.arguments import add_run_folder

INTERRUPTED = "the run ends nevertheless"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_folder(parser)


def run(arguments: argparse.Namespace) -> int:
    from functools import partial

    from deploy.cli.ending import quoted
    from deploy.console.progress import busy, console, results
    from deploy.control.client import ask, ending_of, look, require_live, wait_ended

    root, target = arguments.run_folder, results()
    began = ((seen := require_live(root)).status or {}).get("began")
    ask(seen, "stop")
    with busy(console(), f"{root}: waiting for the run to end"):
        seen = wait_ended(partial(look, root), lambda seen: None)
    if seen.status is None or seen.status.get("began") != began:
        target.print(f"{root}: ended before its first step; the folder is as it was")
        return 0
    target.print(f"{root}: {ending_of(seen)}")
    if seen.has_failed or seen.status.get("step") != seen.status.get("steps"):
        target.print(f"next:  varkd distill {quoted(root)} --resume")
    return int(seen.has_failed)
