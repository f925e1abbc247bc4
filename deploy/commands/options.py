"""List every config field with its type, default and meaning, or those of some sections.

For example:
  varkd options learner objective
  varkd options --search guidance
  varkd options objective --config mine.toml
"""

import argparse

from deploy.cli.arguments import CONFIGS, complete, path_option


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sections", nargs="*", metavar="section", help="e.g. learner, learner.optimizer"
    )
    parser.add_argument(
        "--search", metavar="WORD", help="only fields with it in their names, types or texts"
    )
    config = parser.add_argument(
        "--config", type=path_option, help="list the plug-ins of this config's packages as well"
    )
    complete(config, CONFIGS)


def run(arguments: argparse.Namespace) -> int:
    from deploy.cli.config_reference import describe, every_option, search
    from deploy.cli.kept_options import kept_options
    from deploy.console.progress import results

    if arguments.config is not None:
        from deploy.run_folder.opening import open_run

        open_run(arguments.config, [])  # its packages are in use from here on
    everything = every_option() if arguments.config is not None else kept_options()
    target = results()
    sections = arguments.sections or [""]
    chosen = [option for section in sections for option in describe(section, everything)]
    if arguments.search is not None:
        found = {option.key for option in search(arguments.search, everything)}
        chosen = [option for option in chosen if option.key in found]
    for option in chosen:
        line = option.paragraph(target.width) if target.is_terminal else option.line()
        target.print(line)
    return 0
