"""RUN/control: where a live run and those who ask something of it meet.

The run keeps status.json; whoever asks writes <id>.request.json and finds <id>.answer.json. Small
JSON files, written beside their name and renamed: whoever sees the folder, from whatever machine,
needs no port, and who may write there may stop the run.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files.atomic import unwritable
from common.files.paths import read_json
from deploy.run_folder.control_files import (
    ANSWER,
    FOLDER,
    REQUEST,
    STATUS,
    identifier_of,
    new_identifier,
)

MOST_TIME = 1e11
"""Seconds since 1970 that are still a date."""


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks of a run."""

    identifier: str
    command: str
    """"stop" or "scale"."""
    wanted: dict[str, Any] = field(default_factory=dict)
    """For "scale": how many of what; a number or "auto" by role."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request."""

    said: str
    is_refused: bool = False
    """`said` is then what an `InputError` says."""


def asked(command: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A request as it is written."""
    return {"command": command, "wanted": dict(wanted)}


class Rendezvous:
    """The files of one run folder, for both sides."""

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER

    def put_status(self, status: Mapping[str, Any]) -> None:
        """
        Raises:
            OSError: there is no room, or the storage is away.
        """
        self._write(STATUS, status)

    def status(self) -> dict[str, Any] | None:
        """What the last run in the folder said last; None where there was none.

        Raises:
            InputError: the file is no status of a run.
        """
        path = self.folder / STATUS
        try:
            found = read_json(path, "the status of a run")
        except FileNotFoundError:
            return None
        at = found.get("time") if isinstance(found, dict) else None
        if not isinstance(at, int | float) or not 0 <= at < MOST_TIME:
            raise InputError(f"{path}: is no status of a run; remove it")
        return found

    def ask(self, command: str, wanted: Mapping[str, Any]) -> str:
        """Leave a request; the identifier of its answer.

        Raises:
            InputError: the folder cannot be written.
        """
        identifier = new_identifier()
        try:
            self._write(f"{identifier}{REQUEST}", asked(command, wanted))
        except OSError as error:
            raise unwritable(self.folder, error) from error
        return identifier

    def answered(self, identifier: str) -> Answer | None:
        """The answer, which is taken away; None while there is none."""
        path = self.folder / f"{identifier}{ANSWER}"
        with suppress(FileNotFoundError, TypeError):
            answer = Answer(**read_json(path, "an answer of a run"))
            path.unlink(missing_ok=True)
            return answer
        return None

    def withdraw(self, identifier: str) -> None:
        """Nobody waits for an answer any more."""
        for ending in (REQUEST, ANSWER):
            with suppress(OSError):
                (self.folder / f"{identifier}{ending}").unlink()

    def requests(self) -> list[Request]:
        """Those that came since the last call, the oldest first; files of another kind are left."""
        found = []
        with suppress(OSError):  # the storage is away: it may come back
            paths = sorted(self.folder.glob(f"*{REQUEST}"), key=lambda path: path.stat().st_mtime)
            for path in paths:
                identifier = identifier_of(path.name, REQUEST)
                if identifier is not None and (request := _read(path, identifier)):
                    found.append(request)
                    path.unlink(missing_ok=True)
        return found

    def answer(self, request: Request, answer: Answer) -> None:
        with suppress(OSError):  # whoever asked hears nothing, and says so
            self._write(f"{request.identifier}{ANSWER}", asdict(answer))

    def clear(self) -> None:
        """No request and no answer is of the run that begins or ends now."""
        for ending in (REQUEST, ANSWER, ".tmp"):
            for path in self.folder.glob(f"*{ending}"):
                path.unlink(missing_ok=True)

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        """At once or not at all; not flushed to the disk, for it is about now."""
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        try:
            temporary.write_text(json.dumps(value), encoding="utf-8")
            temporary.replace(self.folder / name)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def _read(path: Path, identifier: str) -> Request | None:
    """None for what is no request: nobody waits for its answer."""
    try:
        found = read_json(path, "a request")
        command, wanted = found["command"], found["wanted"]
    except (InputError, LookupError, TypeError):
        path.unlink(missing_ok=True)
        return None
    is_request = isinstance(command, str) and isinstance(wanted, dict)
    return Request(identifier, command, wanted) if is_request else None
