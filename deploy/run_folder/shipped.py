"""Configs by name: the files of deploy/configs, and the one that a command line means."""

import difflib
import os
import tomllib
from pathlib import Path

from common.errors import InputError

CONFIGS = Path(__file__).parents[1] / "configs"
FIRST_STAGE = "_gts"
"""How the names of configs end that only make what others begin with."""
METHODS = {"dd2_csd": "dd2"}
"""What a method is called whose last stage has another objective than those before."""


def shipped_names() -> list[str]:
    """Small ones first: those that need nothing, then those of a laptop, then published models."""
    return sorted((path.stem for path in CONFIGS.glob("*.toml")), key=lambda n: (_rank(n), n))


def smoke_configs() -> dict[tuple[str, str], str]:
    """Names of the configs of `varkd smoke` by method (the objective) and family of the teacher;
    the first one comes first."""
    found = {}
    for path in sorted(CONFIGS.glob("smoke*.toml")):
        if path.stem.endswith(FIRST_STAGE):
            continue
        tree = tomllib.loads(path.read_text())
        kind = tree["objective"]["kind"]
        found[METHODS.get(kind, kind), tree["models"]["teacher"]["kind"]] = path.stem
    return found


def first_stage(name: str) -> str | None:
    """The shipped config whose student the one of that name begins with, where it has one."""
    return f"{name}{FIRST_STAGE}" if (CONFIGS / f"{name}{FIRST_STAGE}.toml").is_file() else None


def smoke_config(method: str, family: str) -> str:
    """The name of one.

    Raises:
        InputError: there is none of this method and family.
    """
    found = smoke_configs()
    if (method, family) not in found:
        families = ", ".join(other for known, other in found if known == method)
        raise InputError(
            f"--family {family}: no smoke run of method {method} has it; choose one of {families}"
        )
    return found[method, family]


def shipped(name: str) -> Path:
    """The file of a shipped config.

    Raises:
        InputError: there is none of that name; the message has the close ones.
    """
    path = CONFIGS / f"{name}.toml"
    if "/" in name or not path.is_file():
        raise InputError(f"{name}: no shipped config of that name; {_hint(name)}")
    return path


def find_config(source: Path) -> Path:
    """A TOML file, a run folder, or a shipped config.

    Raises:
        InputError: it is none of them; the message has the close names.
    """
    if os.path.isdir(source):
        return _in_folder(source)
    if os.path.lexists(source):  # a file that cannot be read says so itself
        return source
    if source.suffix:
        if not _close(source.stem):
            return source
        raise InputError(f"{source}: no such config file; {_hint(source.stem)}")
    if (CONFIGS / f"{source.name}.toml").is_file():
        return CONFIGS / f"{source.name}.toml"
    beside = source.with_suffix(".toml")
    if beside.is_file():
        raise InputError(f"{source}: no such config; did you mean {beside}?")
    raise InputError(
        f"{source}: no such config file, run folder or shipped config; {_hint(source.name)}"
    )


def summary(path: Path) -> str:
    """What a config is for: the first sentence of its first comment."""
    words: list[str] = []
    for line in path.read_text().splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            break
        words.append(text)
        if text.endswith((".", ":")):
            break
    return " ".join(words).partition(". ")[0].rstrip(".:")


def _in_folder(folder: Path) -> Path:
    if (folder / "config.toml").exists():
        return folder
    if any(folder.glob("*.toml")):
        found = sorted(file.name for file in folder.glob("*.toml"))
        raise InputError(
            f"{folder}: is no run folder, for it has no config.toml; did you mean "
            f"{folder / found[0]}?"
        )
    raise InputError(
        f"{folder}: is no run folder, for it has no config.toml; for a folder of images, write a "
        f"config with `varkd init`"
    )


def _hint(name: str) -> str:
    close = _close(name)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return "`varkd configs` lists those that are shipped"


def _close(name: str) -> list[str]:
    """Shipped configs that contain the word, or look like it."""
    names = shipped_names()
    parts = [known for known in names if len(name) > 2 and name.lower() in known]
    return (parts or difflib.get_close_matches(name[:80], names))[:3]


def _rank(name: str) -> int:
    """By what a config needs: nothing, images, or published weights."""
    text = (CONFIGS / f"{name}.toml").read_text()
    tree = tomllib.loads(text)
    if tree.get("images", {}).get("kind", "digits") == "digits":
        return 0
    return 2 if tree.get("teacher", {}).get("weights") else 1
