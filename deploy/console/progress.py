"""What a person sees while things run: a bar on a terminal, plain lines elsewhere.

Progress goes to stderr and results to stdout, so that results can be piped. Nothing is silent for
long: where no news comes, the last line is said again with the time that has passed.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task
from rich.text import Text

PLAIN_SECONDS = 5.0
"""Between two plain lines, at least."""
QUIET_SECONDS = 8.0
"""After so long without a plain line the last one is said again."""
PACE_SECONDS = 60.0
"""The time left is judged by the pace of the last minute, or of the last two steps."""
BAR_WIDTH = 12
GAP = "  "


def console() -> Console:
    """For progress: stderr."""
    return _plain_text(stderr=True)


def results() -> Console:
    """For what a command was run for: stdout."""
    return _plain_text(stderr=False)


def _plain_text(*, stderr: bool) -> Console:
    """Paths stay whole when lines are piped or copied, and [x] or :x: in them is no markup."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)


class Bar:
    """How far something with a known number of steps is; also a metrics sink.

    Count and time left come first: a narrow terminal drops numbers from the right.
    """

    def __init__(
        self,
        target: Console,
        title: str,
        total: int,
        shown: Sequence[str] = ("loss",),
        *,
        display: Progress | None = None,
    ) -> None:
        """`shown` names the numbers of a posted row that people see; a terminal has one `display`
        at a time, which several bars may share (`shown_on`)."""
        self._title = title
        self._total = total
        self._shown = shown
        self._pace = Pace()
        self._done = 0
        self._numbers: list[str] = []
        self._progress, self._shares = display or shown_on(target), display is not None
        self._task = self._progress.add_task(self._head(), total=total, numbers=self._numbers)
        self._pulse = Pulse(target, lambda: self.line)

    def __enter__(self) -> "Bar":
        if not self._shares:
            self._progress.start()
        self._pulse.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._pulse.stop()
        if not self._shares:
            self._progress.stop()

    def show(self, done: int, numbers: Mapping[str, float]) -> None:
        self._pace.see(done, time.monotonic())
        self._done = done
        self._tell([f"{name} {_short(value)}" for name, value in numbers.items()])
        self._pulse.news(due=done >= self._total)

    def say(self, what: str) -> None:
        """What goes on, in words, until the next numbers."""
        self._tell([what])
        self._pulse.news(due=True)

    def post(self, row: Mapping[str, Any]) -> None:
        self.show(int(row["step"]), {name: float(row[name]) for name in self._shown})

    @property
    def is_full(self) -> bool:
        """Whether all of it is done."""
        return self._done >= self._total

    @property
    def line(self) -> str:
        """What it shows, in one line."""
        return GAP.join([self._head(), *self._numbers])

    @property
    def seconds_left(self) -> float | None:
        """By the pace of the last minute; None while nothing tells."""
        return self._pace.left(self._total, time.monotonic())

    def _tell(self, numbers: list[str]) -> None:
        self._numbers = numbers
        head = self._head()
        self._progress.update(self._task, description=head, completed=self._done, numbers=numbers)

    def _head(self) -> str:
        share = f" {self._done / self._total:.0%}" if self._total else ""
        left = self.seconds_left
        ahead = "" if left is None else f"{GAP}{clock(left)} left"
        return f"{self._title} {self._done}/{self._total}{share}{ahead}"


def shown_on(target: Console) -> Progress:
    """Where bars are, on a terminal; it is started and stopped as a context."""
    return Progress(
        Head(),
        BarColumn(bar_width=BAR_WIDTH),
        Numbers(target),
        console=target,
        refresh_per_second=4,
        disable=not target.is_interactive,
    )


@contextmanager
def busy(target: Console, what: str, *, at_once: bool = True) -> Iterator[None]:
    """Something without a count: a spinner and the time that has passed; not inside a Bar.

    Without `at_once` there is no plain line before it has taken long.
    """
    pulse = Pulse(target, lambda: what)
    progress = Progress(
        SpinnerColumn(),
        Head(elapsed=True),
        console=target,
        disable=not target.is_interactive,
        transient=True,
    )
    progress.add_task(what, total=None, numbers=[])
    with progress:
        pulse.start()
        if at_once:
            pulse.news(due=True)
        try:
            yield
        finally:
            pulse.stop()


class Pace:
    """Steps per second, and what that says of the time left."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def see(self, done: int, now: float) -> None:
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] > PACE_SECONDS:
            self._seen.popleft()

    def left(self, total: int, now: float) -> float | None:
        """Seconds; None before two steps tell, and at the end."""
        if not self._seen:
            return None
        (first, before), (last, done) = self._seen[0], self._seen[-1]
        if done >= total or done <= before or last <= first:
            return None
        return max(0.0, (total - done) * (last - first) / (done - before) - (now - last))


class Pulse:
    """Plain lines, where there is no terminal that can be redrawn: at most one in five seconds,
    and one in eight at least, however long the news keep people waiting."""

    def __init__(
        self, target: Console, line: Callable[[], str], quiet_seconds: float = QUIET_SECONDS
    ) -> None:
        self._target = target
        self._line = line
        self._quiet_seconds = quiet_seconds
        self._is_needed = not target.is_interactive and not target.quiet
        self._last_line = self._last_news = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def start(self) -> None:
        self._last_line = self._last_news = time.monotonic()
        if self._is_needed:
            self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def news(self, *, due: bool) -> None:
        """There is something new to say; `due` lines are not left out."""
        self._last_news = time.monotonic()
        if self._is_needed and (due or self._last_news - self._last_line > PLAIN_SECONDS):
            self._say(self._line())

    def _beat(self) -> None:
        while not self._stopped.wait(0.2):
            now = time.monotonic()
            if now - self._last_line > self._quiet_seconds:
                self._say(f"{self._line()}{GAP}(unchanged for {clock(now - self._last_news)})")

    def _say(self, line: str) -> None:
        self._last_line = time.monotonic()
        self._target.print(line)


class Head(ProgressColumn):
    """What, how much of it, and the time left: never cut."""

    def __init__(self, *, elapsed: bool = False) -> None:
        super().__init__()
        self._elapsed = elapsed

    def render(self, task: Task) -> Text:
        passed = f"{GAP}{clock(task.elapsed or 0.0)}" if self._elapsed else ""
        return Text(task.description + passed, no_wrap=True)


class Numbers(ProgressColumn):
    """As many whole numbers as fit beside the head and the bar."""

    def __init__(self, target: Console) -> None:
        super().__init__()
        self._target = target

    def render(self, task: Task) -> Text:
        room = self._target.width - len(task.description) - BAR_WIDTH - 2
        numbers, shown = task.fields["numbers"], ""
        for number in numbers:
            longer = GAP.join(filter(None, [shown, number]))
            if len(longer) > room:
                break
            shown = longer
        if len(numbers) == 1 and not shown:  # words, not one of several numbers
            shown = numbers[0][: max(0, room - 3)] + "..."
        return Text(shown, no_wrap=True)


def clock(seconds: float) -> str:
    """1:05 or 2:00:10."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _short(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.4g}"
