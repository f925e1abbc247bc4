"""The config's reference as it was read last, while the code that it was read off is the same."""

import hashlib
import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from common.cache import cache_folder
from common.config.plugin_path import plugin_packages
from deploy.cli.config_reference import Option, every_option
from deploy.layout import PACKAGES

READ_BY = ("pydantic", "annotated-types")
"""Whose answers the reference is made of, besides our code."""

VERSIONS = 4
"""Of several checkouts and environments."""


def kept_options() -> list[Option]:
    """`every_option()`, without importing the models where their files are as they were.

    Kept in $XDG_CACHE_HOME/varkd (~/.cache/varkd); a folder that cannot be written, or a file that
    is damaged, costs only the time.
    """
    if plugin_packages():  # their files are anywhere
        return every_option()
    path = cache_folder() / f"options-{_digest_of_the_code()}.json"
    with suppress(OSError, ValueError, TypeError):
        return [Option(**fields) for fields in json.loads(path.read_text())]
    found = every_option()
    with suppress(OSError):
        _keep(path, json.dumps([asdict(option) for option in found]))
    return found


def _digest_of_the_code() -> str:
    """Of the names, sizes and times of change of all our files, and of what reads them."""
    facts: list[object] = [sys.version, *(f"{name} {version(name)}" for name in READ_BY)]
    for package in PACKAGES:
        spec = find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            for path in sorted(Path(folder).rglob("*.py")):
                found = path.stat()
                facts.append((str(path), found.st_size, found.st_mtime_ns))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _keep(path: Path, text: str) -> None:
    """Write it beside its name and rename it; of other versions of the code a few stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    others = sorted(path.parent.glob("options-*.json"), key=lambda other: other.stat().st_mtime)
    for old in others[:-VERSIONS]:
        old.unlink(missing_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    half.write_text(text)
    half.replace(path)
