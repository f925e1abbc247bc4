"""The other side of RUN/control: what a run is doing, and requests to it."""

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any, Protocol

from common.errors import InputError, RunFailed
from common.files.atomic import is_alive
from common.files.paths import printable
from deploy.control.rendezvous import Answer, Rendezvous
from deploy.run_folder.lock import holder
from deploy.run_folder.records import read_facts

POLL_SECONDS = 0.1
ANSWER_SECONDS = 60.0
"""For a driver that is busy, and folders that another machine sees late."""
BEATS_SECONDS = 4.0
SKEW_SECONDS = 600.0
"""How far the clocks of two machines may differ."""
TRACES = ("distill.json", "metrics.jsonl", "snapshots", "config.toml", "config.resolved.toml")


@dataclass(frozen=True)
class Seen:
    """What a folder says of its run."""

    root: Path | str
    """The folder, or its URL."""
    live: dict[str, Any] | None
    """Who is at work in it (`command`, `pid`, `host`, `since`), if anybody."""
    status: dict[str, Any] | None
    """What the run said last of itself."""
    facts: dict[str, Any] = field(default_factory=dict)
    """distill.json of a run that ended in order."""
    is_whole: bool = True
    """Whether all is there that a run goes on with; `--mirror` copies less."""

    @property
    def is_live(self) -> bool:
        """Whether a distillation is at work, alone or in another command, as in a smoke run."""
        if self.live is None:
            return False
        if self.live.get("command", "distill") == "distill":
            return True
        status = self.status or {}
        return status.get("pid") == self.live.get("pid") and status.get("state") != "ended"

    @property
    def has_failed(self) -> bool:
        """It neither goes on nor ended as it or somebody wanted."""
        if self.is_live or self.status is None:
            return False
        return self.status.get("state") != "ended" or bool(self.status.get("failed"))


class Place(Protocol):
    """Where a run is met."""

    pause: float
    """Seconds between two looks."""
    patience: float
    """Seconds in which a run that is well has answered."""

    def look(self) -> Seen:
        """What the run is doing; `InputError` where no run was ever begun."""
        ...

    def ask(self, command: str, wanted: Mapping[str, Any]) -> str:
        """Leave a request; the identifier of its answer."""
        ...

    def answered(self, identifier: str) -> Answer | None:
        """The answer, which is taken away; None while there is none."""
        ...

    def withdraw(self, identifier: str) -> None:
        """Nobody waits for an answer any more."""
        ...


class RunFolder(Rendezvous):
    """A run that lives in a folder which this machine sees."""

    pause = POLL_SECONDS
    patience = ANSWER_SECONDS

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._root = root

    def look(self) -> Seen:
        """See the function."""
        return look(self._root)


def look(root: Path) -> Seen:
    """Look into a run folder; takes seconds where only signs of life tell.

    Raises:
        InputError: it is not there, or no run was ever begun in it.
    """
    if not root.is_dir():
        what = "is no folder" if root.exists() else "no such folder"
        raise InputError(f"{root}: {what}; give the run folder that `varkd distill` names")
    status, live = Rendezvous(root).status(), holder(root)
    if live is None and status is not None and _beats(root, status):
        live = {"command": "distill", "pid": status.get("pid"), "host": status.get("host")}
    if live is None:  # the last word, if it ended meanwhile
        status = Rendezvous(root).status()
    if live is None and status is None and not any((root / name).exists() for name in TRACES):
        raise InputError(
            f"{root}: holds no run; give the run folder that `varkd distill` names with --out"
        )
    facts: dict[str, Any] = {}
    with suppress(InputError):
        facts = read_facts(root / "distill.json", "distill")
    return Seen(root, live, status, facts)


def require_live(place: Place) -> Seen:
    """
    Raises:
        InputError: as `look`; or no run is live there.
    """
    seen = place.look()
    root = seen.root
    if seen.is_live:
        return seen
    if seen.live is not None:
        raise InputError(
            f"{root}: `varkd {seen.live['command']}` is at work here, which takes no requests; "
            "wait for it"
        )
    is_done = seen.status is not None and seen.status.get("step") == seen.status.get("steps")
    begin = f"`{going_on(seen)}` goes on"
    raise InputError(f"{root}: {ending_of(seen)}; {'there is nothing to do' if is_done else begin}")


def going_on(seen: Seen) -> str:
    """The command that does."""
    root = quote(str(seen.root)) if seen.is_whole else "FOLDER"
    of = "" if seen.is_whole else " # of which this is the copy"
    return f"varkd distill {root} --resume{of}"


def ending_of(seen: Seen) -> str:
    """Since when a run is not running any more, and why."""
    if seen.status is None:
        steps = f", {seen.facts['steps']} steps were done" if "steps" in seen.facts else ""
        return f"no run is live here{steps}"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seen.status["time"]))
    if seen.status.get("state") == "ended":
        cause = printable(str(seen.status.get("cause") or "all steps are done"))
        return f"not running since {since}: {cause}"
    who = f"process {seen.status.get('pid')} on {seen.status.get('host')}"
    return f"not running since {since}: {who} ended without a word, or its machine did"


def ask(place: Place, command: str, wanted: Mapping[str, Any] | None = None) -> str:
    """What a live run answers.

    Raises:
        InputError: it refuses.
        RunFailed: it does not answer, or ended meanwhile.
    """
    identifier = place.ask(command, wanted or {})
    try:
        answer = _awaited(place, identifier)
    except BaseException:
        place.withdraw(identifier)
        raise
    if answer.is_refused:
        raise InputError(answer.said)
    return answer.said


def _awaited(place: Place, identifier: str) -> Answer:
    deadline = time.monotonic() + place.patience
    while True:
        seen = place.look()
        if (answer := place.answered(identifier)) is not None:
            return replace(answer, said=printable(str(answer.said)))
        if not seen.is_live:
            raise RunFailed(f"{seen.root}: {ending_of(seen)}")
        if time.monotonic() > deadline:
            raise RunFailed(f"{seen.root}: no answer for {place.patience:g} s; {_advice(seen)}")
        time.sleep(place.pause)


def wait_ended(place: Place, while_waiting: Callable[[Seen], object]) -> Seen:
    """Return once nobody is at work there any more."""
    while (seen := place.look()).is_live:
        while_waiting(seen)
        time.sleep(place.pause)
    return seen


def _advice(seen: Seen) -> str:
    status, live = seen.status or {}, seen.live or {}
    if status.get("state") == "starting":
        return f"the run is still starting ({status.get('line')}); ask again later"
    who = f"process {live.get('pid')} on {live.get('host')}"
    return f"{who} may hang: send it SIGTERM twice, or SIGKILL, and go on with --resume"


def _beats(root: Path, status: Mapping[str, Any]) -> bool:
    """Whether a run whose lock is not seen gives signs of life: a cell of a study has none, and
    there are file systems on which machines do not see one another's."""
    if status.get("state") == "ended" or abs(time.time() - status["time"]) > SKEW_SECONDS:
        return False
    pid = status.get("pid")
    is_here = status.get("host") == socket.gethostname()
    if is_here and not (isinstance(pid, int) and is_alive(pid)):
        return False
    deadline = time.monotonic() + BEATS_SECONDS
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        now = Rendezvous(root).status()
        if now is not None and now.get("beat") != status.get("beat"):
            return now.get("state") != "ended"
    return False
