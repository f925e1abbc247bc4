"""Files that are made part by part, in this process or by Ray Data, and can be interrupted.

A part becomes a token file of its own. Files appear whole, so a command that was interrupted goes
on after those that are there. Both ways call the same maker: images are encoded
(deploy/stages/encoder.py), or the teacher samples (deploy/stages/generate.py).
"""

import logging
import os
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from rich.console import Console

from common.data.tokens import TokenHeader, read_header, read_tokens, write_tokens
from common.errors import UNDERSTOOD, InputError, RunFailed, Verdict
from common.files.atomic import unwritable
from deploy.backend.actors import ActorHost
from deploy.backend.capacity import Demand, require_room
from deploy.backend.session import cluster
from deploy.config import RunConfig
from deploy.console.progress import Bar
from deploy.layout import check_layout

MOST_TRIES = 3
"""A part whose actor died this often is given up: Ray would restart the actor for ever."""


class Part(Protocol):
    """Rows and the file that they go to; small enough to be sent to an actor."""

    @property
    def path(self) -> Path: ...
    def __len__(self) -> int: ...


P = TypeVar("P", bound=Part)
P_contra = TypeVar("P_contra", bound=Part, contravariant=True)
Watch = Callable[[int], None]


class Maker(Protocol[P_contra]):
    """Holds a model on its device and makes one part after the other."""

    def make(self, part: P_contra, watch: Watch = ...) -> None:
        """Write `part.path`; `watch` hears how many of its rows are done."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The actors that make parts."""

    section: str
    """The config section that holds the next three."""
    workers: int
    cpus: float
    gpus: float
    lower: str
    """Config fields that make an actor smaller."""


@dataclass(frozen=True, slots=True)
class Job:
    """How the parts of a command are made."""

    config: RunConfig
    build: Callable[[], Maker[Any]]
    """Makes a maker, in this process or in an actor; picklable."""
    pool: Pool
    title: str
    local: bool

    def finish(
        self,
        parts: Sequence[Part],
        target: Console,
        numbers: Callable[[Iterable[TokenHeader]], dict[str, float]] = lambda headers: {},
    ) -> dict[Path, TokenHeader]:
        """Make the parts that are not there yet; returns the headers of all.

        Raises:
            InputError: the maker's own refusals, or the private cluster has too few CPUs or GPUs.
            RunFailed: actors died over the same part again and again.
        """
        headers = dict(_whole(parts, target))
        missing = [part for part in parts if part.path not in headers]
        done = sum(len(part) for part in parts) - sum(len(part) for part in missing)
        if done:
            target.print(f"{len(headers)} of {len(parts)} parts were finished before")
        with Bar(target, self.title, sum(len(part) for part in parts)) as bar:

            def show(more: int) -> None:
                bar.show(done + more, numbers(headers.values()))

            show(0)
            for part in self._made(missing, bar, show):
                headers[part.path] = read_header(part.path)
                done += len(part)
                show(0)
        return headers

    def _made(self, parts: list[Part], bar: Bar, watch: Watch) -> Iterator[Part]:
        if not parts:
            return
        if self.local:
            yield from make_here(parts, self.build, watch)
            return
        with cluster(self.config, told=bar):
            yield from make_on_ray(parts, self.build, self.pool, bar)


def _whole(parts: Sequence[Part], target: Console) -> Iterator[tuple[Path, TokenHeader]]:
    """Parts that are there with their headers; a damaged one is thrown away."""
    for part in parts:
        if not part.path.exists():
            continue
        try:
            yield part.path, read_header(part.path)
        except InputError as error:
            target.print(f"{error}; this part is made again")
            part.path.unlink()


def join(path: Path, header: TokenHeader, parts: Iterable[Part]) -> None:
    """One file of all parts, a row group at a time."""
    write_tokens(path, header, (rows for part in parts for rows in read_tokens(part.path)))


def parts_folder(tokens: Path) -> Path:
    """Where the parts of a token file wait for one another."""
    return tokens.with_suffix(".parts")


def make_here(parts: Sequence[P], build: Callable[[], Maker[P]], watch: Watch) -> Iterator[P]:
    """Make the parts in this process; yields each when its file is there."""
    maker = build()
    for part in parts:
        maker.make(part, watch)
        yield part


class PartActor:
    """What Ray Data keeps in its actors: a row is a part's number and the pickled part.

    A failure that was understood is handed back as a value: Ray Data would wrap, retry or print an
    exception.
    """

    def __init__(self, build: Callable[[], Maker[Any]], pool: Pool) -> None:
        check_layout()
        torch.set_num_threads(max(1, int(pool.cpus)))
        self._build = build
        self._pool = pool
        self._maker: Maker[Any] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part: Part = pickle.loads(row["part"])
        reply = {"number": row["number"], "verdict": b""}
        try:
            _count_try(part, self._pool.lower)
            self._maker = self._maker or self._build()
            self._maker.make(part)
        except UNDERSTOOD as error:
            reply["verdict"] = pickle.dumps(Verdict.of(error))
        return reply


def _tries(part: Part) -> Path:
    return part.path.with_suffix(".tries")


def _count_try(part: Part, lower: str) -> None:
    """Leave a mark that outlives this process.

    Raises:
        RunFailed: this part was begun too often.
    """
    path = _tries(part)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as handle:
            handle.write(b".")
            tries = handle.tell()
    except OSError as error:
        raise unwritable(path, error) from error
    if tries > MOST_TRIES:
        raise RunFailed(
            f"{part.path}: {MOST_TRIES} actors died while they made this part, perhaps for lack "
            f"of memory; lower {lower}"
        )


def make_on_ray(
    parts: Sequence[P], build: Callable[[], Maker[P]], pool: Pool, bar: Bar
) -> Iterator[P]:
    """Make the parts in actors of Ray Data; yields each when its file is there, in any order.

    Raises:
        InputError: as the maker, or the private cluster has too few CPUs or GPUs.
        RunFailed: actors died over the same part again and again.
    """
    import ray.data

    require_room([Demand(pool.section, 1, pool.cpus, pool.gpus)], bar.say)
    _quiet_ray_data()
    for part in parts:
        _tries(part).unlink(missing_ok=True)
    rows = [{"number": n, "part": pickle.dumps(part)} for n, part in enumerate(parts)]
    replies = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        cast(Any, PartActor),
        fn_constructor_args=(build, pool),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(pool.workers, len(parts))),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
    )
    with closing(_rows(replies)) as answered:
        for reply in answered:
            if reply["verdict"]:
                raise pickle.loads(reply["verdict"]).error()
            part = parts[reply["number"]]
            _tries(part).unlink(missing_ok=True)
            yield part


def _rows(dataset: Any) -> Generator[dict[str, Any]]:
    from ray.exceptions import RayError, RayTaskError

    from deploy.backend.proxies import ray_reason

    try:
        yield from dataset.iter_rows()
    except RayTaskError:
        raise  # a fault of ours
    except RayError as error:
        raise RunFailed(
            f"Ray failed: {ray_reason(error)}; finished parts are kept: give the command again"
        ) from error


def _quiet_ray_data() -> None:
    import ray
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # not the session's log file
            handler.setLevel(logging.CRITICAL)
    # Ray complains on raw stderr, once per process, of how Ray Data starts actors (ray#57733).
    with _closed_stderr():
        ray.remote(num_cpus=0, max_restarts=1)(ActorHost).remote(dict, (), ray.put({}))


@contextmanager
def _closed_stderr() -> Iterator[None]:
    """What C++ code prints in the block goes nowhere."""
    before = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
