"""The config's reference, read off the models themselves."""

import difflib
from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from common.errors import InputError
from common.plugins import kinds, load_plugin
from deploy.config import RunConfig

PLUGINS = {
    "tokenizer": "common.tokenizers",
    "models.teacher": "common.backbones",
    "models.student": "common.backbones",
    "teacher.signal": "common.signals",
    "objective": "learner.objectives",
    "contexts.sources": "rollout.contexts",
}
"""Sections whose fields depend on `kind`: the files of a folder."""


def describe(section: str) -> list[str]:
    """One line per field of `section` and below: key, type, default, meaning.

    Raises:
        InputError: there is no such section.
    """
    everything = list(_walk(RunConfig, ""))
    chosen = [
        line
        for key, line in everything
        if not section or _plain(key).startswith(f"{section}.") or _plain(key) == section
    ]
    if not chosen:
        names = sorted({_plain(key).rpartition(".")[0] for key, _ in everything} - {""})
        close = difflib.get_close_matches(section, names, 1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of: {', '.join(names)}"
        raise InputError(f"no config section called {section!r}; {hint}")
    return chosen


def _plain(key: str) -> str:
    """A key without the [kind] marks of plug-ins."""
    return key.split("[")[0] + (key.split("]")[1] if "]" in key else "")


def _walk(
    model: type[BaseModel], prefix: str, defaults: BaseModel | None = None
) -> Iterator[tuple[str, str]]:
    """(key, line) of every field; `defaults` is what the enclosing section presets."""
    for name, field in model.model_fields.items():
        key = prefix + name
        if key in PLUGINS:
            yield key, f"{key}: {field.description or ''} Kinds: {', '.join(kinds(PLUGINS[key]))}"
            for kind in kinds(PLUGINS[key]):
                plugin = load_plugin(PLUGINS[key], kind).Config
                mark = f"{key}.{kind}." if key == "contexts.sources" else f"{key}[{kind}]."
                yield from _walk(plugin, mark)
            continue
        nested = _nested(field)
        if nested is None or field.default is None:
            default = repr(getattr(defaults, name)) if defaults else _default(field)
            meaning = " ".join((field.description or "").split())
            yield key, f"{key} ({_type(field)}, default {default}): {meaning}"
        if nested is not None:
            preset = getattr(defaults, name, field.default)
            yield from _walk(nested, f"{key}.", preset if isinstance(preset, nested) else None)


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, whether or not it may be absent."""
    for found in (field.annotation, *get_args(field.annotation)):
        if isinstance(found, type) and issubclass(found, BaseModel):
            return found
    return None


def _type(field: FieldInfo) -> str:
    limits = [str(limit) for limit in field.metadata]
    return " ".join([_name(field.annotation), *limits])


def _name(annotation: Any) -> str:
    """A type as a user would write it, with its limits."""
    parts = get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return " ".join([_name(parts[0]), *map(str, annotation.__metadata__)])
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join("none" if part is type(None) else _name(part) for part in parts)
    if isinstance(annotation, type) and not parts:
        return annotation.__name__
    text = str(annotation)
    for noise in ("typing.", "pathlib._local.", "pathlib."):
        text = text.replace(noise, "")
    return text


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    return repr(field.default)
