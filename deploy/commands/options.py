"""List every config field with its type, default and meaning: `varkd options [SECTION]`."""

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("section", nargs="?", default="", help="e.g. learner, learner.optimizer")


def run(arguments: argparse.Namespace) -> int:
    import sys

    from deploy.options import describe

    sys.stdout.write("\n".join(describe(arguments.section)) + "\n")
    return 0
