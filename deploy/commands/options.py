"""List every config field with its type, default and meaning, or those of some sections.

For example:
  varkd options learner objective
  varkd options | grep guidance
"""

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sections", nargs="*", metavar="section", help="e.g. learner, learner.optimizer"
    )


def run(arguments: argparse.Namespace) -> int:
    from deploy.cli.config_reference import describe
    from deploy.console.progress import results

    target = results()
    for section in arguments.sections or [""]:
        for option in describe(section):
            line = option.paragraph(target.width) if target.is_terminal else option.line()
            target.print(line)
    return 0
