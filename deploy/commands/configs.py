"""List the shipped configs with a line each, or print one: a beginning for one's own.

For example:
  varkd configs
  varkd configs cifar10 > mine.toml
"""

import argparse

from deploy.cli.arguments import CONFIGS, complete
from deploy.run_folder.shipped import shipped, shipped_names, summary


def configure(parser: argparse.ArgumentParser) -> None:
    name = parser.add_argument("name", nargs="?", help="print this one; without it, list them")
    complete(name, CONFIGS)


def run(arguments: argparse.Namespace) -> int:
    from deploy.console.progress import results

    target = results()
    if arguments.name:
        target.print(shipped(arguments.name).read_text(), end="")
        return 0
    names = shipped_names()
    width = max(map(len, names))
    for name in names:
        target.print(f"{name:{width}}  {summary(shipped(name))}")
    return 0
