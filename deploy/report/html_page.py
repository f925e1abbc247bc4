"""report.html: one page for people who are not at the machine, refreshed while a run goes on.

Everything is in the one file and nothing else is asked for; what comes from outside is escaped. It
is laid out in page.html.jinja.
"""

import base64
import math
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from common.config.schema import digest, dump_toml
from common.errors import InputError
from common.exchange.metric_files import iterate_rows
from common.exchange.metrics import PROFILE
from common.files.atomic import write_text
from common.files.paths import read_json
from deploy.config import RunConfig
from deploy.console.versions import versions
from deploy.load import LoadMeter
from deploy.report.chart import Chart, chart
from deploy.report.curve import Curve
from deploy.report.summary import bottleneck
from deploy.run_folder.control_files import FOLDER, STATUS
from deploy.run_folder.workspace import Workspace
from learner.rewards import LEFT_OUT

NAME = "report.html"
EVERY_SECONDS = 60.0
LOAD_STEPS = 50
"""Steps over which it is said who is the bottleneck."""
CHARTS = {
    "Loss": ("loss",),
    "Images a second": ("images_per_second",),
    "Divergence by context (nats a token)": ("divergence/",),
    "Seconds of a step by stage": ("seconds/",),
    "Age of the weights that sampled (steps)": ("lag_mean", "lag_max"),
    "Buffer fill (share of what may be outstanding)": ("buffer/fill",),
    "Confidence of the teacher": ("confidence/",),
    "Survival of the gate": ("survival/",),
    "Entropy (nats)": ("teacher_entropy/", "student_entropy/"),
    "Norm of the gradient": ("grad_norm",),
    "Reward of the student's samples": ("reward/mean",),
}
"""Keys of rows, or their beginnings up to the slash, by the title of their chart."""
PICTURES = {
    "samples.png": "Samples: one row per class",
    "diagnostics.png": "Diagnostics",
}
Row = Mapping[str, Any]


