"""The study's figures as PNG bytes.

Many methods are told apart by a panel each, with all the others in grey behind, and not by as many
colours. A method keeps its colour (Okabe and Ito's, safe for the colour-blind) in every figure;
marks repeat what a colour says.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from deploy.study.analysis.intervals import Estimate, Paired, estimate
from deploy.study.analysis.results import REFERENCES, SpeedRow
from deploy.study.analysis.statistics import Analysis, Comparison, Curve, Summary
from deploy.study.page.axes import (
    REFERENCE_COLOURS,
    REFERENCE_STYLES,
    clean,
    colour_of,
    png,
    pyplot,
    short,
    suit_scale,
)
from deploy.study.page.speed import draw_speed

BASELINE_STYLES = ("--", ":", "-.")
OTHERS = "#D8D8D8"
COLUMNS = 5
"""Panels side by side at most."""

CAPTIONS = {
    "forest": (
        "FID by method with 95 % t-intervals over the seeds: dots at the fixed guidance, diamonds "
        "at the guidance chosen by the other seeds. Vertical lines and bands: teacher and base "
        "student (or slots alone) at the fixed guidance."
    ),
    "steps": (
        "FID at the fixed guidance against training steps: mean and range over the seeds. Grey: "
        "all other methods. Black lines: baselines."
    ),
    "seconds": (
        "The same against training seconds without evaluation, so that a method that costs more "
        "per step is seen to."
    ),
    "guidance": (
        "FID after training over the guidance sweep: mean and 95 % t-interval. The vertical line "
        "is the fixed guidance; diamonds are guidances chosen by leaving a seed out. Wide "
        "intervals leave the frame."
    ),
    "paired": (
        "Differences in FID within seeds, method minus baseline; left of zero is lower FID. Dots: "
        "fixed guidance; diamonds: best guidance of each. Thick: 95 % interval of the comparison "
        "alone; thin: 95 % for all at once. In colour only where the thin interval excludes zero; "
        "thin intervals may leave the frame."
    ),
    "speed": (
        "FID at the fixed guidance against milliseconds of an image: means with 95 % t-intervals, "
        "of FID over the seeds, of milliseconds over the rounds."
    ),
}


def draw(analysis: Analysis, speed: Sequence[SpeedRow] = ()) -> dict[str, bytes]:
    """Every figure that the measurements allow, by name (a key of CAPTIONS).

    Methods without a finite FID at the fixed guidance have no marks. FID axes are logarithmic
    where values span more than a factor of eight.
    """
    found = {"forest": _forest(analysis)}
    if any(len(analysis.summaries[name].curve.steps) > 1 for name in analysis.methods):
        found["steps"] = _panels(analysis, lambda s: _course(s.curve, s.curve.steps), "steps")
        found["seconds"] = _panels(analysis, lambda s: _course(s.curve, s.curve.seconds), "seconds")
    if any(len(summary.sweep) > 1 for summary in analysis.summaries.values()):
        found["guidance"] = _panels(analysis, _swept, "guidance")
    if any(analysis.against.values()):
        found["paired"] = _paired(analysis)
    if speed:
        found["speed"] = draw_speed(analysis, speed)
    return found


def _forest(analysis: Analysis) -> bytes:
    rows = [analysis.summaries[name] for name in analysis.methods]
    figure, axis = pyplot().subplots(figsize=(8, 1.3 + 0.32 * len(rows)), layout="constrained")
    for name in REFERENCES:
        if name in analysis.summaries and analysis.summaries[name].fixed["fid"].count:
            found, colour = analysis.summaries[name].fixed["fid"], REFERENCE_COLOURS[name]
            style = REFERENCE_STYLES[name]
            axis.axvline(found.mean, color=colour, linestyle=style, linewidth=1, label=name)
            if found.low is not None:
                axis.axvspan(found.low, found.high, color=colour, alpha=0.12, linewidth=0)
    for place, summary in enumerate(rows):
        colour = colour_of(analysis, summary.method)
        _mark(axis, summary.fixed["fid"], place - 0.13, colour, "o")
        if summary.best:
            _mark(axis, estimate(list(summary.best.fid.values())), place + 0.17, colour, "D")
    means = [summary.fixed["fid"].mean for summary in analysis.summaries.values()]
    suit_scale(axis.set_xscale, means)
    _rows(axis, [summary.method for summary in rows])
    axis.set_xlabel("FID", fontsize=9)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    return png(figure)


def _rows(axis: Any, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), [short(name) for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="y", color="#EEEEEE")
    axis.set_axisbelow(True)
    clean(axis)


def _mark(axis: Any, found: Estimate, height: float, colour: str, marker: str) -> None:
    if not found.count:
        return
    if found.low is not None:
        axis.plot([found.low, found.high], [height, height], color=colour, linewidth=1.8)
    face = colour if marker == "o" else "white"
    axis.plot(found.mean, height, marker, color=colour, markerfacecolor=face, markersize=5)


Line = tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[float]]
"""x, mean, low and high."""


def _course(curve: Curve, places: Sequence[float]) -> Line:
    return places, curve.mean, curve.low, curve.high


def _swept(summary: Summary) -> Line:
    found = summary.sweep.values()
    low = [e.mean if e.low is None else e.low for e in found]
    high = [e.mean if e.high is None else e.high for e in found]
    return list(summary.sweep), [e.mean for e in found], low, high


def _panels(analysis: Analysis, line_of: Callable[[Summary], Line], kind: str) -> bytes:
    """One panel per method, all on the same axes."""
    names = analysis.methods
    rows = math.ceil(len(names) / COLUMNS)
    columns = math.ceil(len(names) / rows)
    size = 1 + 2.2 * columns, 1 + 1.75 * rows
    figure, axes = pyplot().subplots(
        rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    lines = {name: line_of(summary) for name, summary in analysis.summaries.items()}
    for place, axis in enumerate(axes.flat):
        if place < len(names):
            _panel(axis, analysis, lines, names[place])
            if kind == "guidance":
                _mark_guidance(axis, analysis, names[place])
        else:
            axis.set_visible(False)
            axes[-2, place % columns].tick_params(labelbottom=True)
    means = [value for line in lines.values() for value in line[1]]
    if means:
        room = 0.12 * (max(means) - min(means)) or 1.0
        axes[0, 0].set_ylim(max(min(means) - room, 0.8 * min(means)), max(means) + room)
    suit_scale(axes[0, 0].set_yscale, means)
    figure.supylabel("FID", fontsize=9)
    label = {"seconds": "training seconds", "steps": "training steps"}.get(kind, kind)
    figure.supxlabel(label, fontsize=9)
    handles = {text: line for axis in axes.flat for line, text in _labelled(axis)}
    figure.legend(
        handles.values(), handles, fontsize=8, loc="outside upper center", ncols=6, frameon=False
    )
    return png(figure)


def _labelled(axis: Any) -> Iterable[tuple[Any, str]]:
    return zip(*axis.get_legend_handles_labels(), strict=True)


def _panel(axis: Any, analysis: Analysis, lines: dict[str, Line], name: str) -> None:
    for other in analysis.methods:
        axis.plot(*lines[other][:2], color=OTHERS, linewidth=0.8, zorder=1)
    shown = [other for other in analysis.baselines if other not in REFERENCES]
    for style, other in zip(BASELINE_STYLES, shown, strict=False):
        if other != name:
            axis.plot(
                *lines[other][:2],
                color="#222222",
                linestyle=style,
                linewidth=0.9,
                zorder=2,
                label=short(other),
            )
    _references(axis, lines)
    places, mean, low, high = lines[name]
    colour = colour_of(analysis, name)
    axis.fill_between(places, low, high, color=colour, alpha=0.22, linewidth=0, zorder=3)
    axis.plot(places, mean, color=colour, linewidth=1.8, zorder=4)
    axis.set_title(short(name), fontsize=9, fontweight="bold")
    clean(axis)


def _references(axis: Any, lines: dict[str, Line]) -> None:
    """A course where there is one (the sweep), a level where there is one value."""
    for name, colour in REFERENCE_COLOURS.items():
        places, mean, *_ = lines.get(name, ((), (), (), ()))
        if len(places) > 1:
            axis.plot(places, mean, color=colour, linewidth=0.9, marker=".", zorder=2, label=name)
        elif mean:
            axis.axhline(mean[0], color=colour, linewidth=0.9, zorder=2, label=name)


def _mark_guidance(axis: Any, analysis: Analysis, name: str) -> None:
    axis.axvline(analysis.guidance, color="#BBBBBB", linewidth=0.8, zorder=0)
    summary = analysis.summaries[name]
    for scale in set(summary.best.guidance.values()) if summary.best else ():
        height = summary.sweep[scale].mean
        colour = colour_of(analysis, name)
        axis.plot(scale, height, "D", color=colour, markerfacecolor="white", markersize=5, zorder=5)


def _paired(analysis: Analysis) -> bytes:
    shown = {name: rows for name, rows in analysis.against.items() if rows}
    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    tallest = max(len(rows) for rows in shown.values())
    size = 1.2 + 3.6 * columns, lines * (0.9 + 0.34 * tallest)
    figure, axes = pyplot().subplots(
        lines, columns, figsize=size, squeeze=False, layout="constrained"
    )
    for axis, (baseline, rows) in zip(axes.flat, shown.items(), strict=False):
        _differences(axis, analysis, rows)
        axis.set_title(f"against {short(baseline)}", fontsize=9, fontweight="bold")
        axis.set_xlabel("difference in FID", fontsize=9)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    return png(figure)


def _differences(axis: Any, analysis: Analysis, rows: Sequence[Comparison]) -> None:
    axis.axvline(0, color="#222222", linewidth=1)
    for place, row in enumerate(rows):
        _difference(axis, row.fixed, place - 0.15, colour_of(analysis, row.method), "o")
        if row.best:
            _difference(axis, row.best, place + 0.17, colour_of(analysis, row.method), "D")
    # The joint intervals of few seeds are so wide that they would hide all else.
    found = [p.alone for row in rows for p in (row.fixed, row.best) if p and p.alone.count]
    ends = [0.0] + [e for a in found for e in (a.mean, a.low, a.high) if e is not None]
    room = 0.12 * (max(ends) - min(ends)) or 1.0
    axis.set_xlim(min(ends) - room, max(ends) + room)
    _rows(axis, [row.method for row in rows])


def _difference(axis: Any, paired: Paired, height: float, colour: str, marker: str) -> None:
    shade = colour if paired.joint.sign else "#999999"
    if paired.joint.low is not None:
        ends = [paired.joint.low, paired.joint.high]
        axis.plot(ends, [height, height], color=shade, linewidth=0.8)
    _mark(axis, paired.alone, height, shade, marker)
