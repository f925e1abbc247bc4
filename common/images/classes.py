"""From names of classes, or Parquet's labels, to the ids that models are conditioned on.

Shape letters: N images, K names.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from common.images.config import ImagesConfig
from common.images.listing import Findings, count, printable, read_file

WORDNET = re.compile(r"n\d{8}\b")
LONGEST_LIST = 2**24
"""Bytes of a file with names of classes."""


def in_order(names: Sequence[str], config: ImagesConfig, where: str, found: Findings) -> list[str]:
    """Class folders by label.

    Raises:
        InputError: numeric order is wanted, and a name is no number.
    """
    as_text = sorted(names)
    words = [name for name in names if not (name.isascii() and name.isdecimal())]
    if config.class_order == "torchvision":
        if not words and as_text != sorted(names, key=int) and config.class_ids is None:
            label = next(k for k, name in enumerate(sorted(names, key=int)) if name != as_text[k])
            found.remarks.append(
                "class folders are numbers, but sorted as text, as torchvision does: label "
                f"{label} is folder {as_text[label]}; images.class_order=numeric sorts by number"
            )
        return as_text
    if words:
        raise InputError(
            f"{where}: images.class_order is numeric, but class folder {printable(words[0])} is no "
            "number; rename it, or leave images.class_order out"
        )
    return sorted(names, key=lambda name: (int(name), name))


def assign(
    config: ImagesConfig, names: Sequence[str], row_N: np.ndarray, where: str, found: Findings
) -> tuple[tuple[str, ...], Tensor]:
    """(names by id, label_N): `row_N` says which of `names` an image has.

    Raises:
        InputError: a name without id, an id beyond the classes, or another number of classes than
            declared.
    """
    shown = [printable(name) for name in names]
    if config.class_ids is None:
        classes, label_N = tuple(shown), torch.from_numpy(row_N.astype(np.int64))
        if config.classes is not None and len(names) != config.classes:
            raise InputError(
                f"{where}: has {len(names)} classes, but images.classes is {config.classes}; "
                "correct one, or say by images.class_ids which of them these are"
            )
    else:
        ids = known_ids(config.class_ids)
        total = config.classes or len(ids)
        there = np.bincount(row_N, minlength=len(shown)) > 0
        id_K = [
            _id_of(name, ids, total, where) if used else 0
            for name, used in zip(shown, there, strict=True)
        ]
        by_id = {number: name for name, number in ids.items()}
        classes = tuple(by_id.get(number, str(number)) for number in range(total))
        label_N = torch.tensor(id_K)[torch.from_numpy(row_N.astype(np.int64))]
    found.images, found.classes = len(label_N), len(label_N.unique())
    if found.classes < len(classes):
        missing = count(len(classes) - found.classes, "class")
        found.remarks.append(f"{missing} of {len(classes):,} without an image")
    return classes, label_N


def known_ids(given: Path | Sequence[str] | Mapping[str, int]) -> dict[str, int]:
    """Ids by name, from a file, a list or a table.

    Raises:
        InputError: the file cannot be read, or a name is there twice.
    """
    if isinstance(given, Mapping):
        return dict(given)
    source = printable(given) if isinstance(given, Path) else "images.class_ids"
    names = _names_in(given) if isinstance(given, Path) else list(given)
    ids = {name: number for number, name in enumerate(names)}
    if len(ids) < len(names):
        twice = next(name for number, name in enumerate(names) if ids[name] != number)
        raise InputError(f"{source}: names {twice} twice; every class has one id")
    if not ids:
        raise InputError(f"{source}: names no class; give one name per id")
    return ids


def _names_in(path: Path) -> list[str]:
    """One name per line; of lines that begin with a WordNet id, the id."""
    try:
        lines = read_file(path)[:LONGEST_LIST].decode().rstrip().splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{printable(path)}: is no text; give one class name per line") from None
    found = [WORDNET.match(line) for line in lines]
    return [m.group() if m else line.strip() for m, line in zip(found, lines, strict=True)]


def _id_of(name: str, ids: Mapping[str, int], total: int, where: str) -> int:
    if name not in ids:
        raise InputError(
            f"{where}: class {name} has no id in images.class_ids, which knows {_some(ids)}; add "
            "it, or remove the class"
        )
    if ids[name] >= total:
        raise InputError(
            f"{where}: class {name} has id {ids[name]} in images.class_ids, but images.classes is "
            f"{total}; correct one"
        )
    return ids[name]


def _some(names: Mapping[str, int]) -> str:
    few = ", ".join(list(names)[:3])
    return f"{few}, ... ({len(names)} names)" if len(names) > 3 else few
