"""Who of a node's workers adds up a version's bytes, which all of them read in the same memory."""

import time
from threading import Condition
from typing import NamedTuple

LASTING_SECONDS = 30.0
"""Later the node may have let go of the bytes and fetched them again."""


class Copy(NamedTuple):
    """An object of the store where it lies in the memory of a node."""

    node: str
    object: str


class NodeChecks:
    """Thread-safe."""

    def __init__(self, lasting: float = LASTING_SECONDS) -> None:
        self._lasting = lasting
        self._changed = Condition()
        self._begun: dict[Copy, float] = {}
        self._found: dict[Copy, bool] = {}

    def is_first(self, copy: Copy) -> bool:
        """Whether nobody was told so of that copy lately: who was is to check it, and to say what
        he found."""
        with self._changed:
            now = time.monotonic()
            for old in [old for old, at in self._begun.items() if now - at >= self._lasting]:
                del self._begun[old]
                self._found.pop(old, None)
            is_new = copy not in self._begun
            self._begun.setdefault(copy, now)
            return is_new

    def found(self, copy: Copy, is_whole: bool) -> None:
        """What who was the first has to say."""
        with self._changed:
            if copy in self._begun:
                self._found[copy] = is_whole
                self._changed.notify_all()

    def is_whole(self, copy: Copy, timeout: float) -> bool:
        """Whether somebody found it whole, waiting up to `timeout` seconds for whoever is at it: he
        may be gone."""
        with self._changed:
            self._changed.wait_for(lambda: copy in self._found or copy not in self._begun, timeout)
            return self._found.get(copy, False)
