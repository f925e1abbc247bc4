"""Files that are made part by part, in this process or in Ray actors, and can be interrupted.

A part becomes a token file of its own. Files appear whole, so a command that was interrupted goes
on after those that are there. Both ways call the same maker: images are encoded
(deploy/stages/encoder.py), or the teacher samples (deploy/stages/generate.py).
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console

from common.data.tokens import TokenHeader, read_header, read_tokens, write_tokens
from common.errors import InputError, RunFailed
from deploy.backend.actor_pool import ActorPool, ProcessLost, call_here
from deploy.backend.bundles import Bundles
from deploy.backend.session import cluster
from deploy.config import RunConfig
from deploy.console.progress import Bar


class Part(Protocol):
    """Rows and the file that they go to; small enough to be sent to an actor."""

    @property
    def path(self) -> Path: ...
    def __len__(self) -> int: ...


P_contra = TypeVar("P_contra", bound=Part, contravariant=True)
Watch = Callable[[int], None]


class Maker(Protocol[P_contra]):
    """Holds a model on its device and makes one part after the other."""

    def make(self, part: P_contra, watch: Watch = ...) -> None:
        """Write `part.path`; `watch` hears how many of its rows are done."""


class MakePart:
    """Makes parts with a maker that is built for the first one, wherever that is."""

    def __init__(self, build: Callable[[], Maker[Any]], watch: Watch = lambda done: None) -> None:
        self._build = build
        self._watch = watch
        self._maker: Maker[Any] | None = None

    def __call__(self, part: Part) -> None:
        if self._maker is None:
            self._maker = self._build()
        self._maker.make(part, self._watch)


@dataclass(frozen=True, slots=True)
class PartitionJob:
    """How the parts of a command are made."""

    config: RunConfig
    build: Callable[[], Maker[Any]]
    """Makes a maker, in this process or in an actor; picklable."""
    pool: ActorPool
    """Makes the parts on Ray; its name is the title of the bar."""
    section: str
    """The config section that sizes the pool."""
    lower: str
    """Config fields that make an actor smaller."""
    local: bool

    def finish(
        self,
        parts: Sequence[Part],
        target: Console,
        numbers: Callable[[Iterable[TokenHeader]], dict[str, float]] = lambda headers: {},
    ) -> dict[Path, TokenHeader]:
        """Make the parts that are not there yet; returns the headers of all.

        Raises:
            InputError: the maker's own refusals, or the cluster has no room for an actor.
            RunFailed: actors died over the same part again and again.
        """
        headers = dict(_whole(parts, target))
        missing = [part for part in parts if part.path not in headers]
        done = sum(len(part) for part in parts) - sum(len(part) for part in missing)
        if done:
            target.print(f"{len(headers)} of {len(parts)} parts were finished before")
        with Bar(target, self.pool.name, sum(len(part) for part in parts)) as bar:

            def show(more: int) -> None:
                bar.show(done + more, numbers(headers.values()))

            show(0)
            for part in self._made(missing, bar, show):
                headers[part.path] = read_header(part.path)
                done += len(part)
                show(0)
        return headers

    def _made(self, parts: list[Part], bar: Bar, watch: Watch) -> Iterator[Part]:
        """Each when its file is there, on Ray in any order."""
        work = {part.path: part for part in parts}
        if self.local:
            yield from self._checked(call_here(MakePart(self.build, watch), work), work)
        elif parts:
            with cluster(self.config, told=bar):
                self._find_room(bar)
                yield from self._checked(self.pool(MakePart(self.build), work), work)

    def _find_room(self, bar: Bar) -> None:
        """For one actor at least; the pool has as many as there is room for."""
        from deploy.backend.reservation import patience, reserved  # it imports ray

        one = Bundles(self.section, 1, self.pool.cpus, self.pool.gpus)
        with reserved([one], patience(self.config), bar.say):
            return

    def _checked(
        self, outcomes: Generator[tuple[Path, Any], None, None], work: dict[Path, Part]
    ) -> Iterator[Part]:
        with closing(outcomes):  # now, as long as the cluster is there
            for path, outcome in outcomes:
                if isinstance(outcome, ProcessLost):
                    raise RunFailed(
                        f"{path}: {outcome}; perhaps for lack of memory: lower {self.lower}, and "
                        "give the command again (finished parts are kept)"
                    )
                if isinstance(outcome, Exception):
                    raise outcome
                yield work[path]


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
