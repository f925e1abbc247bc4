"""Bars of trainings in other processes, by the rows that they write into the run folder."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from deploy.console.progress import Bar, shown_on

LOOK_SECONDS = 0.25
LONGEST_ROW = 1 << 14
"""Bytes."""


@dataclass(frozen=True, slots=True)
class Course:
    """A training somewhere else."""

    title: str
    steps: int
    path: Path
    """Gets a line of JSON after each step: step, loss and time."""

    def latest(self, since: float) -> Mapping[str, Any] | None:
        """The newest whole row, unless it is of an earlier time than `since`."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - LONGEST_ROW))
                lines = file.read().split(b"\n")[:-1]
        except OSError:  # it has not begun
            return None
        row = json.loads(lines[-1]) if lines else None
        return row if row and row["time"] >= since else None


@contextmanager
def followed(target: Console, *courses: Course) -> Iterator[None]:
    """A bar for each of them beside the block."""
    began, ended = time.time(), threading.Event()
    done = dict.fromkeys(courses, 0)
    with shown_on(target) as display, ExitStack() as stack:
        bars = {
            course: stack.enter_context(Bar(target, course.title, course.steps, display=display))
            for course in courses
        }

        def look() -> None:
            for course, bar in bars.items():
                row = course.latest(began)
                if row is not None and row["step"] != done[course]:
                    done[course] = row["step"]
                    bar.post(row)

        def go_on_looking() -> None:
            while not ended.wait(LOOK_SECONDS):
                look()

        thread = threading.Thread(target=go_on_looking, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            look()
