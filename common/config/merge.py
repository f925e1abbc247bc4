"""How layers of a config become one tree: files, a study's methods, overrides.

The one rule: a later layer wins, key by key, and tables are merged. A table that changes its `kind`
or its `preset` begins with what of the layers below still means something: the keys that the new
kind has, without those that the preset gives. What falls away is told.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from common.config.plugin_path import use_plugins
from common.config.sections import Section
from common.errors import InputError

Tree = dict[str, Any]
"""Tables and values as TOML has them."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A part of a config and where it is from, for messages."""

    tree: Tree
    source: str
    folder: Path | None = None
    """Where a package of plug-ins may lie that the layer names, beside the working directory."""


@dataclass
class Merged:
    tree: Tree = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    """What the user should know: former names that were taken, keys that fell away."""


def merge(cls: type[BaseModel], layers: Iterable[Layer]) -> Merged:
    """Lay one over the other, the first at the bottom; all may be parts of a `cls`.

    The packages that the last `plugins` names are in use from here on: they decide what there is.

    Raises:
        InputError: a layer gives a key under its former name and its present one, or names a
            package of plug-ins that is not there.
    """
    layers = list(layers)
    plugins = _plugins(layers) if "plugins" in cls.model_fields else None
    merged = Merged()
    for layer in layers:
        laying = _Laying(layer.source, merged.told)
        merged.tree = laying.lay(merged.tree, layer.tree, Section.of(cls), ())
    if plugins:
        merged.tree["plugins"] = plugins
    return merged


def _plugins(layers: Sequence[Layer]) -> list[str] | None:
    """What the last layer that names packages names; None where it is for the config to refuse."""
    use_plugins([], [])
    for layer in reversed(layers):
        given = layer.tree.get("plugins")
        if given is None:
            continue
        if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
            return None
        beside = [Path.cwd()] if layer.folder is None else [layer.folder, Path.cwd()]
        try:
            return use_plugins(given, beside)
        except InputError as error:
            raise InputError(f"{layer.source}: {error}") from None
    return []


class _Laying:
    """One layer over those below."""

    def __init__(self, source: str, told: list[str]) -> None:
        self._source = source
        self._told = told

    def lay(self, below: Tree, above: Tree, section: Section, path: tuple[str, ...]) -> Tree:
        old, new = section.kind_of(below), section.kind_of(above, _kind(below))
        here = section.of_kind(new)
        above = self._present_names(above, here, path)
        if below and new is not None and old != new:
            below = self._of_another_kind(below, here, (_kind(below), new), path)
        below = self._of_another_preset(below, above, here, path)
        merged = self._of_another_choice(below, above, here, path)
        for key, value in above.items():
            if isinstance(value, dict):
                under = merged.get(key)
                under = under if isinstance(under, dict) else {}
                merged[key] = self.lay(under, value, here.below(key), (*path, key))
            else:
                merged[key] = value
        return merged

    def _present_names(self, table: Tree, section: Section, path: tuple[str, ...]) -> Tree:
        """Former names are translated in each layer, so that a later one wins under either."""
        renamed = section.renamed()
        for old in sorted(table.keys() & renamed.keys()):
            new = renamed[old]
            if new in table:
                raise InputError(
                    f"{self._source}: {_dotted(path, old)} and {_dotted(path, new)} are two names "
                    "of one key; keep the second"
                )
            self._told.append(f"{_dotted(path, old)} is called {new} now; taken as that")
        return {renamed.get(name, name): value for name, value in table.items()}

    def _of_another_kind(
        self, below: Tree, section: Section, kinds: tuple[str | None, str], path: tuple[str, ...]
    ) -> Tree:
        """What of a table is left where its kind changes; a preset is never another kind's."""
        gone: list[str] = []
        kept = _known(below, section, (), gone)
        if kept.pop("preset", None) is not None:
            gone.append("preset")
        kept.pop("kind", None)
        if gone:
            old, new = kinds
            was = f" instead of {old}" if old else ""
            self._told.append(f"{_dotted(path, 'kind')} is {new}{was}: dropped {', '.join(gone)}")
        return kept

    def _of_another_preset(
        self, below: Tree, above: Tree, section: Section, path: tuple[str, ...]
    ) -> Tree:
        """A new preset replaces what the one below gave; a size of one's own ends the preset."""
        presets: Mapping[str, Mapping[str, Any]] = getattr(_only(section), "presets", {})
        freely: frozenset[str] = getattr(_only(section), "preset_gives", frozenset())
        before, after = below.get("preset"), above.get("preset")
        if after is not None and after != before:
            gives = {*presets.get(str(before), {}), *presets.get(str(after), {}), *freely}
            gone = [n for n in below if n in freely or (before is None and n in gives)]
            if gone:
                self._told.append(
                    f"{_dotted(path, 'preset')} is {after}: dropped {', '.join(gone)}"
                )
            return {name: value for name, value in below.items() if name not in gives}
        sizes = presets.get(str(before), {})
        own = [name for name in above if name in sizes and above[name] != sizes[name]]
        if after is not None or not own:
            return below
        self._told.append(
            f"{_dotted(path, own[0])} is not that of preset {before}: its other sizes stay, its "
            "name is dropped"
        )
        return {**sizes, **{name: value for name, value in below.items() if name != "preset"}}

    def _of_another_choice(
        self, below: Tree, above: Tree, section: Section, path: tuple[str, ...]
    ) -> Tree:
        """One of several alternatives replaces the one that was chosen below."""
        sets: tuple[frozenset[str], ...] = getattr(_only(section), "alternatives", ())
        gone = {name for names in sets if names & above.keys() for name in names - above.keys()}
        if dropped := sorted(gone & below.keys()):
            chosen = _dotted(path, next(n for names in sets for n in names & above.keys()))
            self._told.append(f"{chosen} is given: dropped {', '.join(dropped)}")
        return {name: value for name, value in below.items() if name not in gone}


def _known(table: Tree, section: Section, path: tuple[str, ...], gone: list[str]) -> Tree:
    """The keys that a section has; the names of the others go to `gone`."""
    kept: Tree = {}
    for name, value in table.items():
        if not section.knows(name):
            gone.append(_dotted(path, name))
            continue
        below = section.below(name)
        if isinstance(value, dict) and below.is_table:
            value = _known(value, below.of_kind(below.kind_of(value)), (*path, name), gone)
        kept[name] = value
    return kept


def _only(section: Section) -> type[BaseModel] | None:
    return section.models[0] if len(section.models) == 1 else None


def _kind(table: Tree) -> str | None:
    kind = table.get("kind")
    return kind if isinstance(kind, str) else None


def _dotted(path: Sequence[str], name: str) -> str:
    return ".".join([*path, name])
