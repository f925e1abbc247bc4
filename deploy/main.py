"""Command line: `varkd COMMAND [CONFIG] [section.key=value ...]`.

A command is a file in deploy/commands. Nothing heavy is imported before the arguments are
parsed, so that `--help` answers at once.
"""

import argparse
import importlib
import pkgutil
import sys
from contextlib import ExitStack
from types import ModuleType

from common.errors import Closed, InputError, RunFailed
from deploy.faults import report_faults

ORDER = (
    "smoke",
    "tokenize",
    "pretrain",
    "generate",
    "distill",
    "evaluate",
    "study",
    "sample",
    "export",
    "options",
)


def main(argv: list[str] | None = None) -> None:
    """Run one command; exit code 2 and one sentence for anything the user can mend."""
    parser = build_parser()
    arguments, extra = parser.parse_known_args(argv)
    # argparse ends a list of positionals at the first option; overrides may stand anywhere.
    unknown = [word for word in extra if word.startswith("-") or "=" not in word]
    if unknown or (extra and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or extra)}")
    if extra:
        arguments.overrides = [*arguments.overrides, *extra]
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
        sys.exit(130)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="varkd",
        description="On-policy distillation of visual autoregressive models, on Ray.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in _commands():
        summary = (module.__doc__ or "").strip()
        child = commands.add_parser(
            name,
            help=summary.splitlines()[0],
            description=summary,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.configure(child)
        child.set_defaults(run=module.run)
    return parser


def _commands() -> list[tuple[str, ModuleType]]:
    package = importlib.import_module("deploy.commands")
    found = [module.name for module in pkgutil.iter_modules(package.__path__)]
    ordered = sorted(found, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))
    return [(name, importlib.import_module(f"deploy.commands.{name}")) for name in ordered]


if __name__ == "__main__":
    main()
