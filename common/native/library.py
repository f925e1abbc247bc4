"""Libraries of our own C sources, compiled for this processor when they are first needed.

What was compiled is kept in the user's cache folder under the content of the sources and the flags,
so that it is never another version's. Where there is no compiler everything works without, slower.
"""

import ctypes
import hashlib
import logging
import os
import platform
import stat
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from common.cache import cache_folder
from common.native.compiler import COMPILERS, c_compiler, compiled, flags, ways

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
    except TimeoutError as error:
        found = Native(None, str(error))
    if found.library is None:
        logging.getLogger("varkd").warning(
            "%s is not used, torch's operations are, which take longer: %s", source.name, found.why
        )
    return found


def _loaded(compiler: list[str], source: Path) -> Native:
    folder = _kept_folder()
    found = Native(None)
    if folder is not None:
        name = f"{source.stem}-{_digest(compiler, source)}.so"
        found = _from(folder / name, compiler, source)
    if found.library is not None:
        return found
    try:  # e.g. nothing may be executed that lies in the home folder
        with tempfile.TemporaryDirectory(prefix="varkd-native-") as alone:  # 0700
            return _from(Path(alone) / f"{source.stem}.so", compiler, source)
    except TimeoutError:
        raise
    except OSError as error:
        return Native(None, str(error))


def _from(path: Path, compiler: list[str], source: Path) -> Native:
    """The library at this path, made where it is not there or cannot be loaded: it was cut short,
    or is of another system."""
    why = ""
    try:
        if path.exists() and path.stat().st_uid == os.getuid():
            return Native(ctypes.CDLL(str(path)))
    except OSError as error:
        why = str(error)
    for way in ways():
        try:
            said = compiled([*compiler, *way], source, HERE, path)
            if said is None:
                return Native(ctypes.CDLL(str(path)))
        except TimeoutError:
            raise
        except OSError as error:  # the folder's, or the loader's
            said = str(error)
        why = why or said
    return Native(None, why)


def _kept_folder() -> Path | None:
    """A folder that nobody else can write to, nor to the one it is in; None where there can't be
    one."""
    try:
        folder = cache_folder() / "native"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mine = all(map(_is_mine, (folder, folder.parent)))
    except (OSError, RuntimeError):  # no such user, no home
        return None
    return folder if mine and os.access(folder, os.W_OK) else None


def _is_mine(folder: Path) -> bool:
    about = folder.stat()
    return about.st_uid == os.getuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _digest(compiler: list[str], source: Path) -> str:
    texts = [*compiler, *flags(), platform.machine(), *platform.libc_ver()]
    headers = sorted([*source.parent.glob("*.h"), *HERE.glob("*.h")])
    texts += [path.read_text() for path in [source, *headers]]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]
