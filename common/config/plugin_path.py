"""The plug-in path: packages of users' own that hold plug-ins beside ours.

`plugins = ["my_package"]` in a config names a package with folders like ours (`objectives`,
`backbones`, ...). The names are in the process's environment, so that other processes of the same
run know them before they unpickle anything.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import InputError

VARIABLE = "VARKD_PLUGINS"
"""Names of the packages, as PATH has folders."""
FOLDERS = (
    "backbones",
    "conditions",
    "contexts",
    "generators",
    "loggers",
    "objectives",
    "scorers",
    "signals",
    "token_sources",
    "tokenizers",
)
"""What such a package may hold: a folder of a kind, called as ours."""


def plugin_packages() -> list[str]:
    """Names of the packages that the process knows."""
    return [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


def use_plugins(given: Sequence[str], beside: Iterable[Path]) -> list[str]:
    """Look for plug-ins in these packages and no others; returns names or absolute folders, by
    which they are found again from anywhere.

    A name is an importable package, or else a folder in one of `beside`, whose parent comes last on
    the path of modules. A folder may be named by its path, too.

    Raises:
        InputError: there is no such package, it has none of the folders, or another one of the same
            name was imported before.
    """
    found = [_found(text, [*beside]) for text in given]
    names = [Path(text).name for text in found]
    if len(set(names)) < len(names):
        raise InputError(f"plugins: {', '.join(names)} name a package twice; keep one")
    os.environ[VARIABLE] = os.pathsep.join(names)
    return found


def plugin_folders() -> list[Path]:
    """Folders of the known packages, for processes on machines that do not have them."""
    return [Path(next(iter(_locations(name)))) for name in plugin_packages()]


def _found(text: str, beside: Sequence[Path]) -> str:
    name = Path(text).name
    if not name.isidentifier():
        raise InputError(f"plugins: {text!r} is no name of a package; a folder needs a plain one")
    places = [Path(text)] if Path(text).is_absolute() else [place / text for place in beside]
    if text == name and not _is_ours(name) and (there := _locations(name)):
        near = [place for place in places if str(place.resolve()) in there]
        return _checked(str(near[0].resolve()) if near else text, name)
    for folder in places:
        if folder.is_dir():
            root = str(folder.resolve().parent)
            if root not in sys.path:
                sys.path.append(root)
                importlib.invalidate_caches()
            return _checked(str(folder.resolve()), name)
    where = " or ".join(dict.fromkeys(str(place.parent) for place in places))
    raise InputError(
        f"plugins: no package {text!r}: it is neither installed nor a folder in {where}; install "
        "it, or give the folder's path"
    )


def _checked(found: str, name: str) -> str:
    places = [Path(place).resolve() for place in _locations(name)]
    if os.sep in found and Path(found) not in places:
        there = ", ".join(map(str, places)) or "elsewhere"
        raise InputError(
            f"plugins: {found} cannot be imported, for {name} is {there} already; rename the folder"
        )
    if not any((place / folder).is_dir() for place in places for folder in FOLDERS):
        raise InputError(
            f"plugins: {found} holds no plug-ins; expected folders such as objectives or backbones "
            f"in it ({', '.join(FOLDERS)})"
        )
    return found


def _locations(name: str) -> list[str]:
    """Folders of an importable package; none where there is no such package."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a script that runs as this module
        return []
    return list(spec.submodule_search_locations or ()) if spec else []


def _is_ours(name: str) -> bool:
    return name in {"common", "rollout", "teacher_server", "learner", "deploy"}
