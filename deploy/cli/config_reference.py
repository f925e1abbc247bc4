"""The config's reference, read off the models themselves.

Importing the models takes seconds, for they lie beside what uses torch: what was read is kept in
the user's cache folder, under a digest of the code that it was read off (`kept_options`).
"""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.errors import InputError
from deploy.cli.parser import closest

if TYPE_CHECKING:
    from pydantic import BaseModel

HINT = "`varkd options` lists all"


@dataclass(frozen=True)
class Option:
    """A field as people read about it."""

    key: str
    kind: str
    """Its type and default in words."""
    meaning: str

    def line(self) -> str:
        return f"{self.key} ({self.kind}): {self.meaning}"

    def paragraph(self, width: int) -> str:
        """For a terminal: the key and its type, then the meaning, within `width`."""
        wrap = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
        wrap.subsequent_indent = " " * 8
        head = wrap.fill(f"{self.key}  ({self.kind})")
        wrap.initial_indent = wrap.subsequent_indent = " " * 4
        meaning = wrap.fill(self.meaning)
        return f"{head}\n{meaning}"


def every_option() -> list[Option]:
    """Of all sections, with the plug-ins that are in use."""
    from deploy.config import RunConfig

    return list(_walk(RunConfig, ""))


def describe(section: str, everything: list[Option] | None = None) -> list[Option]:
    """Every field of `section` and below, or of all sections; a field counts as a section.

    `everything` is `every_option()`, where it is at hand.

    Raises:
        InputError: there is no such section.
    """
    everything = every_option() if everything is None else everything
    chosen = [
        option
        for option in everything
        if not section
        or _plain(option.key).startswith(f"{section}.")
        or _plain(option.key) == section
    ]
    if not chosen:
        keys = [_plain(option.key) for option in everything]
        names = dict.fromkeys(key.rpartition(".")[0] for key in keys if "." in key)
        also = [key for key in [*names, *keys] if key.rpartition(".")[2] == section]
        hint = closest(section, names) or closest(section, keys)
        if also:
            hint = f"did you mean {' or '.join(also[:3])}?"
        tops = sorted({key.partition(".")[0] for key in names})
        raise InputError(
            f"no config section called {section!r}; {hint or 'choose one of: ' + ', '.join(tops)}"
        )
    return chosen


def search(word: str, everything: list[Option]) -> list[Option]:
    """Those of `everything` whose key, type or meaning has all the words, whatever their case.

    Raises:
        InputError: there is none.
    """
    words = word.lower().split()
    found = [o for o in everything if all(w in o.line().lower() for w in words)]
    if not words or not found:
        keys = {part for o in everything for part in _plain(o.key).split(".")}
        hint = closest(word, keys)
        raise InputError(f"--search {word!r}: no field has it in its name or text; {hint or HINT}")
    return found


def _plain(key: str) -> str:
    """A key without the [kind] marks of plug-ins."""
    return key.split("[")[0] + (key.split("]")[1] if "]" in key else "")


def _walk(
    model: "type[BaseModel]",
    prefix: str,
    defaults: "BaseModel | None" = None,
    within: frozenset[object] = frozenset(),
) -> Iterator[Option]:
    """Every field; `defaults` is what the enclosing section presets. A plug-in that holds another
    of its own package (`within`) has that one's fields where the outer ones are."""
    from common.config.sections import held_by
    from deploy.cli.field_docs import field_docs
    from deploy.cli.readable import default_of, shown, type_of

    meanings = field_docs(model)
    for name, field in model.model_fields.items():
        key, section = prefix + name, held_by(field)
        meaning = " ".join((field.description or meanings.get(name, "")).split())
        tables = dict(section.tables())
        if tables:
            names = " | ".join(tables)
            choice = f"table with kind = one of {names}"
            choice += f", default {section.default}" if section.default else ""
            yield Option(key, f"tables called {names}" if section.named else choice, meaning)
            for kind, plugin in () if section.package in within else tables.items():
                mark = f"{key}.{kind}." if section.named else f"{key}[{kind}]."
                yield from _walk(plugin, mark, within=within | {section.package} - {None})
            continue
        nested = next(iter(section.models), None)
        if nested is None or field.default is None:
            default = shown(getattr(defaults, name)) if defaults else default_of(field)
            yield Option(key, f"{type_of(field)}, {default}", meaning)
        if nested is not None:
            preset = getattr(defaults, name, field.default)
            own = preset if isinstance(preset, nested) else None
            yield from _walk(nested, f"{key}.", own, within)