class Progress:
    """What a page shows of a run's rows, in little memory."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.curves: dict[str, Curve] = {}
        self.latest: dict[str, Any] = {}
        self.bottleneck: str | None = None
        self._load = LoadMeter(config.learner.world_size)
        self._pace: list[tuple[float, int]] = []

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            if PROFILE in row:
                continue
            self.latest = {**self.latest, **row}
            if isinstance(row.get("time"), int | float):
                self._pace = [*self._pace[-199:], (row["time"], row["step"])]
            self._weigh(row)
            for key, value in row.items():
                if _chart_of(key) is not None and isinstance(value, int | float):
                    self.curves.setdefault(key, Curve()).add(row["step"], value)

    def _weigh(self, row: Row) -> None:
        """Who is the bottleneck over the last steps."""
        if "seconds/step" in row and "seconds/wait" in row:
            self._load.add(row, row.get("actors/rollout", self.config.rollout.workers))
        if self._load.steps >= LOAD_STEPS or self.bottleneck is None:
            load = self._load.load()
            self.bottleneck = None if load is None else load.sentence()
        if self._load.steps >= LOAD_STEPS:
            self._load.clear()

    @property
    def step(self) -> int:
        return self.latest.get("step", 0)

    def seconds_left(self) -> float | None:
        """At the pace of the last steps."""
        if len(self._pace) < 2:
            return None
        (began, first), (ended, last) = self._pace[0], self._pace[-1]
        steps = last - first
        left = max(0, self.config.learner.steps - self.step)
        return left * (ended - began) / steps if steps > 0 else None

    def charts(self) -> list[Chart]:
        found = []
        for title in CHARTS:
            curves = {key: curve for key, curve in self.curves.items() if _chart_of(key) == title}
            found.append(chart(title, dict(sorted(curves.items()))))
        return [one for one in found if one is not None]


@cache
def _chart_of(key: str) -> str | None:
    start = f"{key.partition('/')[0]}/"
    return next((title for title, keys in CHARTS.items() if key in keys or start in keys), None)


class PageLogger:
    """A `RowLogger` that writes the page again every minute, and when there are no more rows."""

    def __init__(
        self, config: RunConfig, workspace: Workspace, every: float = EVERY_SECONDS
    ) -> None:
        self._workspace, self._every = workspace, every
        self._progress = Progress(config)
        self._written = time.monotonic()
        self._begun = False

    def write(self, rows: list[dict[str, Any]]) -> None:
        if not self._begun and rows:
            self._begun = True
            first = rows[0]["step"]  # a run that goes on has earlier rows on disk
            earlier = iterate_rows(self._workspace.metrics)
            self._progress.add(row for row in earlier if row["step"] < first)
        self._progress.add(rows)
        if time.monotonic() - self._written >= self._every:
            self._write(running=True)

    def close(self) -> None:
        self._write(running=False)

    def _write(self, *, running: bool) -> None:
        if self._workspace.root.is_dir():  # nobody makes a folder anew that was taken away
            facts = {} if running else _last_words(self._workspace.root)
            text = render(self._progress, self._workspace, running, facts)
            write_text(self._workspace.root / NAME, text)
        self._written = time.monotonic()


def _last_words(root: Path) -> dict[str, Any]:
    """Why a run ended, and who died in it, as it told those who looked on."""
    try:
        found = read_json(root / FOLDER / STATUS, "the status of a run")
    except (FileNotFoundError, InputError):
        return {}
    has_ended = isinstance(found, dict) and found.get("state") == "ended"
    return {key: found[key] for key in ("cause", "deaths") if found.get(key)} if has_ended else {}


def write_page(
    config: RunConfig,
    workspace: Workspace,
    facts: Mapping[str, Any],
    report: Mapping[str, Any] | None = None,
) -> None:
    """The page of a run that is over, from its files; `report` is report.json, once there is one.

    Raises:
        InputError: its rows cannot be read, or the page cannot be written.
    """
    progress = Progress(config)
    progress.add(iterate_rows(workspace.metrics))
    text = render(progress, workspace, False, facts, report)
    try:
        write_text(workspace.root / NAME, text)
    except OSError as error:
        raise InputError(f"{workspace.root / NAME}: cannot be written: {error.strerror}") from None


def render(
    progress: Progress,
    workspace: Workspace,
    running: bool,
    facts: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
) -> str:
    """The page as text."""
    config, facts = progress.config, facts or {}
    steps = config.learner.steps
    return _template().render(
        title=workspace.root.name,
        running=running,
        status=_status(progress, running, facts),
        share=100 * min(1.0, progress.step / steps),
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        facts=_facts(progress, facts),
        deaths=facts.get("deaths", {}),
        replaced=facts.get("replaced", {}),
        charts=progress.charts(),
        metrics=_metrics(report),
        pictures=_pictures(workspace.root) if report else [],
        config=dump_toml(config),
        versions=versions(),
        digest=digest(config),
    )


def _status(progress: Progress, running: bool, facts: Mapping[str, Any]) -> str:
    done = f"Step {progress.step:,} of {progress.config.learner.steps:,}"
    if running:
        left = progress.seconds_left()
        return f"{done}, running" + (f"; about {duration(left)} left" if left else "")
    if progress.step >= progress.config.learner.steps:
        return f"{done}: all steps done"
    return f"{done}: {facts.get('cause') or 'ended; the command said why'}"


def _facts(progress: Progress, facts: Mapping[str, Any]) -> dict[str, str]:
    row, config = progress.latest, progress.config
    found = {
        "images trained": f"{row.get('images_total', 0):,}",
        "images a second": _number(row.get("images_per_second")),
        "loss": _number(row.get("loss")),
        "weight version": f"{row.get('version', 0):,}",
        "age of weights": f"{_number(row.get('lag_mean'))} steps (bound "
        f"{config.learner.max_staleness})",
        "buffer fill": _number(row.get("buffer/fill")),
        "objective": config.objective.kind,
        "seed": str(config.seed),
    }
    if counts := {key: count for key, count in row.items() if key.startswith("actors/")}:
        found["workers and replicas"] = ", ".join(
            f"{key.removeprefix('actors/')} {count}" for key, count in counts.items()
        )
    if slow := facts.get("slow_workers"):
        found["slow workers"] = ", ".join(f"{name} x{times:g}" for name, times in slow.items())
    for restart in facts.get("restarts", []):
        found[f"learner began again at step {restart['from']:,}"] = (
            f"after {_number(restart.get('seconds'))} s"
        )
    if (left_out := row.get(LEFT_OUT)) is not None:
        found["groups left out because a reward failed"] = f"{left_out:,.0f}"
    named = bottleneck(facts) or progress.bottleneck
    if named is not None:
        found["bottleneck"] = named
    if "wall_seconds" in facts:
        found["wall clock"] = duration(facts["wall_seconds"])
    return found


def _metrics(report: Mapping[str, Any] | None) -> list[list[str]]:
    """A header and a row per model."""
    if not report:
        return []
    models: Mapping[str, Mapping[str, Any]] = report["metrics"]
    names = list(next(iter(models.values()), {}))
    rows = [[name, *(_number(found.get(n)) for n in names)] for name, found in models.items()]
    return [["model", *names], *rows]


def _pictures(root: Path) -> list[tuple[str, str]]:
    """(caption, data URL) of those that are there."""
    return [
        (caption, "data:image/png;base64," + base64.b64encode((root / name).read_bytes()).decode())
        for name, caption in PICTURES.items()
        if (root / name).is_file()
    ]


def duration(seconds: float) -> str:
    """For people."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes / 60
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.1f} days"


def _number(value: Any) -> str:
    known = isinstance(value, int | float) and math.isfinite(value)
    return f"{value:.4g}" if known else "-"


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of runs, contexts and classes come from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return page.get_template("page.html.jinja")
