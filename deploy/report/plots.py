"""Plots of a run: the course of training, and what the contexts looked like (docs/method.md,
"Diagnostics").

Nothing is drawn that was not measured: a panel without numbers says why it is empty.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from common.exchange.provenance import DATA
from common.files.atomic import write_atomically

Rows = Sequence[Mapping[str, Any]]

COLOURS = {DATA: "#0072B2", "student": "#D55E00", "teacher": "#009E73"}
"""A context keeps its colour; all are of Okabe and Ito's palette, which any eye can tell apart."""
OTHER_COLOUR = "#CC79A7"
STAGE_COLOURS = ("#56B4E9", "#000000", "#E69F00", "#009E73")
NO_ROLLOUTS = "no student contexts in this run"
NO_CLUSTERS = "no codebook clusters in this run"
FEW_SLOTS = 32
"""Up to so many slots, each has its dot."""
STAGES = {
    "wait": "learner waits for a batch",
    "step": "learner: step, publish, commit",
    "rollout": "workers: sampling",
    "teacher": "teacher: scoring",
}
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
}


def curves(rows: Rows, fid: Mapping[str, float]) -> bytes:
    """A PNG: loss, survival and confidence, staleness and buffer, and FID before and after."""

    def draw(figure: Any) -> None:
        axes = figure.subplots(2, 2)
        panels = [
            (
                axes[0, 0],
                "divergence per token (nats)",
                [f"divergence/{name}" for name in _contexts(rows)],
            ),
            (
                axes[0, 1],
                "gate on student rollouts",
                [f"{what}/{name}" for name in _rollouts(rows) for what in ("survival", "weight")],
            ),
            (
                axes[1, 0],
                "staleness (steps) and waiting (s)",
                ("lag_mean", "lag_max", "seconds/wait"),
            ),
        ]
        for axis, title, names in panels:
            for name in names:
                points = [(row["step"], row[name]) for row in rows if name in row]
                if points:
                    steps, values = zip(*points, strict=True)
                    axis.plot(steps, _smooth(values), label=name, linewidth=1.2)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("learner step")
            if axis.lines:
                axis.legend(fontsize=8)
        bars = axes[1, 1].bar(list(fid), list(fid.values()), color="0.6")
        axes[1, 1].bar_label(bars, fmt="%.3g", fontsize=8)
        axes[1, 1].set_title("FID (lower is better)", fontsize=10)
        axes[1, 1].tick_params(axis="x", labelsize=8)

    return _png(draw, size=(10, 6.4), style={})


def diagnostics(
    rows: Rows, profiles: Sequence[Mapping[str, Any]], *, tau: float | None = None
) -> bytes:
    """A PNG: confidence, survival and divergence by slot; clusters, entropies, seconds over steps.

    `profiles` are windows of learner/profile.py in order; `tau` is the gate's threshold, where
    confidence is what it is compared with.
    """

    def draw(figure: Any) -> None:
        draw_diagnostics(figure, rows, profiles, tau)

    return _png(draw, size=(10, 12.5), style=STYLE)


def draw_diagnostics(
    figure: Any, rows: Rows, profiles: Sequence[Mapping[str, Any]], tau: float | None
) -> None:
    """The six panels on an empty figure."""
    confidence, survival, clusters, entropy, seconds, divergence = figure.subplots(3, 2).flat
    rollouts = _rollouts(rows)
    none = "nothing was recorded" if profiles else "no window of learner.profile_every steps ended"
    on_rollouts = none if rollouts else NO_ROLLOUTS

    _by_slot(confidence, profiles, "confidence", "confidence 1 - H / log V")
    if tau is not None and confidence.lines:
        confidence.axhline(
            tau, color="0.35", linestyle=":", label=f"threshold of the gate {tau:.3g}"
        )
    _finish(confidence, "Confidence of the teacher by position", none)
    _by_slot(survival, profiles, "survival_by_distance", "share of slots that are open")
    survival.set(xlabel="slots after the first sampled one", ylim=(0, 1.04))
    _finish(survival, "Survival of the gate", on_rollouts, from_zero=False)
    terms = {"between_clusters": "between clusters", "within_clusters": "within"}
    _over_steps(clusters, rows, terms)
    _finish(
        clusters, "Divergence between and within clusters", NO_CLUSTERS if rollouts else NO_ROLLOUTS
    )
    _over_steps(entropy, rows, {"teacher_entropy": "teacher", "student_entropy": "student"})
    title = "Entropy (the student's: of open slots)"
    _finish(entropy, title, "nothing was recorded", from_zero=False)
    for (stage, label), colour in zip(STAGES.items(), STAGE_COLOURS, strict=True):
        _line(seconds, rows, f"seconds/{stage}", label, colour, "-")
    seconds.set(xlabel="learner step", ylabel="seconds per step")
    _finish(seconds, "Seconds by stage", "nothing was recorded")
    _by_slot(divergence, profiles, "divergence", "nats per token")
    _finish(divergence, "Divergence by position (open slots)", none)
    if not rollouts:
        for axis in (axis for axis in (confidence, divergence) if axis.lines):
            _say(axis, NO_ROLLOUTS)


