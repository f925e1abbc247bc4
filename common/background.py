"""A thread that lasts as long as a block."""

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import ClassVar, Self


class Background(ABC):
    """Works beside the block, and has ended when the block has."""

    is_awaited: ClassVar[bool] = True
    """Whether the block waits for its end: not for one that what it looks at may hold up."""

    def __init__(self, name: str) -> None:
        """`name` is the thread's."""
        self._ended = threading.Event()
        """Set when the block ends."""
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self.is_awaited:
            self._thread.join()
        self._finish(error)

    @abstractmethod
    def _work(self) -> None:
        """In the thread, until `_ended` is set."""

    def _finish(self, error: BaseException | None) -> None:
        """What is left to do after that; `error` is that of the block."""
        return
