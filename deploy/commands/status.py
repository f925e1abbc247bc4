"""Show how a run is going, live or ended, from any machine that sees its folder or URL.

Who is there and who died, how fast it is and what holds it up, its newest checkpoint. The exit code
is 1 where the run neither goes on nor ended as it or somebody wanted.

For example:
  varkd status runs/cifar10
  varkd status runs/cifar10 --watch
  varkd status s3://bucket/runs/cifar10
"""

import argparse

from deploy.cli.arguments import add_run_folder

INTERRUPTED = "the run goes on"
REDRAW_SECONDS = 1.0
LINE_SECONDS = 10.0


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_folder(parser)
    parser.add_argument("--watch", action="store_true", help="again and again until the run ends")


def run(arguments: argparse.Namespace) -> int:
    import time

    from deploy.console.progress import results
    from deploy.control.place import place_of
    from deploy.control.view import lines

    place, target = place_of(arguments.run_folder), results()
    seen = place.look()
    if arguments.watch and seen.is_live:
        seen = _watched(place, target)
    for line in lines(seen, time.time()):
        target.print(line)
    return int(seen.has_failed)


def _watched(place, target):
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

        return wait_ended(place, say)
    with Live(console=target, auto_refresh=False, transient=True) as display:

        def show(seen) -> None:
            display.update("\n".join(lines(seen, time.time())), refresh=True)
            time.sleep(REDRAW_SECONDS)

        return wait_ended(place, show)
