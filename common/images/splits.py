"""Training and held-out data that lie side by side, told apart by their names.

The words are those of Hugging Face's rule for data files (docs: file names and splits).
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from common.errors import InputError
from common.images.config import Split
from common.images.listing import LeftOut, entries, is_folder, printable

WORDS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
}
PREFERRED: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "validation")}


def split_of(parts: Sequence[str]) -> str | None:
    """The split that a path names, the last part first: `data/train-00000-of-00002.parquet`."""
    for part in reversed(parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in WORDS:
                return WORDS[word]
    return None


def shards_of(
    folder: Path, files: list[tuple[str, ...]], split: Split, left_out: LeftOut
) -> list[tuple[str, ...]]:
    """Of a folder's shards those of one split; all of them where names tell of one split only.

    Raises:
        InputError: there are several splits, and not the wanted one or files of none.
    """
    groups: dict[str | None, list[tuple[str, ...]]] = defaultdict(list)
    for parts in files:
        groups[split_of(parts)].append(parts)
    if len(groups) == 1:
        return files
    wanted = next((name for name in PREFERRED[split] if name in groups), None)
    if wanted is None or None in groups:
        found = ", ".join(
            f"{len(some)} of {name or 'no split'} ({printable('/'.join(some[0]))})"
            for name, some in groups.items()
        )
        raise InputError(
            f"{printable(folder)}: holds shards of several splits: {found}; name those for "
            f'images.{split}, for example "{printable(folder)}/{split}-*.parquet"'
        )
    for name, some in groups.items():
        if name != wanted:
            left_out.add(f"of split {name}", "/".join(some[0]), len(some))
    return groups[wanted]


def refuse_splits_as_classes(folder: Path, names: Sequence[str], split: Split) -> None:
    """Class folders called train and test, or a train that itself holds folders, are no classes.

    Raises:
        InputError: they are there; the sentence says what to set instead.
    """
    splits = {name: WORDS[name.lower()] for name in names if name.lower() in WORDS}
    if not splits:
        return
    nested = len(splits) == len(names) and any(
        is_folder(entry) for name in splits for entry in entries(folder / name)
    )
    if nested or ("train" in splits.values() and len(set(splits.values())) > 1):
        wanted = next(
            (n for kind in PREFERRED[split] for n in splits if splits[n] == kind),
            next(iter(splits)),
        )
        raise InputError(
            f"{printable(folder)}: its folders {', '.join(splits)} look like splits, not classes; "
            f"set images.{split}={printable(folder / wanted)}, or rename them if they are classes"
        )
