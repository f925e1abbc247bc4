"""What an image takes, for the study's page: a table, and FID against milliseconds."""

from collections.abc import Sequence
from typing import Any

from deploy.study.analysis.intervals import Estimate
from deploy.study.analysis.results import SpeedRow
from deploy.study.analysis.statistics import Analysis
from deploy.study.analysis.tables import with_interval
from deploy.study.page.axes import (
    clean,
    colour_of,
    plain_numbers,
    png,
    pyplot,
    short,
    suit_scale,
)

CLOCKS = {"cpu": "CPU time of the process", "wall": "time by the clock"}


SPEED_HEADER = ["method", "images together", "ms per image", "times the teacher's speed"]


def speed_table(rows: Sequence[SpeedRow]) -> list[list[str]]:
    """A row per model, way and number of images drawn together."""
    found = []
    for row in rows:
        spent = Estimate(row.milliseconds, row.low, row.high, row.rounds)
        times = Estimate(row.times_as_fast, row.times_low, row.times_high, row.rounds)
        cells = [row.method, str(row.batch), with_interval(spent), with_interval(times)]
        found.append(cells)
    return found


def speed_words(rows: Sequence[SpeedRow]) -> str:
    """How it was measured; empty where it was not."""
    if not rows:
        return ""
    clock = " and ".join(sorted({CLOCKS[row.clock] for row in rows}))
    rounds = max(row.rounds for row in rows)
    return (
        f"Drawn and decoded side by side in one process: {clock}, {rounds} rounds "
        "forwards and backwards in turn. Brackets: 95 % t-interval over the rounds; they say "
        "nothing of other machines."
    )


def draw_speed(analysis: Analysis, rows: Sequence[SpeedRow]) -> bytes:
    """A panel for each number of images drawn together."""
    batches = list(dict.fromkeys(row.batch for row in rows))
    figure, axes = pyplot().subplots(
        1,
        len(batches),
        figsize=(1 + 4.2 * len(batches), 3.8),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    known = [row for row in rows if row.method in analysis.summaries]
    for axis, batch in zip(axes.flat, batches, strict=True):
        here = [row for row in known if row.batch == batch]
        for row in here:
            _point(axis, analysis, row)
        suit_scale(axis.set_xscale, [row.milliseconds for row in here])
        axis.set_title(f"{batch} at a time", fontsize=9, fontweight="bold")
        axis.set_xlabel("milliseconds of an image", fontsize=9)
        clean(axis)
    means = [analysis.summaries[row.method].fixed["fid"].mean for row in known]
    suit_scale(axes[0, 0].set_yscale, means)
    plain_numbers(axes[0, 0].yaxis, *(axis.xaxis for axis in axes.flat))
    axes[0, 0].set_ylabel("FID", fontsize=9)
    return png(figure)


def _point(axis: Any, analysis: Analysis, row: SpeedRow) -> None:
    found, colour = analysis.summaries[row.method].fixed["fid"], colour_of(analysis, row.method)
    if not found.count:
        return
    if found.low is not None and found.high is not None:
        ends = [max(found.low, 0.1 * found.mean), found.high]
        axis.plot([row.milliseconds] * 2, ends, color=colour, linewidth=1.4)
    if row.low is not None:
        axis.plot([row.low, row.high], [found.mean] * 2, color=colour, linewidth=1.4)
    axis.plot(row.milliseconds, found.mean, "o", color=colour, markersize=5)
    axis.annotate(
        short(row.method),
        (row.milliseconds, found.mean),
        xytext=(5, 4),
        textcoords="offset points",
        fontsize=8,
        color=colour,
    )
