"""End a live run in order, from any machine that sees its folder or URL, and wait for its end.

As SIGTERM does: the step is finished and a snapshot stored, from which
`varkd distill RUN --resume` goes on. The exit code is 1 where the run fails on its way out. A run
at a URL hears of it within half a minute.

For example:
  varkd stop runs/cifar10
  varkd stop s3://bucket/runs/cifar10
"""

import argparse

from deploy.cli.arguments import add_run_folder

INTERRUPTED = "the run ends nevertheless"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_folder(parser)


def run(arguments: argparse.Namespace) -> int:
    from deploy.console.progress import busy, console, results
    from deploy.control.client import ask, ending_of, going_on, require_live, wait_ended
    from deploy.control.place import place_of

    root, target = arguments.run_folder, results()
    place = place_of(root)
    began = (require_live(place).status or {}).get("began")
    ask(place, "stop")
    with busy(console(), f"{root}: waiting for the run to end"):
        seen = wait_ended(place, lambda seen: None)
    if seen.status is None or seen.status.get("began") != began:
        target.print(f"{root}: ended before its first step; the folder is as it was")
        return 0
    target.print(f"{root}: {ending_of(seen)}")
    if seen.has_failed or seen.status.get("step") != seen.status.get("steps"):
        target.print(f"next:  {going_on(seen)}")
    return int(seen.has_failed)
