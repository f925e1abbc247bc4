"""Types and values of config fields in words: what a person may write, not what pydantic holds."""

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

SLIP = 1000
"""Larger upper bounds only guard against slips of the keyboard: they are not shown."""
NAMES = {int: "integer", float: "number", str: "text", Path: "path"}


def type_of(field: FieldInfo) -> str:
    """ "integer >= 1", "one of a | b", "path or none", "list of numbers > 0"."""
    return _words(field.annotation, field.metadata)


def default_of(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required" if field.default_factory is None else "default empty"
    return shown(field.default)


def shown(value: Any) -> str:
    """A default as it would be written in TOML."""
    return f"default {_value(value)}"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return str(value)


def _words(annotation: Any, limits: Any = ()) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(parts[0], [*annotation.__metadata__, *limits])
    if origin in (Union, UnionType):
        words = [_words(part, limits) for part in parts if part is not type(None)]
        return " or ".join([*words, *(["none"] if type(None) in parts else [])])
    if origin is Literal:
        return f"one of {' | '.join(map(_value, parts))}"
    if origin in (tuple, list):
        some = parts[:1] if len(parts) == 2 and parts[1] is Ellipsis else parts
        inside = ", ".join(_words(part) for part in some)
        return ", ".join([f"list of {inside}", *_limits(limits, whole=False)])
    if annotation is bool:
        return "true | false"
    if annotation in NAMES:
        return " ".join([NAMES[annotation], *_limits(limits, whole=annotation is int)])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    return "table" if origin is dict or annotation is dict else "value"


def _limits(limits: Any, *, whole: bool) -> list[str]:
    """Bounds in one form: an integer above 0 is one from 1 on."""
    low, high, others = "", "", []
    for limit in _single(limits):
        match limit:
            case annotated_types.Gt():
                low = f">= {int(_number(limit.gt)) + 1}" if whole else f"> {_number(limit.gt):g}"
            case annotated_types.Ge():
                low = f">= {_number(limit.ge):g}"
            case annotated_types.Lt():
                high = _below("<", _number(limit.lt))
            case annotated_types.Le():
                high = _below("<=", _number(limit.le))
            case annotated_types.MultipleOf():
                others.append(f"multiple of {limit.multiple_of}")
            case annotated_types.MinLen():
                others.append(f"{limit.min_length} or more")
    both = " and ".join(filter(None, [low, high]))
    return [", ".join(filter(None, [both, *others]))] if both or others else []


def _single(limits: Any) -> Iterator[Any]:
    """Limits one by one, out of fields and groups of them."""
    for limit in limits:
        if isinstance(limit, FieldInfo):
            yield from _single(limit.metadata)
        elif isinstance(limit, annotated_types.GroupedMetadata):
            yield from _single(limit)
        else:
            yield limit


def _below(sign: str, limit: float) -> str:
    return f"{sign} {limit:g}" if limit < SLIP else ""


def _number(limit: Any) -> float:
    return float(limit)
