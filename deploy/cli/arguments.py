"""Arguments that most commands share; free of heavy imports."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shtab

from common.errors import InputError
from common.files.paths import user_path

if TYPE_CHECKING:
    from deploy.config import RunConfig
    from deploy.run_folder.workspace import Workspace

CONFIGS = {"bash": "_varkd_configs", "zsh": "_varkd_configs", "tcsh": "f"}
"""Completes the name of a shipped config, or a file; the functions are in deploy/cli/parser.py."""


def path_option(text: str) -> Path:
    """An option's path, with `~` expanded, which a shell leaves in `--to=~/x`; else a sentence."""
    try:
        return user_path(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_config(parser: argparse.ArgumentParser) -> None:
    config = parser.add_argument(
        "config", type=Path, help="TOML file, run folder, or shipped config (`varkd configs`)"
    )
    complete(config, CONFIGS)
    add_overrides(parser)


def add_run_folder(parser: argparse.ArgumentParser) -> None:
    folder = parser.add_argument(
        "run_folder", metavar="RUN", type=path_option, help="the folder of a run, as --out named it"
    )
    complete(folder, shtab.DIRECTORY)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="see `varkd options`"
    )
    out = parser.add_argument(
        "--out", type=path_option, help="run folder (default: runs/<config name>)"
    )
    complete(out, shtab.DIRECTORY)
    add_cpu(parser)


def add_cpu(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="try a config for GPUs on this machine's CPUs: devices, precision and processes "
        "change, sizes stay",
    )


def add_local(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--local", action="store_true", help="the same code in one process, no Ray")


def complete(argument: argparse.Action, how: Mapping[Any, Any]) -> None:
    """What a shell offers for an argument."""
    vars(argument)["complete"] = how


def open_from(arguments: argparse.Namespace) -> "tuple[RunConfig, Workspace]":
    """Config and workspace of the parsed arguments, after checking that we are ourselves."""
    from deploy.console.progress import busy, console

    with busy(console(), "starting", at_once=False):  # torch takes seconds, or a minute from a disk
        from deploy.layout import check_layout
        from deploy.run_folder.opening import open_run

        check_layout()
        config, workspace = open_run(arguments.config, arguments.overrides, arguments.out)
    if arguments.cpu:
        from deploy.run_folder.on_cpu import on_cpu

        config, changes = on_cpu(config)
        say_changes(changes)
    return config, workspace


def say_changes(changes: list[str]) -> None:
    """What --cpu did."""
    from deploy.console.progress import console

    console().print(f"--cpu: {', '.join(changes) or 'nothing to change'}")
