"""Who of a run's actors is there: dead processes, and those that live and never answer.

A process that was stopped, or hangs, keeps everybody waiting who asked it something, and Ray waits
with them. So every actor is asked again and again, in a thread of the driver, and who is silent for
too long is ended: from then on it is as dead as any other, for which the run has its ways.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from common.background import Background
from common.errors import RunFailed
from deploy.backend.actor_proxy import died
from deploy.backend.head_watch import give_up, require_head
from deploy.console.faults import GO_ON

MOST_SECONDS = 10.0
"""Between two questions at most: a round of them costs milliseconds."""
LAST_LOOK_SECONDS = 2.0
UNHEARD_SECONDS = 10.0
ESSENTIAL = ("ledger", "buffer", "weights")
"""Without them nobody goes on; others have replicas, or others take their places."""


class Heartbeat(Background):
    """Asks in the background while the block lasts."""

    def __init__(
        self,
        actors: Callable[[], Mapping[Any, str]],
        patience: Callable[[], float],
        lost: dict[str, str] | None = None,
        *,
        unheard: float = UNHEARD_SECONDS,
        give_up: Callable[[str], object] = give_up,
    ) -> None:
        """`actors` that are to be there now, with their names; `patience` in seconds, as of now;
        into `lost` goes a sentence about each that is gone, by its name, in the order in which they
        were found. An actor that is still being made has no heartbeat yet and is waited for. So
        many seconds may a loss remain `unheard` by those who wait."""
        super().__init__("heartbeat")
        self._actors = actors
        self._patience = patience
        self._asked: dict[Any, tuple[Any, float]] = {}
        self._answered: set[Any] = set()
        self._look = threading.Lock()
        self._unheard = unheard
        self._give_up = give_up
        self._lost_since: dict[str, float] = {}
        self.lost = {} if lost is None else lost

    def check(self) -> None:
        """Called again and again by whoever runs the command.

        Raises:
            RunFailed: the cluster's head is gone, or somebody without whom nobody goes on, and
                those who wait for him have not heard of it in time: where his whole machine
                hangs nobody tells them. The command then has a time to end in order.
        """
        require_head()
        for name in ESSENTIAL:
            if name in self.lost:
                since = self._lost_since.setdefault(name, time.monotonic())
                if time.monotonic() - since >= self._unheard:
                    self._give_up(self.lost[name])
                    raise RunFailed(self.lost[name])

    def blamed(self, failure: RunFailed) -> RunFailed:
        """The failure, by its cause: others hear of a process that is gone by what it did not do
        for them, and not why."""
        try:
            require_head(now=True)
        except RunFailed as error:
            return error
        with suppress(RayError):
            self._round(LAST_LOOK_SECONDS)
        for name, why in self.lost.items():
            is_told = f"the process of {name} died" in str(failure)
            if name in ESSENTIAL or (is_told and f"the process of {name} died" not in why):
                return RunFailed(why)
        return failure

    def _work(self) -> None:
        while not self._ended.is_set():
            pause = min(MOST_SECONDS, self._patience() / 4)
            began = time.monotonic()
            with suppress(RayError):  # the cluster itself: whoever works on it says so
                self._round(pause)
            self._ended.wait(max(0.0, pause - (time.monotonic() - began)))

    def _round(self, seconds: float) -> None:
        """Ask everybody who owes no answer, and wait up to `seconds` for those who do."""
        with self._look:
            actors = self._actors()
            for actor in actors.keys() - self._asked.keys():
                self._asked[actor] = actor.ready.remote(), time.monotonic()
            for actor in self._asked.keys() - actors.keys():  # was let go
                del self._asked[actor]
            if not self._asked:
                return
            waiting = [reference for reference, _ in self._asked.values()]
            there = set(ray.wait(waiting, num_returns=len(waiting), timeout=seconds)[0])
            for actor, (reference, since) in list(self._asked.items()):
                if reference in there:
                    del self._asked[actor]
                    self._heard(actor, actors[actor], reference)
                elif actor in self._answered:
                    self._missed(actor, actors[actor], time.monotonic() - since)

    def _heard(self, actor: Any, name: str, reference: Any) -> None:
        try:
            ray.get(reference)
        except RayActorError as error:
            if actor in self._actors():  # nobody let it go meanwhile
                self.lost.setdefault(name, died(name, error))
        except RayError:  # no answer of its own: it is asked again
            return
        else:
            self._answered.add(actor)

    def _missed(self, actor: Any, name: str, seconds: float) -> None:
        if seconds < self._patience():
            return
        self.lost.setdefault(
            name,
            f"{name} has not answered for {seconds:.0f} s (half of learner.stall_seconds), "
            f"although its process lives: it hangs, or was stopped, or its machine is out of "
            f"reach; it was ended; {GO_ON}",
        )
        ray.kill(actor)
