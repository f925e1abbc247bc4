"""Strict configuration models, and TOML plus dotted overrides as the only way to fill them."""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from common.errors import InputError


class Config(BaseModel):
    """Base of every config: unknown keys are errors and values never change after load."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _tilde_is_the_home_folder(cls, value: Any) -> Any:
        """In every path of every section: no shell expands it in TOML or after `key=`."""
        if isinstance(value, Path):
            return _expanded(value)
        if isinstance(value, tuple):
            return tuple(_expanded(v) if isinstance(v, Path) else v for v in value)
        return value


C = TypeVar("C", bound=Config)


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # ~name, and nobody is called so
        raise ValueError(f"{path} names the home folder of an unknown user") from None


def load_config(cls: type[C], path: Path, overrides: Iterable[str] = ()) -> C:
    """Read `path` as TOML, apply `a.b=value` overrides, and validate into `cls`.

    Raises:
        InputError: the file is missing or no TOML, an override is malformed, a key is unknown or
            a value has the wrong type. The message names the file and the key.
    """
    tree = read_toml(path)
    for override in overrides:
        apply_override(tree, override)
    return validate(cls, tree, source=str(path))


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file; pass a TOML file or a run folder") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in `tree`; the value is TOML, or else a bare string."""
    dotted, separator, raw = override.partition("=")
    if not separator or not dotted.strip():
        raise InputError(f"override {override!r} must look like section.key=value")
    *parents, leaf = dotted.strip().split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise InputError(f"override {override!r}: {parent!r} is a value, not a section")
    node[leaf] = _toml_value(raw)


def validate(cls: type[C], tree: dict[str, Any], *, source: str) -> C:
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        lines = [_sentence(cls, item) for item in error.errors()]
        raise InputError(f"{source}: " + "; ".join(lines)) from None


def dump_toml(config: Config) -> str:
    """The resolved config as TOML; reading it back gives an equal config."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def digest(config: Config) -> str:
    """Sixteen hex digits that change whenever any resolved value changes."""
    canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _toml_value(raw: str) -> Any:
    try:
        return tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        return raw  # a bare word is a string, so kind=llamagen needs no quotes


def _sentence(cls: type[BaseModel], item: Any) -> str:
    path = [part for part in item["loc"] if isinstance(part, str)]
    key = ".".join(path)
    if item["type"] != "extra_forbidden":
        said = item["msg"].removeprefix("Value error, ")
        # A rule between sections names its keys and values itself.
        return f"{key}: {said} (found {_shorten(item['input'])})" if path else said
    known = _fields_at(cls, path[:-1])
    close = difflib.get_close_matches(path[-1], known, 1)
    parent = ".".join([*path[:-1], ""])
    hint = f"did you mean {parent}{close[0]}?" if close else "see `varkd options`"
    return f"{key}: unknown key; {hint}"


def _fields_at(cls: Any, path: list[str]) -> list[str]:
    for name in path:
        field = getattr(cls, "model_fields", {}).get(name)
        cls = field.annotation if field else None
    return list(getattr(cls, "model_fields", {}))


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
