"""Rows that the learner reported and that may not be stored yet: a snapshot takes them along."""

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from common.errors import RunFailed, ServiceDied
from common.exchange.metrics import MetricsMailbox

MOST = 1000
"""Rows that are remembered for a mailbox that dies: its reader empties it every second or so."""


class ReportedRows:
    """A `MetricsMailbox` in front of one that may die, or lose its way to whoever reads it, before
    the learner's last snapshot: a run that is gone on with has those rows all the same."""

    def __init__(self, mailbox: MetricsMailbox) -> None:
        self._mailbox = mailbox
        self._since_asked: deque[dict[str, Any]] = deque(maxlen=MOST)

    def post(self, row: Mapping[str, Any]) -> None:
        """Hand a row over; a run goes on without its curves."""
        self._since_asked.append(dict(row))
        with suppress(ServiceDied):
            self._mailbox.post(row)

    def pending(self) -> list[dict[str, Any]]:
        """What the mailbox says; without it, what it said last and all that was posted since. Some
        of those are stored: whoever writes rows begins again with the first of them."""
        with suppress(RunFailed):
            found = self._mailbox.pending()
            self._since_asked = deque(found, maxlen=MOST)
        return list(self._since_asked)
