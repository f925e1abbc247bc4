"""What a run that is copied to a URL says of itself, and what is asked of it there: carried beside
the copies, which may take long."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from common.background import Background
from common.errors import InputError
from common.files.atomic import write_text
from deploy.run_folder.control_files import ANSWER, CLOCK, FOLDER, REQUEST, STATUS, identifier_of
from deploy.run_folder.remote import TROUBLE, Remote, reason, tried

ANSWER_SECONDS = 1.0
"""While somebody waits for an answer, or for a first word."""


class Post(Background):
    """Of one folder, for as long as it is copied."""

    def __init__(
        self, remote: Remote, root: Path, is_ours: Callable[[], bool], pause: float
    ) -> None:
        """`is_ours` tells whether what is asked there is asked of this run; `pause` are seconds
        between two looks."""
        super().__init__("post")
        self._remote = remote
        self._here = root / FOLDER
        self._is_ours = is_ours
        self._pause = pause
        self._asked: set[str] = set()
        self._first: int | None = None
        self._told: int | None = None
        """When what was carried last was said (in ns)."""

    def has_news(self) -> bool:
        """Whether the run said anything since it was asked to discard what is there."""
        return self._said_at() not in (None, self._first)

    def discard(self) -> None:
        """What was asked of an earlier run, and said by one.

        Raises:
            InputError: the storage cannot be reached.
        """
        self._first = self._said_at()
        try:
            for name in self._remote.names(FOLDER):
                if name.endswith((REQUEST, ANSWER, CLOCK)):
                    self._remote.drop(name)
        except TROUBLE as error:
            raise InputError(f"{self._remote}: {reason(error)}") from None

    def carry(self) -> None:
        """Both ways, where the place is this run's and anybody is here to answer.

        Raises:
            OSError: the storage cannot be reached, or somebody else is at work there.
        """
        if not self._here.is_dir() or not self._is_ours():
            return
        if (said_at := self._said_at()) not in (None, self._told):
            status = (self._here / STATUS).read_text(encoding="utf-8")
            self._remote.put_text(status, f"{FOLDER}/{STATUS}")
            self._told = said_at
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

    def _work(self) -> None:
        soon = min(self._pause, ANSWER_SECONDS)
        while not self._ended.wait(soon if self._asked or self._told is None else self._pause):
            tried(self.carry)  # who copies says what is wrong with the storage

    def _said_at(self) -> int | None:
        with suppress(OSError):
            return (self._here / STATUS).stat().st_mtime_ns
        return None

    def _taken(self, name: str) -> str | None:
        """A request, which is there no more; None for what is none, or was withdrawn."""
        text = None
        with suppress(ValueError):
            text = self._remote.text(name)
        with suppress(FileNotFoundError):
            self._remote.drop(name)
        return text
