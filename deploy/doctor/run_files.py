"""The files that a config names, and those that its run folder is to hold."""

import os
from collections.abc import Iterator
from pathlib import Path

from common.config.parts import parts
from common.errors import InputError
from common.images.listing import matches
from common.perceptual.lpips import PACKAGE, LpipsConfig
from deploy.config import RunConfig
from deploy.doctor.finding import Finding, judged
from deploy.planning.artifacts import check_files, missing, sequence_spec
from deploy.run_folder.workspace import Workspace


def run_files(config: RunConfig, workspace: Workspace) -> Iterator[Finding]:
    """One finding for each path of the config, and one for what the run would miss."""
    for key, path in parts(config.model_copy(update={"out": None}), Path):
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
