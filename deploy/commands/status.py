"""Show how a run is going, live or ended, from any machine that sees its folder.

Who is there and who died, how fast it is and what holds it up, its newest checkpoint. The exit code
is 1 where the run neither goes on nor ended as it or somebody wanted.

For example:
  varkd status runs/cifar10
  varkd status runs/cifar10 --watch
  varkd status s3://bucket/runs/cifar10
"""

import argparse

from common.files.paths import is_url
from deploy.cli.arguments import add_run_folder

INTERRUPTED = "the run goes on"
REDRAW_SECONDS = 1.0
LINE_SECONDS = 10.0
FAR_SECONDS = 10.0
"""Between two looks at a storage, where a live run is copied every 15 s."""


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_folder(parser, or_url=True)
    parser.add_argument("--watch", action="store_true", help="again and again until the run ends")


def run(arguments: argparse.Namespace) -> int:
    import time

    from deploy.console.progress import results
    from deploy.control.view import lines

    look_again, pause = _way_to_look(arguments.run_folder)
    seen, target = look_again(), results()
    if arguments.watch and seen.is_live:
        seen = _watched(look_again, pause, target)
    for line in lines(seen, time.time()):
        target.print(line)
    return int(seen.has_failed)


def _way_to_look(where):
    """(what looks into a folder or at a URL, seconds between two looks)"""
    from functools import partial

    if is_url(where):
        from deploy.control.far import look_there

        return partial(look_there, where), FAR_SECONDS
    from deploy.control.client import POLL_SECONDS, look

    return partial(look, where), POLL_SECONDS


def _watched(look_again, pause, target):
    """Shown until it has ended; redrawn on a terminal, else a line now and then."""
    import time

    from rich.live import Live

    from deploy.control.client import wait_ended
    from deploy.control.view import lines, one_line

    last = -LINE_SECONDS
    if not target.is_terminal:

        def say(seen) -> None:
            nonlocal last
            if time.monotonic() - last >= LINE_SECONDS:
                last = time.monotonic()
                target.print(one_line(seen))

        return wait_ended(look_again, say, pause=pause)
    with Live(console=target, auto_refresh=False, transient=True) as display:

        def show(seen) -> None:
            display.update("\n".join(lines(seen, time.time())), refresh=True)
            time.sleep(REDRAW_SECONDS)

        return wait_ended(look_again, show, pause=pause)
