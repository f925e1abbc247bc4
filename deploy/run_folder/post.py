"""What is asked at a URL of the run that is copied there: carried to its folder, and its answers
back."""

import math
from contextlib import suppress
from pathlib import Path

from common.errors import InputError
from common.files.atomic import write_text
from deploy.run_folder.control_files import ANSWER, FOLDER, REQUEST, identifier_of
from deploy.run_folder.remote import TROUBLE, Remote, reason

ANSWER_SECONDS = 1.0


class Post:
    """Of one folder, for as long as it is copied."""

    def __init__(self, remote: Remote, root: Path) -> None:
        self._remote = remote
        self._here = root / FOLDER
        self._asked: set[str] = set()

    @property
    def pause(self) -> float:
        """Seconds after which there may be something to carry, if anybody waits for an answer."""
        return ANSWER_SECONDS if self._asked else math.inf

    def discard(self) -> None:
        """What was asked of an earlier run.

        Raises:
            InputError: the storage cannot be reached.
        """
        try:
            for name in self._remote.names(FOLDER):
                if name.endswith((REQUEST, ANSWER)):
                    self._remote.drop(name)
        except TROUBLE as error:
            raise InputError(f"{self._remote}: {reason(error)}") from None

    def carry(self) -> None:
        """
        Raises:
            OSError: the storage cannot be reached.
        """
        if not self._here.is_dir():  # nobody is there to answer
            return
        for name in self._remote.names(FOLDER):
            identifier = identifier_of(name.removeprefix(f"{FOLDER}/"), REQUEST)
            if identifier is not None and (text := self._taken(name)) is not None:
                write_text(self._here / f"{identifier}{REQUEST}", text)
                self._asked.add(identifier)
        for identifier in sorted(self._asked):
            answer = self._here / f"{identifier}{ANSWER}"
            if answer.is_file():
                self._remote.put_text(answer.read_text(encoding="utf-8"), f"{FOLDER}/{answer.name}")
                answer.unlink(missing_ok=True)
                self._asked.discard(identifier)

    def _taken(self, name: str) -> str | None:
        """A request, which is there no more; None for what is none, or was withdrawn."""
        text = None
        with suppress(ValueError):
            text = self._remote.text(name)
        with suppress(FileNotFoundError):
            self._remote.drop(name)
        return text
