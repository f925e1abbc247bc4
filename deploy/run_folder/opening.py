"""Open a run: from a TOML file, a run folder, or the name of a shipped config."""

import os
from pathlib import Path

from common.config.schema import Config, load_config
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

    def rooted(section: Config, *names: str) -> Config:
        given = {name: getattr(section, name) for name in names}
        return section.model_copy(update={n: absolute(p) for n, p in given.items() if p})

    codes = {"paths": tuple(absolute(path) for path in config.tokens.paths)}
    official = ("weights",) if "weights" in type(config.tokenizer).model_fields else ()
    sections = {
        "images": config.images.absolute(),
        "tokenizer": rooted(config.tokenizer, *official),
        "tokens": config.tokens.model_copy(update=codes),
        "teacher": rooted(config.teacher, "weights"),
        "learner": rooted(config.learner, "weights"),
        "evaluate": rooted(config.evaluate, "inception_weights"),
    }
    return config.model_copy(update={"out": None, **sections})
