"""What a person sees while things run: rich bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 5.0


def console() -> Console:
    """Progress goes to stderr, so that results can be piped."""
    return Console(stderr=True, highlight=False)


class Bar:
    """One progress bar with a line of numbers behind it; also a metrics sink."""

    def __init__(
        self, target: Console, title: str, total: int, shown: Sequence[str] = ("loss",)
    ) -> None:
        """`shown` names the numbers of a posted row that people see."""
        self._console = target
        self._title = title
        self._total = total
        self._shown = shown
        self._last_line = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=target,
            refresh_per_second=4,
            disable=not target.is_terminal,
        )
        self._task = self._progress.add_task(title, total=total, numbers="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self, done: int, numbers: Mapping[str, float]) -> None:
        text = "  ".join(f"{name} {_short(value)}" for name, value in numbers.items())
        self._progress.update(self._task, completed=done, numbers=text)
        due = time.monotonic() - self._last_line > PLAIN_SECONDS or done >= self._total
        if not self._console.is_terminal and due:
            self._console.print(f"{self._title} {done}/{self._total}  {text}")
            self._last_line = time.monotonic()

    def post(self, row: Mapping[str, Any]) -> None:
        self.show(int(row["step"]), {name: float(row[name]) for name in self._shown})


def _short(value: float) -> str:
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.4g}"
