"""A run's status in lines for people."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from common.files.paths import printable
from deploy.console.progress import clock
from deploy.control.client import Seen, ending_of

MOST_NUMBER = 1e12
MOST_EVENTS = 3


def lines(seen: Seen, now: float) -> list[str]:
    """One line per fact; what the run has not said, or said otherwise, is left out."""
    found = [("run", str(seen.root)), *_facts(seen, now)]
    width = max(len(name) for name, _ in found) + 2
    # Whoever may write into the folder of a run is not to write to the terminal of who looks.
    return [printable(f"{name:<{width}}{' '.join(text.split())}") for name, text in found]


def one_line(seen: Seen) -> str:
    """For logs: what a terminal would redraw."""
    return "  ".join(lines(seen, time.time())[1:3])


def _facts(seen: Seen, now: float) -> Iterator[tuple[str, str]]:
    status = seen.status or {}
    yield _state(seen, now)
    if (step := _number(status.get("step"))) is not None:
        yield "step", _pace(status, step, is_live=seen.is_live)
    if seen.is_live:
        for role, crew in _mapping(status.get("crews")).items():
            yield str(role), _crew(_mapping(crew), "sample" if role == "rollout" else "score")
    yield from (("died", str(why)) for why in _mapping(status.get("deaths")).values())
    if (fill := _number(status.get("buffer_fill"))) is not None:
        yield "buffer", f"{fill:.0%} of what may wait"
    if load := status.get("load"):
        yield "bottleneck", str(load)
    checkpoint = _mapping(status.get("checkpoint"))
    if (at := _number(checkpoint.get("time"))) is not None:
        yield "checkpoint", f"step {checkpoint.get('step')}, {_ago(now - at)}"
    elif seen.is_live:
        yield "checkpoint", "none yet"
    for event in _several(status.get("events"))[-MOST_EVENTS:]:
        at, said = [*_several(event), None, None][:2]
        if (at := _number(at)) is not None:
            yield "event", f"{_ago(now - at)}: {said}"


def _state(seen: Seen, now: float) -> tuple[str, str]:
    status, live = seen.status or {}, seen.live or {}
    if not seen.is_live:
        busy = f"`varkd {live.get('command')}` is at work; " if seen.live is not None else ""
        return "state", busy + ending_of(seen)
    state, began = str(status.get("state", "starting")), _number(status.get("began"))
    if state == "ended":
        state = "storing the student"
    doing = f": {status.get('line')}" if state == "starting" and status.get("line") else ""
    since = "" if began is None else f", for {clock(max(0.0, now - began))}"
    return "state", f"{state}{doing} (process {live.get('pid')} on {live.get('host')}{since})"


def _pace(status: Mapping[str, Any], step: float, *, is_live: bool) -> str:
    rate, left = _number(status.get("images_per_second")), _number(status.get("seconds_left"))
    text = f"{step:.0f} of {status.get('steps')}"
    if rate:
        text += f", {rate:.4g} images a second"
    if is_live and left is not None:
        text += f", {clock(max(0.0, left))} left"
    return text


def _crew(workers: Mapping[str, Any], what: str) -> str:
    there = _several(workers.get("there"))
    text = f"{len(there)} {what} ({', '.join(map(str, there)) or 'nobody'})"
    for key, words in (("pending", "wait for room"), ("retiring", "retire")):
        if names := _several(workers.get(key)):
            text += f", {len(names)} {words} ({', '.join(map(str, names))})"
    least, most, how = (workers.get(key) for key in ("least", "most", "how"))
    return f"{text}; {least} to {most} may run, {how}"


def _ago(seconds: float) -> str:
    return f"{clock(max(0.0, seconds))} ago"


def _number(value: object) -> float | None:
    """What can be shown as one; the file may be anybody's."""
    if isinstance(value, int | float) and abs(value) < MOST_NUMBER:
        return float(value)
    return None


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _several(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
