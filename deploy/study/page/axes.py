"""What the study's figures have in common: colours, marks, scales, and how they become PNG."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from deploy.report.plots import rendered
from deploy.study.analysis.results import REFERENCES
from deploy.study.analysis.statistics import Analysis

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
REFERENCE_COLOURS = {"teacher": "#222222", "base": "#999999", "slots": "#777777"}
REFERENCE_STYLES = {"teacher": "-", "base": "--", "slots": ":"}
DPI = 110


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as found

    return found


def png(figure: Any) -> bytes:
    picture = rendered(figure, DPI)
    pyplot().close(figure)
    return picture


def colour_of(analysis: Analysis, name: str) -> str:
    if name in REFERENCES:
        return REFERENCE_COLOURS[name]
    return COLOURS[analysis.methods.index(name) % len(COLOURS)]


def clean(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def suit_scale(set_scale: Callable[..., Any], values: Iterable[float]) -> None:
    """Logarithmic where the values need it."""
    seen = [value for value in values if math.isfinite(value) and value > 0]
    if seen and max(seen) > 8 * min(seen):
        set_scale("log")


def plain_numbers(*axes: Any) -> None:
    """1, 2, 5, 10 on logarithmic axes (an `XAxis` or `YAxis`), not powers that overlap."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in axes:
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())


def short(name: str, most: int = 26) -> str:
    """A name that fits its place; `$` would start a formula."""
    return (name if len(name) <= most else f"{name[: most - 1]}…").replace("$", r"\$")
