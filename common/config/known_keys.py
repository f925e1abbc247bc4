"""Which keys a config has, and which of them somebody may have meant."""

import difflib
from collections.abc import Iterator

from pydantic import BaseModel

from common.config.sections import Section, held_by

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
"""Keys or kinds that are named where there are several."""


def suggestion(cls: type[BaseModel], path: list[str]) -> str:
    """What to write instead of the unknown key `path`: a near name in its section, or else the
    same or a near name in another section."""
    keys = list(known_keys(cls))
    *section, wrong = path
    if len(wrong) > LONGEST:
        return "see `varkd options`"
    if owners := _kinds_with(cls, path):
        here = ".".join([*section, "kind"])
        some = " and ".join(owners[:MOST])
        some += f" and {len(owners) - MOST} more" if len(owners) > MOST else ""
        return f"it belongs to kind {some}; leave it out, or set {here}={owners[0]}"
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


def known_keys(
    cls: type[BaseModel], prefix: str = "", within: frozenset[object] = frozenset()
) -> Iterator[str]:
    """Dotted keys of `cls` and its sections; of a plug-in's section those of all its kinds.

    A plug-in may hold another of its own package (`within`), whose keys are those of the outer one.
    """
    seen: set[str] = set()
    for name, field in cls.model_fields.items():
        key = prefix + name
        for found in [key, *_keys_in(held_by(field), key, within)]:
            if found not in seen:
                seen.add(found)
                yield found


def _keys_in(section: Section, key: str, within: frozenset[object]) -> Iterator[str]:
    if section.package in within:
        return
    if section.package is not None:
        within |= {section.package}
    for model in section.models:
        yield from known_keys(model, f"{key}.", within)
    for kind, model in section.tables() if section.named else ():
        yield from known_keys(model, f"{key}.{kind}.", within)


def _kinds_with(cls: type[BaseModel], path: list[str]) -> list[str]:
    """Kinds that have the key, where the section is a plug-in's."""
    section = Section.of(cls)
    for name in path[:-1]:
        section = section.below(name)
    if section.package is None:
        return []
    return [kind for kind, model in section.tables() if path[-1] in model.model_fields]
