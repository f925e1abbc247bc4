"""TOML files and dotted overrides as plain trees of values, with bounded depth and size."""

import tomllib
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files.paths import read_text, shortened

DEPTH = 32
"""Most tables and lists within one another; configs need six."""
INT64 = range(-(2**63), 2**63)
"""What an integer may be in TOML."""
SHOWN = 80


def read_toml(path: Path) -> dict[str, Any]:
    """The tree of a TOML file.

    Raises:
        InputError: there is no such file, it is a device, a pipe or a folder, is too large, is no
            TOML, or is nested too deeply.
    """
    what = "a TOML file"
    try:
        text = read_text(path, what)
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file; pass a TOML file or a run folder") from None
    try:
        tree = tomllib.loads(text)
    except RecursionError:
        raise InputError(f"{path}: not a config: values are nested too deeply") from None
    except ValueError as error:  # tomllib's own, and int()'s for thousands of digits
        raise InputError(f"{path}: not valid TOML: {shortened(str(error))}") from None
    _require_sane(tree, str(path))
    return tree


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in `tree`; the value is TOML, or else a bare string.

    Raises:
        InputError: it has no key or no value, is no UTF-8, or goes below what is no section.
    """
    shown = repr(shortened(override))
    dotted, separator, raw = override.partition("=")
    *parents, leaf = [part.strip() for part in dotted.split(".")]
    if not separator or not all([*parents, leaf]):
        raise InputError(f"override {shown} must look like section.key=value")
    if any(0xD800 <= ord(character) < 0xE000 for character in override):  # undecodable bytes
        raise InputError(f"override {shown} is not valid UTF-8")
    if len(parents) > DEPTH:
        raise InputError(f"override {shown}: {len(parents)} sections within one another")
    value = _toml_value(raw, shown)
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise InputError(f"override {shown}: {parent!r} is a value, not a section")
    node[leaf] = value


def _toml_value(raw: str, shown: str) -> Any:
    try:
        parsed = tomllib.loads(f"v = {raw}")
    except RecursionError:
        raise InputError(f"override {shown}: the value is nested too deeply") from None
    except ValueError:
        return raw  # a bare word is a string, so kind=llamagen needs no quotes
    if parsed.keys() != {"v"}:
        return raw  # a second line that happens to be TOML
    _require_sane(parsed, f"override {shown}")
    return parsed["v"]


def _require_sane(tree: dict[str, Any], source: str) -> None:
    """Refuse what is legal for the parser but would break whoever walks the tree next."""
    level: list[Any] = [tree]
    depth = 0
    while level:
        if depth > DEPTH:
            raise InputError(f"{source}: values are nested more than {DEPTH} deep")
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                below.extend(node.values())
            elif isinstance(node, list):
                below.extend(node)
            elif isinstance(node, int) and node not in INT64:
                raise InputError(f"{source}: an integer has more than 64 bits")
        level, depth = below, depth + 1
