"""A run that lives at a URL: what it is doing, by what was copied there, and requests to it, which
whoever copies carries to it (deploy/run_folder/post.py)."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common.errors import InputError
from deploy.control.client import Seen
from deploy.control.rendezvous import Answer, Rendezvous, asked
from deploy.run_folder.control_files import ANSWER, FOLDER, REQUEST, STATUS, new_identifier
from deploy.run_folder.fetching import SILENT_SECONDS, known
from deploy.run_folder.manifest import NAME, Writer
from deploy.run_folder.records import read_facts
from deploy.run_folder.remote import TROUBLE, Remote, reason

FACTS = "distill.json"


class RunAtUrl:
    """What is there may be half a minute old, and a request is found as late."""

    def __init__(self, url: str, *, pause: float = 5.0, patience: float = 300.0) -> None:
        """
        Raises:
            InputError: the storage cannot be reached.
        """
        self.pause, self.patience = pause, patience
        self._remote = Remote(url, "")
        self._seen: tuple[float, Seen] | None = None

    def look(self) -> Seen:
        """As it was seen last where the storage is away for less than `patience`: who waits for a
        run goes on waiting.

        Raises:
            InputError: the storage cannot be reached, or nothing is there.
        """
        try:
            self._seen = time.monotonic(), self._look()
        except InputError:
            if self._seen is None or time.monotonic() - self._seen[0] > self.patience:
                raise
        return self._seen[1]

    def _look(self) -> Seen:
        remote = self._remote
        manifest = known(remote)
        if manifest is None:
            raise InputError(
                f"{remote}: nothing is there; give the URL of a run, as --out named it"
            )
        with TemporaryDirectory(prefix="varkd-") as folder:
            root, facts = Path(folder), {}
            for name in (f"{FOLDER}/{STATUS}", FACTS):
                try:
                    remote.get(name, root / name)
                except FileNotFoundError:
                    (root / name).unlink(missing_ok=True)
                except TROUBLE as error:
                    raise InputError(f"{remote}: {name}: {reason(error)}") from None
            status = Rendezvous(root).status()
            with suppress(InputError):
                facts = read_facts(root / FACTS, "distill")
        live = _live(remote, manifest.writer)
        return Seen(remote.url, live, status, facts, manifest.has_tokens)

    def ask(self, command: str, wanted: Mapping[str, Any]) -> str:
        """
        Raises:
            InputError: nothing can be stored there.
        """
        identifier = new_identifier()
        try:
            request = json.dumps(asked(command, wanted))
            self._remote.put_text(request, _name(identifier, REQUEST))
        except TROUBLE as error:
            raise InputError(
                f"{self._remote}: the request cannot be stored: {reason(error)}; give credentials "
                "that may"
            ) from None
        return identifier

    def answered(self, identifier: str) -> Answer | None:
        """The answer, which is taken away; None while there is none, or the storage is away."""
        name = _name(identifier, ANSWER)
        with suppress(TypeError, *TROUBLE):
            if (text := self._remote.text(name)) is not None:
                answer = Answer(**json.loads(text))
                self._remote.drop(name)
                return answer
        return None

    def withdraw(self, identifier: str) -> None:
        for ending in (REQUEST, ANSWER):
            with suppress(*TROUBLE):
                self._remote.drop(_name(identifier, ending))


def _name(identifier: str, ending: str) -> str:
    return f"{FOLDER}/{identifier}{ending}"


def _live(remote: Remote, writer: Writer) -> dict[str, Any] | None:
    """Who is at work there, by whether anything is copied still."""
    if not writer.is_open or writer.has_died or remote.age(NAME) > SILENT_SECONDS:
        return None
    return {"command": writer.command, "pid": writer.pid, "host": writer.host}
