"""How many workers and replicas a live run has, by its numbers or on request, and what it tells."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from common.errors import InputError
from deploy.backend.crew import Crew
from deploy.backend.role import ROLLOUT, limits_of
from deploy.backend.scaler import Scaler
from deploy.backend.supervisor import Supervisor
from deploy.config import RunConfig
from deploy.console.faults import GO_ON
from deploy.control.live import LiveRun
from deploy.control.rendezvous import Answer, Request
from deploy.load import LoadMeter
from deploy.stages.pace import WorkerPace
from deploy.stages.reward_watch import RewardWatch

LOAD_STEPS = 20
"""Over so many steps the load is told."""


class Steering:
    """Hears every row of metrics, and is asked a few times per second."""

    def __init__(self, config: RunConfig, live: LiveRun, target: Console) -> None:
        self._config = config
        self._live = live
        self._target = target
        world_size = config.learner.world_size
        self._scaler = Scaler(limits_of(config), config.schedule(), world_size)
        self._recent, self._whole = LoadMeter(world_size), LoadMeter(world_size)
        self._pace = WorkerPace()
        self._rewards = RewardWatch(config.objective.rewarded(), config.rollout.group.size)
        self._has_begun = False
        self._fixed: set[str] = set()
        self._said: dict[str, Any] = {}

    def say(self, sentence: str) -> None:
        """Something happened that whoever follows the run, here or elsewhere, is to know."""
        self._target.print(sentence)
        self._live.note(sentence)

    def hear(self, row: Mapping[str, Any], crew: Supervisor | None) -> None:
        """A step's row, and who was there meanwhile."""
        counts = {ROLLOUT: 1} if crew is None else crew.counts
        workers = counts[ROLLOUT]
        for warning in (*self._pace.hear(row), *self._rewards.hear(row)):
            self.say(warning)
        if self._has_begun:  # before the first step everybody waits for the start
            self._scaler.hear(row, counts)
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

    def steer(self, crew: Supervisor | None) -> None:
        """Do what was asked for, or else what the numbers say."""
        for request in self._live.requests():
            self._live.answer(request, self._done(request, crew))
        if crew is None:
            return
        alive = {name: one.alive for name, one in crew.crews.items()}
        wish = self._scaler.decide(alive, is_coming=bool(crew.pending), fixed=self._fixed)
        if wish.change:
            names = crew.scale(wish.role, alive[wish.role] + wish.change)
            what = "is added" if wish.change > 0 else "retires"
            self.say(f"{' and '.join(names)} {what}: {wish.reason}")

    def tell(
        self, crew: Supervisor | None, seconds_left: float | None, deaths: Mapping[str, str]
    ) -> None:
        """Say how it goes to whoever looks."""
        self._said |= {"seconds_left": seconds_left, "deaths": dict(deaths)}
        if crew is not None:
            died = {name: why.removesuffix(f"; {GO_ON}") for name, why in crew.deaths.items()}
            self._said["deaths"] |= died
            self._said["crews"] = {name: self._crew(one) for name, one in crew.crews.items()}
        self._live.tell(**self._said)

    def facts(self) -> dict[str, Any]:
        """For distill.json: who was how busy, who held the others up, and who was slow."""
        load = self._whole.load()
        found = {} if load is None else load.as_dict()
        return found | ({"slow_workers": self._pace.slow} if self._pace.slow else {})

    def _crew(self, crew: Crew) -> dict[str, Any]:
        limits = crew.limits
        is_elastic = limits.is_elastic and crew.name not in self._fixed
        return {
            "there": [*crew.there],
            "pending": crew.pending,
            "retiring": crew.retiring,
            "least": limits.floor if is_elastic else limits.least,
            "most": limits.most,
            "how": "as the load asks" if is_elastic else "as somebody says",
        }

    def _done(self, request: Request, crew: Supervisor | None) -> Answer:
        role, count = next(iter(request.wanted.items()), ("", None))
        if request.command != "scale" or not (count == "auto" or type(count) is int):
            return Answer(f"{request.command}: no request that this run knows", is_refused=True)
        if crew is None:
            return Answer(
                "a run that was begun with --local has no workers of their own", is_refused=True
            )
        if role not in crew.crews:
            there = ", ".join(crew.crews)
            return Answer(
                f"{role}={count}, but this run has {there}; name one of them", is_refused=True
            )
        if count == "auto":
            return self._freed(crew.crews[role])
        try:
            before, _ = crew.crews[role].alive, crew.scale(role, count)
        except InputError as error:
            return Answer(str(error), is_refused=True)
        self._fixed.add(role)
        noun, pending = crew.crews[role].limits.noun, crew.crews[role].pending
        self.say(f"{noun}: {before} -> {count}, as somebody asked (varkd scale)")
        waiting = f"; {len(pending)} on their way" if pending else ""
        return Answer(f"{noun}: {before} -> {count}{waiting}")

    def _freed(self, crew: Crew) -> Answer:
        limits = crew.limits
        if not limits.is_elastic:
            field = "max_workers" if crew.name == ROLLOUT else "max_replicas"
            few = "min_workers" if crew.name == ROLLOUT else "replicas"
            return Answer(
                f"{crew.name}=auto, but {limits.section}.{field} is not set above "
                f"{limits.section}.{few}, so the number changes on request alone; give a number",
                is_refused=True,
            )
        self._fixed.discard(crew.name)
        return Answer(
            f"{limits.noun}: {crew.alive}, from now on {limits.floor} to {limits.most} as the "
            "load asks"
        )
