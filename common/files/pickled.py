"""Tensors in pickles, as torch.save writes them, opened without running anything they hold.

A pickle is a program: it names functions and has them called. So its instructions are looked at
one by one before torch is asked to follow them, and a file that names anything but what tensors
are made of is refused by that name. torch's own check (`weights_only`) stands behind this one.
"""

import argparse
import io
import pickletools
import re
import struct
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Iterable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

from common.errors import InputError
from common.files.paths import require_file, shortened

MOST_INSTRUCTIONS = 2**24
"""Bytes of a pickle without its tensors; the largest published trainer's file has below 2^20."""
LEGACY_PICKLES = 5
"""torch.save's old format: magic number, version, platform, the object, names of storages."""
PARTS = re.compile(
    r"""collections\ (OrderedDict|Counter)
    |torch(\.cuda)?\ [A-Z][A-Za-z0-9]*Storage
    |torch\ (Size|Tensor|device|b?float\d\w*|u?int\d+|bool|complex\d+)
    |torch\._utils\ _rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)
    |torch\._tensor\ _rebuild_from_type_v2
    |torch\.nn\.parameter\ Parameter
    |torch\.storage\ (Untyped|Typed)Storage
    |torch\.serialization\ _get_layout
    |_codecs\ encode
    |builtins\ (set|complex)
    |argparse\ Namespace""",
    re.VERBOSE,
)
"""What tensors and the official trainers' settings are made of, as `module name`. None of it runs
code, and none makes something large out of a few bytes, as builtins.bytearray would."""
DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    UnpicklingError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
"""What following the instructions of a damaged pickle may end in."""


def read_pickle(path: Path) -> Any:
    """The content of a file of torch.save's, in memory of its own.

    Raises:
        InputError: as `inspect`.
    """
    inspect(path)
    return follow(path, mapped=False)


def inspect(path: Path) -> bool:
    """Look at all instructions of a file without following any; whether it can be mapped, which
    torch's format before 1.6 cannot.

    Raises:
        InputError: there is no such file, it is cut off or no pickle, or it holds code.
    """
    require_file(path, "a checkpoint")
    try:
        with path.open("rb") as file:
            start = file.read(264)
            file.seek(0)
            if start[:4] == b"PK\x03\x04":
                _require_tensors_only(path, _parts_of_zip(path, file))
                return True
            if start[257:262] == b"ustar":
                raise InputError(
                    f"{path}: a tar archive, as torch wrote before 2017, which cannot be read "
                    "safely; take the weights in another format, such as safetensors"
                )
            head = io.BytesIO(file.read(MOST_INSTRUCTIONS))
            _require_tensors_only(path, (head for _ in range(LEGACY_PICKLES)))
            return False
    except InputError:
        raise
    except DAMAGE:
        raise _unreadable(path) from None


def follow(path: Path, *, mapped: bool) -> Any:
    """What an inspected file holds; its tensors mapped from disk, or copied.

    Raises:
        InputError: its instructions cannot be followed.
    """
    try:
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(action="ignore"),  # they ask to report the file to torch
        ):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except DAMAGE:  # torch's messages advise to switch its check off, so none is passed on
        raise _unreadable(path) from None


def _parts_of_zip(path: Path, file: BinaryIO) -> Iterator[BinaryIO]:
    """The pickles in an archive whose records are as they are in memory, each of them once."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise InputError(f"{path}: two records of the archive have one name: refused")
        inner = {name.partition("/")[2] for name in names}
        if "constants.pkl" in inner:
            raise InputError(
                f"{path}: a TorchScript program, not a checkpoint; take its weights as a state "
                "dict or as safetensors"
            )
        if "data.pkl" not in inner:
            raise InputError(f"{path}: an archive without data.pkl, so no checkpoint of torch")
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                raise InputError(
                    f"{path}: the archive's record {record.filename} is compressed, which torch "
                    "never does; take the file from its source again"
                )
            if record.filename.endswith(".pkl"):
                if record.file_size > MOST_INSTRUCTIONS:
                    raise InputError(
                        f"{path}: its pickle has {record.file_size} bytes beside the tensors; "
                        "expected a state dict"
                    )
                yield io.BytesIO(archive.read(record))


def _require_tensors_only(path: Path, pickles: Iterable[BinaryIO]) -> None:
    strange: dict[str, None] = {}
    try:
        for pickle in pickles:
            for name in _wanted(pickle):
                module, _, rest = name.partition(" ")
                name = f"{IMPORT_MAPPING.get(module, module)} {rest}"  # Python 2's modules
                if not PARTS.fullmatch(name):
                    strange[name.replace(" ", ".")[:80]] = None
    except ValueError:  # not the end of a pickle; what it wanted before comes first
        if not strange:
            raise
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        named = shortened(", ".join(list(strange)[:3]))
        raise InputError(
            f"{path}: holds code, not only tensors: opening it would run {named}{more}. It was "
            "refused, and nothing in it was run; take the weights from a source that you trust, "
            "as safetensors or as a plain state dict"
        )


def _wanted(pickle: BinaryIO) -> Iterator[str]:
    """`module name` of everything that the instructions of one pickle ask for, in order."""
    strings: list[str] = []
    memo: dict[int, str | None] = {}
    latest: str | None = None
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument)
        elif opcode.name == "STACK_GLOBAL":  # named by the last two strings
            yield " ".join(strings) or "an unnamed object"
        elif opcode.name.startswith("EXT"):
            yield f"copyreg extension-{argument}"
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = latest
            continue
        found = memo.get(argument or 0) if opcode.name.endswith("GET") else argument
        latest = found if isinstance(found, str) else None
        if latest is not None:
            strings = [*strings[-1:], latest]


def _unreadable(path: Path) -> InputError:
    return InputError(
        f"{path}: not a readable checkpoint: damaged, cut off, or of another format; check that "
        "the file is complete"
    )
