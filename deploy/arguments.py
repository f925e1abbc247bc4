"""Arguments that most commands share; free of heavy imports."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.config import RunConfig, Workspace


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", type=Path, help="TOML file, run folder, or shipped config (smoke, cifar10)"
    )
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="see `varkd options`"
    )
    parser.add_argument("--out", type=Path, help="run folder (default: runs/<config name>)")


def open_from(arguments: argparse.Namespace) -> "tuple[RunConfig, Workspace]":
    """Config and workspace of the parsed arguments, after checking that we are ourselves."""
    from deploy.config import open_run
    from deploy.layout import check_layout

    check_layout()
    return open_run(arguments.config, arguments.overrides, arguments.out)
