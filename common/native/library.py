"""Libraries of our own C sources, compiled for this processor when they are first needed.

What was compiled is kept in the user's cache folder under the content of the sources and the flags,
so that it is never another version's. Where there is no compiler everything works without, slower.
"""

import ctypes
import hashlib
import logging
import os
import stat
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from common.files.paths import cache_folder
from common.native.compiler import COMPILERS, c_compiler, compile_library, flags

VARIABLE = "VARKD_NATIVE"
"""Set to 0, nothing is compiled or loaded: everything goes through torch."""
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Native:
    """A library, or why there is none."""

    library: ctypes.CDLL | None
    why: str = ""


@cache
def native(source: Path) -> Native:
    """The library of this C source, which may include `vector.h` and headers beside it."""
    if os.environ.get(VARIABLE) == "0":
        return Native(None, f"{VARIABLE} is 0")
    compiler = c_compiler()
    if compiler is None:
        looked = os.environ.get("CC") or ", ".join(COMPILERS)
        return Native(None, f"this machine has no C compiler (looked for {looked})")
    try:
        found = _loaded(compiler, source)
    except OSError as error:  # the folder's, or the loader's
        found = Native(None, str(error))
    if found.library is None:
        logging.getLogger("varkd").warning(
            "%s is not used, which makes sampling slower: %s", source.name, found.why
        )
    return found


def _loaded(compiler: str, source: Path) -> Native:
    folder = _kept_folder()
    if folder is not None:
        return _from(folder / f"{source.stem}-{_digest(compiler, source)}.so", compiler, source)
    with tempfile.TemporaryDirectory(prefix="varkd-native-") as alone:  # 0700
        return _from(Path(alone) / f"{source.stem}.so", compiler, source)


def _from(path: Path, compiler: str, source: Path) -> Native:
    if path.exists():
        try:
            return Native(ctypes.CDLL(str(path)))
        except OSError:  # cut short, or of another system; it is made again
            path.unlink()
    why = compile_library(compiler, source, HERE, path)
    return Native(ctypes.CDLL(str(path))) if why is None else Native(None, why)


def _kept_folder() -> Path | None:
    """A folder that nobody else can write to; None where there can't be one."""
    folder = cache_folder() / "native"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except OSError:
        return None
    others = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    mine = about.st_uid == os.getuid() and not others and os.access(folder, os.W_OK)
    return folder if mine else None


def _digest(compiler: str, source: Path) -> str:
    texts = [compiler, *flags()]
    headers = sorted([*source.parent.glob("*.h"), *HERE.glob("*.h")])
    texts += [path.read_text() for path in [source, *headers]]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]