def _by_slot(axis: Any, profiles: Sequence[Mapping[str, Any]], name: str, unit: str) -> None:
    """The first window dashed, the last one solid, a colour per context."""
    axis.set(xlabel="slot, in the order of decoding", ylabel=unit)
    first_and_last = {0: "--", len(profiles) - 1: "-"} if profiles else {}
    for index, style in first_and_last.items():
        window = profiles[index]
        for curve, found in window["curves"].items():
            quantity, context = curve.split("/")
            if quantity == name:
                # A slot where nothing was counted is a gap.
                mean = [float("nan") if value is None else value for value in found["mean"]]
                axis.plot(
                    mean,
                    style,
                    label=f"{context}, steps {window['first']}-{window['last']}",
                    color=_colour(context),
                    alpha=0.7 if style == "--" else 1.0,
                    marker="o" if len(mean) <= FEW_SLOTS else None,
                    markersize=3,
                )


def _over_steps(axis: Any, rows: Rows, labels: Mapping[str, str]) -> None:
    """Two metrics per context over steps: the first solid, the second dashed."""
    axis.set(xlabel="learner step", ylabel="nats per token")
    for context in _contexts(rows):
        for (name, label), style in zip(labels.items(), ("-", "--"), strict=True):
            text = f"{label}, {context} contexts"
            _line(axis, rows, f"{name}/{context}", text, _colour(context), style)


def _line(axis: Any, rows: Rows, name: str, label: str, colour: str, style: str) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if points:
        steps, values = zip(*points, strict=True)
        axis.plot(steps, _smooth(values), style, label=label, color=colour)


def _finish(axis: Any, title: str, empty: str, *, from_zero: bool = True) -> None:
    """Title and legend, or a word on why there is nothing to see."""
    axis.set_title(title)
    if axis.lines:
        if (
            from_zero and axis.dataLim.ymin >= 0
        ):  # a policy gradient's loss is no divergence, and may be below
            axis.set_ylim(0, 1.06 * axis.dataLim.ymax or 1)
        axis.locator_params(axis="x", nbins=7, integer=True)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    else:
        _say(axis, empty)
        axis.set(xticks=[], yticks=[], ylabel="", xlabel="")


def _say(axis: Any, text: str) -> None:
    place = {"transform": axis.transAxes, "ha": "center", "va": "center"}
    axis.text(0.5, 0.06 if axis.lines else 0.5, text, color="0.35", fontsize=10, **place)


def _contexts(rows: Rows) -> list[str]:
    """Contexts with at least one row in the run, data first."""
    seen = {
        key.split("/")[1] for row in rows for key in row if key.startswith("share/") and row[key]
    }
    return sorted(seen, key=lambda name: (name != DATA, name))


def _rollouts(rows: Rows) -> list[str]:
    """Contexts with slots that the student sampled: those alone have a survival."""
    return [name for name in _contexts(rows) if any(f"survival/{name}" in row for row in rows)]


def _colour(context: str) -> str:
    return COLOURS.get(context, OTHER_COLOUR)


def _png(draw: Callable[[Any], None], *, size: tuple[float, float], style: dict[Any, Any]) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(style):
        figure = pyplot.figure(figsize=size, layout="constrained")
        draw(figure)
        picture = rendered(figure, dpi=100)
        pyplot.close(figure)
    return picture


def rendered(figure: Any, dpi: int) -> bytes:
    """A figure of Matplotlib as PNG; its layout is settled before, else all is drawn twice."""
    figure.set_dpi(dpi)
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine(None)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=dpi)
    return data.getvalue()


def save(path: Path, picture: bytes) -> None:
    """Write a PNG."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(picture)

    write_atomically(path, write)


def _smooth(values: Sequence[float]) -> list[float]:
    """Trailing mean over a hundredth of the run, so that single batches do not hide the course."""
    window = max(5, len(values) // 100)
    series = torch.tensor(values, dtype=torch.double)
    total = torch.cat([torch.zeros(1, dtype=torch.double), series.cumsum(0)])
    ends = torch.arange(1, len(series) + 1)
    starts = (ends - window).clamp_min(0)
    return ((total[ends] - total[starts]) / (ends - starts)).tolist()
