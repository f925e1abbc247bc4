"""The list of what lies at a URL: by it a copy is known to be whole, and whose it is.

Every file there is replaced whole, but not all at the same moment. So the list says what a file may
be: as it was, and, while it is replaced, as it will be. What is neither was damaged.
"""

import json
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from common.errors import InputError
from common.files.atomic import is_alive
from common.files.sealed import Part
from deploy.run_folder.remote import Remote

NAME = "varkd-files.json"
FORMAT = "varkd-files-1"


@dataclass(frozen=True, slots=True)
class Writer:
    """Who copies, or copied last."""

    folder: str
    """A number of the folder that it was copied from, drawn when it first was."""
    command: str
    pid: int
    host: str
    is_open: bool = True
    """Whether the command goes on."""

    @property
    def has_died(self) -> bool:
        """Whether that is seen, for a process of this machine."""
        return self.host == socket.gethostname() and not is_alive(self.pid)


@dataclass(frozen=True)
class Manifest:
    """Names are paths with slashes."""

    writer: Writer
    is_whole: bool = False
    """Whether everything of the folder was here once."""
    files: Mapping[str, Part] = field(default_factory=dict)
    changing: Mapping[str, Part | None] = field(default_factory=dict)
    """What is being replaced, or removed, right now."""

    def names(self) -> list[str]:
        return sorted(self.files.keys() | self.changing.keys())

    @property
    def has_tokens(self) -> bool:
        """As a run needs them; `--mirror` copies none."""
        return any(name.startswith("tokens/") for name in self.names())

    def allowed(self, name: str) -> list[Part | None]:
        """What may be found under a name; None is nothing."""
        found: list[Part | None] = [self.files.get(name)]
        return [*found, self.changing[name]] if name in self.changing else found

    def closed(self) -> "Manifest":
        return replace(self, writer=replace(self.writer, is_open=False))

    def store(self, remote: Remote) -> None:
        """
        Raises:
            OSError: it cannot be stored.
        """
        parts = {name: [part.bytes, part.blake2b] for name, part in self.files.items()}
        changing = {n: part and [part.bytes, part.blake2b] for n, part in self.changing.items()}
        found = {"format": FORMAT, "writer": asdict(self.writer), "whole": self.is_whole}
        remote.put_text(json.dumps({**found, "files": parts, "changing": changing}), NAME)


def read_manifest(remote: Remote) -> Manifest | None:
    """None where there is none.

    Raises:
        InputError: it is no list of ours.
        OSError: the storage cannot be reached.
    """
    text = remote.text(NAME)
    if text is None:
        return None
    try:
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise ValueError(found["format"])
        files = {name: _part(name, value) for name, value in found["files"].items()}
        changing = {n: value and _part(n, value) for n, value in found["changing"].items()}
        return Manifest(_writer(found["writer"]), bool(found["whole"]), files, changing)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(
            f"{remote}: {NAME} is no list of a run's files of ours; it was cut off or is of "
            "another version; choose another URL, or copy the run anew"
        ) from None


def _part(name: str, value: Any) -> Part:
    size, digest = value
    if not _is_below(name) or type(size) is not int or type(digest) is not str:
        raise ValueError(name)
    return Part(name, size, digest)


def _is_below(name: str) -> bool:
    """Whether a name that came from elsewhere stays in the folder."""
    parts = PurePosixPath(name).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and "\0" not in name


def _writer(found: dict[str, Any]) -> Writer:
    writer = Writer(**found)
    texts = (writer.folder, writer.command, writer.host)
    if not all(isinstance(text, str) for text in texts) or type(writer.pid) is not int:
        raise TypeError(found)
    return writer
