"""The config's reference, read off the models themselves."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel

from common.config.sections import held_by
from common.errors import InputError
from deploy.cli.parser import closest
from deploy.cli.readable import default_of, shown, type_of
from deploy.config import RunConfig

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


def describe(section: str) -> list[Option]:
    """Every field of `section` and below, or of all sections; a field counts as a section.

    Raises:
        InputError: there is no such section.
    """
    everything = list(_walk(RunConfig, ""))
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


def search(word: str) -> list[Option]:
    """Fields whose key, type or meaning has all the words, whatever their case.

    Raises:
        InputError: there is none.
    """
    words = word.lower().split()
    found = [o for o in _walk(RunConfig, "") if all(w in o.line().lower() for w in words)]
    if not words or not found:
        keys = {part for o in _walk(RunConfig, "") for part in _plain(o.key).split(".")}
        hint = closest(word, keys)
        raise InputError(f"--search {word!r}: no field has it in its name or text; {hint or HINT}")
    return found


def _plain(key: str) -> str:
    """A key without the [kind] marks of plug-ins."""
    return key.split("[")[0] + (key.split("]")[1] if "]" in key else "")


def _walk(
    model: type[BaseModel], prefix: str, defaults: BaseModel | None = None
) -> Iterator[Option]:
    """Every field; `defaults` is what the enclosing section presets."""
    for name, field in model.model_fields.items():
        key, section = prefix + name, held_by(field)
        meaning = " ".join((field.description or "").split())
        tables = dict(section.tables())
        if tables:
            names = " | ".join(tables)
            choice = f"table with kind = one of {names}"
            choice += f", default {section.default}" if section.default else ""
            yield Option(key, f"tables called {names}" if section.named else choice, meaning)
            for kind, plugin in tables.items():
                mark = f"{key}.{kind}." if section.named else f"{key}[{kind}]."
                yield from _walk(plugin, mark)
            continue
        nested = next(iter(section.models), None)
        if nested is None or field.default is None:
            default = shown(getattr(defaults, name)) if defaults else default_of(field)
            yield Option(key, f"{type_of(field)}, {default}", meaning)
        if nested is not None:
            preset = getattr(defaults, name, field.default)
            yield from _walk(nested, f"{key}.", preset if isinstance(preset, nested) else None)
