"""What a config holds of one type, wherever it stands."""

from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel

Found = TypeVar("Found")


def parts(value: Any, kind: type[Found], key: str = "") -> Iterator[tuple[str, Found]]:
    """Every instance of `kind` in `value`, which stands at `key`, under its dotted key: in
    sections, of plug-ins, in lists and tables."""
    inner: list[tuple[str, Any]] = []
    if isinstance(value, kind):
        yield key, value
    elif isinstance(value, BaseModel):
        inner = [(name, getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, dict):
        inner = [(str(name), item) for name, item in value.items()]
    elif isinstance(value, tuple):
        inner = [(str(index), item) for index, item in enumerate(value)]
    for name, item in inner:
        yield from parts(item, kind, f"{key}.{name}" if key else name)
