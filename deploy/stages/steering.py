"""How many workers a live run has, by its numbers or on request, and what it says of itself."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from common.errors import InputError
from deploy.backend.scaler import Scaler
from deploy.backend.supervisor import WorkerSupervisor
from deploy.config import RunConfig
from deploy.console.faults import GO_ON
from deploy.control.live import LiveRun
from deploy.control.rendezvous import Answer, Request
from deploy.load import LoadMeter

LOAD_STEPS = 20
"""Over so many steps the load is told."""


class Steering:
    """Hears every row of metrics, and is asked a few times per second."""

    def __init__(self, config: RunConfig, live: LiveRun, target: Console) -> None:
        self._config = config
        self._live = live
        self._target = target
        world_size = config.learner.world_size
        self._scaler = Scaler(config.rollout, config.schedule(), world_size)
        self._recent, self._whole = LoadMeter(world_size), LoadMeter(world_size)
        self._has_begun = self._is_fixed = False
        self._said: dict[str, Any] = {}

    def say(self, sentence: str) -> None:
        """Something happened that whoever follows the run, here or elsewhere, is to know."""
        self._target.print(sentence)
        self._live.note(sentence)

    def hear(self, row: Mapping[str, Any], crew: WorkerSupervisor | None) -> None:
        """A step's row, and who was there meanwhile."""
        workers = 1 if crew is None else crew.alive - len(crew.pending)
        if self._has_begun:  # before the first step everybody waits for the start
            self._scaler.hear(row, workers)
            self._whole.add(row, workers)
            self._recent.add(row, workers)
        else:
            self._has_begun = True
            self._live.begin()
        names = {"step": "step", "images_per_second": "images_per_second"}
        names |= {"buffer_fill": "buffer/fill"}
        self._said |= {name: row[key] for name, key in names.items() if key in row}
        load = self._recent.load()
        if load is not None and (self._recent.steps >= LOAD_STEPS or "load" not in self._said):
            self._said["load"] = load.sentence()
            self._recent.clear()

    def steer(self, crew: WorkerSupervisor | None) -> None:
        """Do what was asked for, or else what the numbers say."""
        for request in self._live.requests():
            self._live.answer(request, self._done(request, crew))
        if crew is None or self._is_fixed:
            return
        decision = self._scaler.decide(crew.alive, len(crew.pending))
        if decision.change:
            names = crew.scale(crew.alive + decision.change)
            what = "is added" if decision.change > 0 else "retires"
            self.say(f"{' and '.join(names)} {what}: {decision.reason}")

    def tell(
        self, crew: WorkerSupervisor | None, seconds_left: float | None, deaths: Mapping[str, str]
    ) -> None:
        """Say how it goes to whoever looks."""
        self._said |= {"seconds_left": seconds_left, "deaths": dict(deaths)}
        if crew is not None:
            died = {name: why.removesuffix(f"; {GO_ON}") for name, why in crew.deaths.items()}
            self._said["deaths"] |= died
            self._said["workers"] = self._workers(crew)
        self._live.tell(**self._said)

    def facts(self) -> dict[str, Any]:
        """For distill.json: who was how busy, and who held the others up."""
        load = self._whole.load()
        return {} if load is None else load.as_dict()

    def _workers(self, crew: WorkerSupervisor) -> dict[str, Any]:
        away = {*crew.pending, *crew.retiring}
        is_elastic = self._config.rollout.is_elastic and not self._is_fixed
        return {
            "there": [name for name in crew.workers if name not in away],
            "pending": crew.pending,
            "retiring": crew.retiring,
            "least": self._config.rollout.min_workers,
            "most": self._config.rollout.most_workers,
            "how": "as the load asks" if is_elastic else "as somebody says",
        }

    def _done(self, request: Request, crew: WorkerSupervisor | None) -> Answer:
        count = request.wanted.get("rollout")
        if request.command != "scale" or not (count == "auto" or type(count) is int):
            return Answer(f"{request.command}: no request that this run knows", is_refused=True)
        if crew is None:
            return Answer(
                "a run that was begun with --local has no workers of their own", is_refused=True
            )
        if count == "auto":
            return self._freed(crew)
        try:
            before, _ = crew.alive, crew.scale(count)
        except InputError as error:
            return Answer(str(error), is_refused=True)
        self._is_fixed = True
        self.say(f"rollout workers: {before} -> {count}, as somebody asked (varkd scale)")
        waiting = f"; {len(crew.pending)} on their way" if crew.pending else ""
        return Answer(f"rollout workers: {before} -> {count}{waiting}")

    def _freed(self, crew: WorkerSupervisor) -> Answer:
        rollout = self._config.rollout
        if not rollout.is_elastic:
            return Answer(
                "rollout=auto, but rollout.max_workers is not set above rollout.min_workers, so "
                "the number changes on request alone; give a number",
                is_refused=True,
            )
        self._is_fixed = False
        return Answer(
            f"rollout workers: {crew.alive}, from now on {rollout.min_workers} to "
            f"{rollout.most_workers} as the load asks"
        )
