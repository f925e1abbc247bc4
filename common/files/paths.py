"""Paths and small files as users give them: anything may be there, or nothing.

Free of third parties, so that the command line can use it before it imports anything.
"""

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from common.errors import InputError

TEXT_BYTES = 2**20
"""Largest configuration that is read; real ones have a few thousand bytes."""
JSON_BYTES = 2**26
"""Largest file of facts or results."""
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
SHOWN_CHARACTERS = 80
"""Characters of somebody's text that a sentence repeats."""


def user_path(value: str | os.PathLike[str]) -> Path:
    """`value` with a leading `~` expanded.

    Raises:
        InputError: it cannot be the name of a file anywhere: a NUL, bytes that are no UTF-8, more
            characters than file systems allow, the home folder of nobody, or a URL.
    """
    text = os.fspath(value)
    if is_url(text):
        raise InputError(
            f"{text.partition('://')[0]}://...: is a URL, but a path was expected; only --out, "
            "--from, --mirror and the RUN of a command take URLs"
        )
    if "\0" in text:
        raise InputError(f"{text!r}: a path cannot hold the character NUL; give another one")
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise InputError(f"{text!r}: the path is not valid UTF-8; rename the file") from None
    if length >= 4096 or any(len(part.encode()) > 255 for part in text.split("/")):
        raise InputError(f"{text[:60]}...: the path is too long ({length} bytes); shorten it")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise InputError(
            f"{text} names the home folder of an unknown user; if it is meant so, write ./{text}"
        )
    return Path(expanded)


def is_url(value: object) -> bool:
    """Whether it names a place in a storage, and no file: s3://bucket/x."""
    return isinstance(value, str) and URL.match(value) is not None


def absolute(path: Path) -> Path:
    """`path` from the root and without links, whether or not something is there.

    Raises:
        InputError: the operating system will not look at it: links in a circle, no permission.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise InputError(f"{path}: {refusal(error)}; give another path") from None
    return Path(os.path.realpath(path))


def require_file(path: Path, what: str) -> None:
    """Refuse what is no regular file, which reading could wait for or never end.

    Raises:
        InputError: nothing is there, or a folder, a pipe or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the path of {what}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {refusal(error)}; expected {what}") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: is {_kind(mode)}; expected {what}")


def read_text(path: Path, what: str, *, limit: int = TEXT_BYTES) -> str:
    """A small text file in UTF-8; never waits for a pipe and never reads a device.

    Raises:
        FileNotFoundError: nothing is there.
        InputError: it is no regular file, cannot be read, is larger than `limit` bytes, or holds
            something else than UTF-8; `what` names what was expected of it.
    """
    try:
        # A pipe without a writer would make `open` wait.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {refusal(error)}; expected {what}") from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)  # `fdopen` would refuse a folder in words of its own
        raise InputError(f"{path}: is {_kind(mode)}; expected {what}")
    with os.fdopen(handle, "rb") as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise InputError(f"{path}: {refusal(error)}; expected {what}") from None
    if len(content) > limit:
        raise InputError(f"{path}: larger than {limit} bytes, so it is not {what}")
    try:
        return content.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not valid UTF-8 at byte {error.start}; save it as UTF-8, expected {what}"
        ) from None


def read_json(path: Path, what: str) -> Any:
    """A JSON file of ours, as it was written.

    Raises:
        FileNotFoundError: nothing is there.
        InputError: as `read_text`, or it is no JSON; the message ends with the reason.
    """
    text = read_text(path, what, limit=JSON_BYTES)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected {what}, which is JSON, but found {error}") from None


def refusal(error: OSError | ValueError) -> str:
    """Why the operating system did not do it, in words."""
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "its links go in a circle"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return str(error)


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"


def shortened(text: str) -> str:
    """At most 80 characters of `text`, all of them printable."""
    text = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
    return printable(text)


def printable(text: str) -> str:
    """`text` with what a terminal would obey, or not show, spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
