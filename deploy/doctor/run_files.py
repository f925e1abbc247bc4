"""The files that a config names, and those that its run folder is to hold."""

import os
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from common.config.parts import parts
from common.errors import InputError
from common.images.listing import matches
from common.perceptual.lpips import PACKAGE, LpipsConfig
from deploy.config import RunConfig
from deploy.doctor.finding import Finding, judged
from deploy.doctor.machine import GB, disk
from deploy.planning.artifacts import check_files, missing, sequence_spec
from deploy.planning.resources import Sizing
from deploy.run_folder.precision import settled_precision
from deploy.run_folder.workspace import Workspace

VERSIONS = "rollout.weights_folder"


def run_files(config: RunConfig, workspace: Workspace) -> Iterator[Finding]:
    """One finding for each path of the config, and one for what the run would miss."""
    for key, path in parts(config.model_copy(update={"out": None}), Path):
        if key == VERSIONS:
            continue
        there = [found for found in matches(path) if found.exists()]
        unread = [str(found) for found in there if not os.access(found, os.R_OK)]
        said = f"{path}: {'unreadable' if unread else 'there' if there else 'no such file'}"
        advice = "correct the path, or mount it on this machine"
        yield judged(key, said, advice, fails=not there or bool(unread))
    for key, net in parts(config, LpipsConfig):
        said = f"the package {PACKAGE} is {'there' if net.is_installed else 'not installed'}"
        yield judged(key, said, f"pip install {PACKAGE}", fails=not net.is_installed)
    lacking = [sentence for sentence in missing(config, workspace) if "`varkd" in sentence]
    advice = "run that first"
    yield judged("made before", "; ".join(lacking) or "all is there", advice, warns=bool(lacking))
    try:
        check_files(config, workspace, sequence_spec(config, workspace))
    except InputError as error:
        yield Finding("models", "FAIL", str(error))
    else:
        yield Finding("models", "ok", "those that are there are what the config says")
    if config.rollout.weights_folder is not None:
        yield _room_for_versions(config, workspace, config.rollout.weights_folder)


def _room_for_versions(config: RunConfig, workspace: Workspace, folder: Path) -> Finding:
    if not folder.is_dir():
        return Finding(VERSIONS, "FAIL", f"{folder}: no such folder", "make it, or mount it")
    settled = settled_precision(config, Console(quiet=True))
    needed = Sizing(settled, sequence_spec(config, workspace)).filed_bytes / GB
    what = f"versions of {needed:.1f} GB"
    return disk(VERSIONS, folder, needed, what, f"set {VERSIONS} to another folder")
