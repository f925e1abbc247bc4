"""Command line: `varkd COMMAND [CONFIG] [section.key=value ...]`.

A command is a file in deploy/commands. Nothing heavy is imported before the arguments are
parsed, so that `--help` answers at once.
"""

import atexit
import errno
import gc
import os
import select
import sys
from contextlib import ExitStack

from common.errors import Closed, InputError, RunFailed
from common.files.paths import refusal
from deploy.cli.parser import parse
from deploy.console.faults import report_faults
from deploy.console.stopping import EXIT_CODES, Stopped, stop_request

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: list[str] | None = None) -> None:
    """Run one command; exit code 2 and one sentence for anything the user can mend."""
    atexit.register(gc.freeze)  # else the interpreter looks for a second at what ends with it
    try:
        try:
            _run(argv)
        finally:
            if sys.stdout is not None:  # `>&-`
                sys.stdout.flush()
    except SystemExit as ended:
        failed = isinstance(ended.code, int) and ended.code != 0
        if failed and argv is None and sys.stderr is not None:  # this process ends
            sys.stderr.flush()
            _leave(1, 2)  # what was said is the last line: Ray's own threads write at any time
        raise
    except BrokenPipeError:
        if not _reader_left():
            raise
        _leave(1, 2)  # else the interpreter complains when it closes them
        sys.exit(141)  # as a program that SIGPIPE ended
    except OSError as error:
        if not _is_full(error):
            raise
        sys.stderr.write(f"varkd: cannot write to stdout: {refusal(error)}\n")
        _leave(1)
        sys.exit(1)
    except KeyboardInterrupt:  # before a command began
        sys.exit(130)


def _run(argv: list[str] | None) -> None:
    arguments = parse(argv)
    report_faults(arguments.command)
    try:
        # What a command holds until it ends: its run folder.
        with stop_request(), ExitStack() as arguments.held:
            sys.exit(arguments.run(arguments))
    except InputError as error:
        sys.stderr.write(f"varkd {arguments.command}: {error}\n")
        sys.exit(2)
    except (RunFailed, Closed) as error:
        sys.stderr.write(f"varkd {arguments.command}: {error}\n")
        sys.exit(1)
    except Stopped as stopped:
        sys.stderr.write(f"\nvarkd {arguments.command}: {stopped}; {arguments.interrupted}\n")
        sys.exit(EXIT_CODES.get(stopped.name, 0))


def _is_full(error: OSError) -> bool:
    """Whether it is stdout that has no room; what could not be written may be lost by now, so
    that only another byte tells."""
    if error.filename is not None or error.errno not in NO_ROOM:
        return False
    try:
        os.write(1, b"\n")
    except OSError:
        return True
    return False


def _reader_left() -> bool:
    """Whether nobody reads stdout or stderr any more, as after `| head`."""
    pipes = select.poll()
    for number in (1, 2):
        pipes.register(number, 0)
    return any(event & select.POLLERR for _, event in pipes.poll(0))


def _leave(*numbers: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in numbers:
        os.dup2(nowhere, number)


if __name__ == "__main__":
    main()
