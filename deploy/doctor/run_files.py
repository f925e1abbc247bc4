"""The files that a config names, and those that its run folder is to hold."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from common.errors import InputError
from common.images.listing import matches
from deploy.config import RunConfig
from deploy.doctor.finding import Finding, judged
from deploy.planning.artifacts import check_files, missing, sequence_spec
from deploy.run_folder.workspace import Workspace


def run_files(config: RunConfig, workspace: Workspace) -> Iterator[Finding]:
    """One finding for each path of the config, and one for what the run would miss."""
    for key, path in _paths(config, ""):
        there = [found for found in matches(path) if found.exists()]
        unread = [str(found) for found in there if not os.access(found, os.R_OK)]
        said = f"{path}: {'unreadable' if unread else 'there' if there else 'no such file'}"
        advice = "correct the path, or mount it on this machine"
        yield judged(key, said, advice, fails=not there or bool(unread))
    lacking = [sentence for sentence in missing(config, workspace) if "`varkd" in sentence]
    advice = "run that first"
    yield judged("made before", "; ".join(lacking) or "all is there", advice, warns=bool(lacking))
    try:
        check_files(config, workspace, sequence_spec(config, workspace))
    except InputError as error:
        yield Finding("models", "FAIL", str(error))
    else:
        yield Finding("models", "ok", "those that are there are what the config says")


def _paths(value: Any, key: str) -> Iterator[tuple[str, Path]]:
    """Every path in a config, under its dotted key."""
    inner: list[tuple[str, Any]] = []
    if isinstance(value, Path):
        yield key, value
    elif isinstance(value, BaseModel):
        inner = [(name, getattr(value, name)) for name in type(value).model_fields if name != "out"]
    elif isinstance(value, dict):
        inner = [(str(name), item) for name, item in value.items()]
    elif isinstance(value, tuple):
        inner = [(str(index), item) for index, item in enumerate(value)]
    for name, item in inner:
        yield from _paths(item, f"{key}.{name}" if key else name)
