"""Which keys may stand at a place of a config's tree, read off the models themselves."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from common.config.registry import (
    FieldsOfAll,
    FromPackage,
    NamedByKind,
    Packages,
    kinds,
    load_plugin,
)


@dataclass(frozen=True, slots=True)
class PartOf:
    """Marks a table that is a part of another config: `Annotated[dict[str, Any], PartOf(Run)]`."""

    model: type[BaseModel]


@dataclass(frozen=True)
class Section:
    """A table of a config: fields of a class, those of a kind, or tables with free names."""

    models: tuple[type[BaseModel], ...] = ()
    """Classes whose fields may stand here; several where the kind is open."""
    package: Packages | None = None
    """Whose plug-ins the table chooses from by its `kind`."""
    default: str | None = None
    """The kind of a table that names none."""
    some: tuple[str, ...] = ()
    """The kinds that may stand here, where not all of the package may."""
    named: str | None = None
    """Whose plug-ins the tables in it are called by."""
    each: "Section | None" = None
    """What tables with free names hold."""

    @classmethod
    def of(cls, model: type[BaseModel]) -> Self:
        return cls(models=(model,))

    def kind_of(self, table: Mapping[str, Any], otherwise: str | None = None) -> str | None:
        """The kind of a table of this section, where it has one and the file for it exists."""
        found = table.get("kind", otherwise or self.default)
        if self.package is None or not isinstance(found, str):
            return None
        return found if found in (self.some or kinds(self.package)) else None

    def of_kind(self, kind: str | None) -> "Section":
        """The fields of one kind alone."""
        if self.package is None or kind is None:
            return self
        only = (load_plugin(self.package, kind).Config,)
        return Section(only, self.package, self.default, self.some)

    def below(self, name: str) -> "Section":
        """The section under a key of this one; without any keys where it is unknown or a value."""
        if self.named is not None:
            known = name in kinds(self.named)
            return Section.of(load_plugin(self.named, name).Config) if known else Section()
        if self.each is not None:
            return self.each
        fields = [m.model_fields[name] for m in self.models if name in m.model_fields]
        found = [held_by(field) for field in fields]
        if len(found) == 1:
            return found[0]
        models = dict.fromkeys(model for section in found for model in section.models)
        return Section(tuple(models))

    def tables(self) -> Iterator[tuple[str, type[BaseModel]]]:
        """(kind, class) of all plug-ins that may stand here."""
        package = self.package or self.named
        if package is not None:
            for kind in self.some or kinds(package):
                yield kind, load_plugin(package, kind).Config

    def knows(self, name: str) -> bool:
        """Whether a key may stand here."""
        if self.each is not None:
            return True
        if self.named is not None:
            return name in kinds(self.named)
        is_kind = name == "kind" and self.package is not None
        return is_kind or any(name in model.model_fields for model in self.models)

    @property
    def is_table(self) -> bool:
        """Whether there are keys here at all; else it is a value."""
        return bool(self.models or self.named or self.each)

    def renamed(self) -> dict[str, str]:
        """Present names of keys by former ones."""
        return {old: new for m in self.models for old, new in getattr(m, "renamed", {}).items()}

    def present(self, dotted: str) -> str:
        """A dotted key of this section with the names of today."""
        names, here = [], self
        for name in dotted.split("."):
            names.append(here.renamed().get(name, name))
            here = here.below(names[-1])
        return ".".join(names)


def held_by(field: FieldInfo) -> Section:
    """The section that a field holds; one without keys where it holds a value."""
    found = _marked(field.metadata)
    if found is not None:
        return found
    for part in _parts(field.annotation):
        inner = _marked(getattr(part, "__metadata__", ()))
        if inner is not None:
            return Section(each=inner) if get_origin(field.annotation) is dict else inner
    models = [p for p in _parts(field.annotation) if _is_model(p)]
    return Section(tuple(models))


def _marked(metadata: Iterable[Any]) -> Section | None:
    for mark in metadata:
        made = getattr(mark, "func", None)
        if isinstance(made, FromPackage):
            some = made.some or kinds(made.package)
            every = tuple(load_plugin(made.package, kind).Config for kind in some)
            return Section(every, made.package, made.default, made.some)
        if isinstance(made, NamedByKind):
            return Section(named=made.package)
        if isinstance(made, FieldsOfAll):
            return Section.of(made.model())
        if isinstance(mark, PartOf):
            return Section.of(mark.model)
    return None


def _parts(annotation: Any) -> tuple[Any, ...]:
    return (annotation, *get_args(annotation))


def _is_model(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, BaseModel)
