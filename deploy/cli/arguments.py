"""Arguments that most commands share; free of heavy imports."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shtab

from common.errors import InputError
from common.files.paths import is_url, user_path

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


def path_or_url(text: str) -> Path | str:
    """A config's path as it was given, or the URL of a run."""
    return text if is_url(text) else Path(text)


def folder_or_url(text: str) -> Path | str:
    return text if is_url(text) else path_option(text)


def add_config(parser: argparse.ArgumentParser) -> None:
    config = parser.add_argument(
        "config",
        type=path_or_url,
        help="TOML file, run folder or its URL, or shipped config (`varkd configs`)",
    )
    complete(config, CONFIGS)
    add_overrides(parser)


def add_run_folder(parser: argparse.ArgumentParser) -> None:
    folder = parser.add_argument(
        "run_folder",
        metavar="RUN",
        type=folder_or_url,
        help="the folder of a run, or its URL, as --out named it",
    )
    complete(folder, shtab.DIRECTORY)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="see `varkd options`"
    )
    out = parser.add_argument(
        "--out",
        type=folder_or_url,
        help="run folder (default: runs/<config name>), or where the run lives: s3://, gs://, ...",
    )
    complete(out, shtab.DIRECTORY)
    local = parser.add_argument(
        "--local-out",
        type=path_option,
        metavar="FOLDER",
        help="where a run that lives at a URL works (default: in ~/.cache/varkd/runs)",
    )
    complete(local, shtab.DIRECTORY)
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

    url = _working_here(arguments)
    with busy(console(), "starting", at_once=False):  # torch takes seconds, or a minute from a disk
        from deploy.layout import check_layout
        from deploy.run_folder.opening import open_run

        check_layout()
        config, workspace = open_run(arguments.config, arguments.overrides, arguments.out)
        workspace.url = url
    if arguments.cpu:
        from deploy.run_folder.on_cpu import on_cpu

        config, changes = on_cpu(config)
        say_changes(changes)
    return config, workspace


def _working_here(arguments: argparse.Namespace) -> str | None:
    """Bring what lies at a URL into a folder of this machine; the URL at which the run lives."""
    config, out = arguments.config, arguments.out
    lives_there = is_url(config if out is None else out) or hasattr(arguments, "url")
    if arguments.local_out is not None and not lives_there:
        raise InputError(
            f"--local-out {arguments.local_out} is where a run that lives at a URL works, but no "
            "URL is given; name the folder with --out, or give a URL there"
        )
    if any(map(is_url, (config, out, getattr(arguments, "source", None)))):
        from deploy.cli.at_url import bring

        bring(arguments)
    return getattr(arguments, "url", None)


def say_changes(changes: list[str]) -> None:
    """What --cpu did."""
    from deploy.console.progress import console

    console().print(f"--cpu: {', '.join(changes) or 'nothing to change'}")
