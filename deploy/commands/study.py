"""Compare methods over seeds from one shared start, at one budget: STUDY.toml says which.

Writes study.html (one page, nothing outside it), summary.md, the CSVs and the figures into the
study's folder. Finished cells stay: the same command goes on where it was stopped.

For example:
  varkd study studies/digits/study.toml --dry-run
  varkd study studies/digits/study.toml
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shtab

from deploy.cli.arguments import add_cpu, complete, path_option, path_or_url, say_changes

if TYPE_CHECKING:
    from deploy.study.runner import Harvest, StudyFolder

INTERRUPTED = "finished cells stay: the same command goes on after them"


def configure(parser: argparse.ArgumentParser) -> None:
    study = parser.add_argument(
        "study", type=path_or_url, help="TOML file, or a folder with a study.toml, as studies/*"
    )
    complete(study, shtab.FILE)
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="e.g. seeds=[0,1] budget.steps=50"
    )
    parser.add_argument(
        "--out", type=path_option, help="folder (default: runs/<folder of the file>)"
    )
    add_cpu(parser)
    parser.add_argument("--local", action="store_true", help="one cell after the other, no Ray")
    parser.add_argument(
        "--restart", action="store_true", help="throw the results in the folder away first"
    )
    parser.add_argument(
        "--report", action="store_true", help="write the page from the cells that are done"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything and list the cells"
    )


def run(arguments: argparse.Namespace) -> int:
    from common.files.paths import user_path
    from deploy.console.progress import console, results
    from deploy.layout import check_layout
    from deploy.run_folder.lock import locked
    from deploy.study.config import open_study
    from deploy.study.runner import StudyFolder, describe

    check_layout()
    arguments.study = user_path(arguments.study)
    if arguments.study.is_dir():
        arguments.study /= "study.toml"
    study = open_study(arguments.study, arguments.overrides)
    if arguments.cpu:
        say_changes(study.move_to_cpu())
    default = Path("runs") / (arguments.study.resolve().parent.name)
    folder = StudyFolder((arguments.out or default).resolve())
    target = console()
    if arguments.dry_run:
        results().print(describe(study, folder))
        return 0
    arguments.held.enter_context(locked(folder.root, arguments.command))
    from deploy.study.page.publish import publish
    from deploy.study.runner import collect, run_study

    if arguments.report:
        wanted, harvest = collect(study, folder)
    else:
        local, restart = arguments.local, arguments.restart
        wanted, harvest = run_study(study, folder, target, local=local, restart=restart)
    publish(study, folder, wanted, harvest, target)
    return _end(arguments, folder, wanted, harvest)


def _end(
    arguments: argparse.Namespace, folder: "StudyFolder", wanted: dict[Any, Any], harvest: "Harvest"
) -> int:
    from deploy.cli.ending import end, quoted

    done, failed = len(harvest.found), len(harvest.failed)
    left = len(wanted) - done
    again = f"varkd study {quoted(arguments.study)} --out {quoted(folder.root)}"
    end(
        f"{done} of {len(wanted)} cells" + (f", {failed} failed" if failed else ""),
        files=[folder.root / "study.html", folder.root / "summary.md"],
        following=again if left else None,
    )
    return 1 if harvest.failed else 0
