"""Command line: `varkd COMMAND [CONFIG] [section.key=value ...]`.

A command is a file in deploy/commands. Nothing heavy is imported before the arguments are
parsed, so that `--help` answers at once.
"""

import os
import select
import sys
from contextlib import ExitStack

from common.errors import Closed, InputError, RunFailed
from deploy.faults import report_faults
from deploy.parser import parse


def main(argv: list[str] | None = None) -> None:
    """Run one command; exit code 2 and one sentence for anything the user can mend."""
    try:
        try:
            _run(argv)
        finally:
            if sys.stdout is not None:  # `>&-`
                sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_left():
            raise
        _leave_pipes()  # else the interpreter complains when it closes them
        sys.exit(141)  # as a program that SIGPIPE ended
    except KeyboardInterrupt:  # before a command began
        sys.exit(130)


def _run(argv: list[str] | None) -> None:
    arguments = parse(argv)
    report_faults(arguments.command)
    try:
        with ExitStack() as arguments.held:  # what a command holds until it ends: its run folder
            sys.exit(arguments.run(arguments))
    except InputError as error:
        sys.stderr.write(f"varkd {arguments.command}: {error}\n")
        sys.exit(2)
    except (RunFailed, Closed) as error:
        sys.stderr.write(f"varkd {arguments.command}: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write(f"\nvarkd {arguments.command}: interrupted; {arguments.interrupted}\n")
        sys.exit(130)


def _reader_left() -> bool:
    """Whether nobody reads stdout or stderr any more, as after `| head`."""
    pipes = select.poll()
    for number in (1, 2):
        pipes.register(number, 0)
    return any(event & select.POLLERR for _, event in pipes.poll(0))


def _leave_pipes() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)


if __name__ == "__main__":
    main()
