"""Open a run: from a TOML file, a run folder, or the name of a shipped config."""

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from common.config.schema import load_config
from common.files.paths import absolute, user_path
from deploy.config import RunConfig
from deploy.run_folder.shipped import find_config
from deploy.run_folder.workspace import CONFIG_NAMES, Workspace, run_config


def open_run(
    source: Path, overrides: list[str], out: Path | None = None
) -> tuple[RunConfig, Workspace]:
    """Load a config from a TOML file, a run folder, or the name of a shipped config.

    The run folder is --out, else the config's `out`, else the folder of a run's own config,
    else runs/<name>.
    """
    path = find_config(user_path(source))
    path = run_config(path) if os.path.isdir(path) else path
    config = load_config(RunConfig, path, overrides)
    own = path.parent if path.name in CONFIG_NAMES else Path("runs") / path.stem
    return portable(config), Workspace(absolute(user_path(out or config.out or own)))


def portable(config: RunConfig) -> RunConfig:
    """Absolute paths and no `out`: the run folder's copy means the same from any directory."""
    return rooted(config.model_copy(update={"out": None}))


def rooted(value: Any) -> Any:
    """The same with every path from the root: of sections, of plug-ins, in lists and tables."""
    if isinstance(value, Path):
        return absolute(value)
    if isinstance(value, tuple):
        return tuple(rooted(part) for part in value)
    if isinstance(value, dict):
        return {name: rooted(part) for name, part in value.items()}
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        changed = {name: rooted(part) for name, part in fields.items()}
        return value.model_copy(update={n: v for n, v in changed.items() if v != fields[n]})
    return value
