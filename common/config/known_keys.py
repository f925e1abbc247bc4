"""Which keys a config has, and which of them somebody may have meant."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

OTHER_NAMES = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "epochs": "steps",
    "cfg": "guidance",
    "cfg_scale": "guidance",
    "ckpt": "weights",
    "checkpoint": "weights",
}
"""What other projects call it."""
LONGEST = 80
"""Characters: comparing takes quadratic time, and no key is longer."""
MOST = 3
"""Keys that are proposed where the same name occurs in several sections."""


def suggestion(cls: type[BaseModel], path: list[str]) -> str:
    """What to write instead of the unknown key `path`: a near name in its section, or else the
    same or a near name in another section."""
    keys = list(known_keys(cls))
    *section, wrong = path
    if len(wrong) > LONGEST:
        return "see `varkd options`"
    if owners := _kinds_with(cls, path):
        here = ".".join([*section, "kind"])
        return f"it belongs to kind {' and '.join(owners)}; leave it out, or set {here}={owners[0]}"
    prefix = ".".join([*section, ""])
    siblings = {key[len(prefix) :].partition(".")[0] for key in keys if key.startswith(prefix)}
    names = {key.rpartition(".")[2] for key in keys}
    meant = OTHER_NAMES.get(wrong, wrong)
    here = meant if meant in siblings else _nearest(meant, siblings, 0.6)
    if here and (here == meant or meant not in names):
        return f"did you mean {prefix}{here}?"
    elsewhere = meant if meant in names else _nearest(meant, names, 0.85)
    found = [key for key in keys if elsewhere and key.rpartition(".")[2] == elsewhere]
    found.sort(key=lambda key: key.count("."))
    return f"did you mean {' or '.join(found[:MOST])}?" if found else "see `varkd options`"


def _nearest(word: str, names: set[str], likeness: float) -> str | None:
    """A name that begins with the word, or else one that looks like it."""
    longer = sorted(name for name in names if name.startswith(f"{word}_"))
    return next(iter([*longer, *difflib.get_close_matches(word, sorted(names), 1, likeness)]), None)


def known_keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted keys of `cls` and its sections; of a plug-in's section those of all its kinds."""
    seen: set[str] = set()
    for name, field in cls.model_fields.items():
        key = prefix + name
        for found in [key, *(k for model in _models(field) for k in known_keys(model, f"{key}."))]:
            if found not in seen:
                seen.add(found)
                yield found


def package_of(cls: type[BaseModel], section: Sequence[str]) -> str | None:
    """The package whose plug-ins the section chooses from by its `kind`, if it does."""
    models, package = [cls], None
    for name in section:
        field = next((m.model_fields[name] for m in models if name in m.model_fields), None)
        if field is None:
            return None
        models, package = _models(field), _package(field)
    return package


def kinds_in(package: str) -> list[str]:
    """Names of the plug-ins in a package."""
    from common.config.plugins import kinds  # which needs Config itself

    return kinds(package)


def keys_of_kind(package: str, kind: str) -> set[str]:
    """Names of a plug-in's fields.

    Raises:
        InputError: there is no such kind.
    """
    from common.config.plugins import load_plugin

    return {"kind", *load_plugin(package, kind).Config.model_fields}


def _kinds_with(cls: type[BaseModel], path: list[str]) -> list[str]:
    """Kinds that have the key, where the section is a plug-in's."""
    package = package_of(cls, path[:-1])
    if package is None:
        return []
    return [kind for kind in kinds_in(package) if path[-1] in keys_of_kind(package, kind)]


def _package(field: FieldInfo) -> str | None:
    packages = [getattr(getattr(m, "func", None), "package", None) for m in field.metadata]
    return next((p for p in packages if p is not None), None)


def _models(field: FieldInfo) -> list[type[BaseModel]]:
    """The sections that a field may hold."""
    package = _package(field)
    if package is not None:
        from common.config.plugins import kinds, load_plugin  # which needs Config itself

        return [load_plugin(package, kind).Config for kind in kinds(package)]
    return [a for a in _parts(field.annotation) if isinstance(a, type) and issubclass(a, BaseModel)]


def _parts(annotation: Any) -> tuple[Any, ...]:
    return (annotation, *get_args(annotation))
