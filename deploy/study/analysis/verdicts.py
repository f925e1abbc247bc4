"""What the intervals allow to be said, in words; nothing else on the page judges a method.

A direction is named only where the joint interval excludes zero. Equal words are used in both
directions, and "lower FID" stands for itself: FID is what was measured, not what is good.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import median

from deploy.study.analysis.intervals import Estimate, Paired
from deploy.study.analysis.statistics import Analysis, Comparison

SHIFT = "may be a shift along the guidance axis"


def number(value: float, half_width: float | None = None) -> str:
    """A number with as many decimals as two digits of its half-width, or three digits.

    More where it would else read as zero: a bound has to show its side of zero.
    """
    if not math.isfinite(value):
        return "-"
    measured = half_width if half_width and math.isfinite(half_width) else None
    scale = measured or abs(value)
    digits = 2 if measured else 3
    decimals = max(0, digits - 1 - math.floor(math.log10(scale))) if scale else 0
    while value and decimals < 12 and not float(f"{value:.{decimals}f}"):
        decimals += 1
    return f"{value:.{decimals}f}"


def span(found: Estimate) -> str:
    """The interval as text; empty where there is none."""
    if found.low is None or found.high is None:
        return ""
    return f"{number(found.low, found.half_width)} to {number(found.high, found.half_width)}"


def verdict(comparison: Comparison, guidance: float) -> str:
    """One sentence on FID of the method against its baseline, with differences and intervals."""
    fixed, best = comparison.fixed, comparison.best
    said = statement(comparison, guidance)
    if fixed.joint.sign is not None:
        said += f" (at guidance {guidance:g}: {_difference(fixed)}"
        if best and best.joint.sign is not None:
            said += f"; at the best guidance of each: {_difference(best)}"
        said += ")"
    return f"{said}.{left_out(comparison)}"


def left_out(comparison: Comparison) -> str:
    """A sentence on seeds that one of the two lacks."""
    if not comparison.missing:
        return ""
    seeds = ", ".join(map(str, comparison.missing))
    return f" Without seed {seeds}, which may flatter either."


def statement(comparison: Comparison, guidance: float) -> str:
    """The verdict without its numbers.

    "lower FID" without a condition needs the joint interval below zero at the fixed guidance and
    at the best guidance of each.
    """
    name, fixed = comparison.baseline, comparison.fixed.joint.sign
    if fixed is None:
        return f"cannot be compared with {name}: {_why_not(comparison.fixed)}"
    said = f"{_direction(fixed)} {name} at guidance {guidance:g}"
    best = comparison.best.joint.sign if comparison.best else None
    if best is None:
        return f"{said}, but without a sweep to check it {SHIFT}" if fixed else said
    if fixed == best:
        return f"{said} and at the best guidance of each"
    said += f", but {_direction(best)} {name} at the best guidance of each"
    return f"{said}, so it {SHIFT}" if fixed else said


def _direction(sign: int) -> str:
    return {-1: "lower FID than", 0: "not distinguishable from", 1: "higher FID than"}[sign]


def _difference(paired: Paired) -> str:
    mean = number(paired.joint.mean, paired.joint.half_width)
    return f"difference {mean}, interval {span(paired.joint)}"


def _why_not(paired: Paired) -> str:
    count = len(paired.seeds)
    if count < 2:
        return f"{count or 'no'} common seed{'' if count == 1 else 's'}, and an interval needs two"
    return f"the difference is the same on all {count} seeds, so they measure no spread"


def conclusions(analysis: Analysis) -> list[str]:
    """What the data support and what they do not, in sentences.

    Numbers behind a method are the difference at the fixed guidance and its joint interval.
    """
    found = [] if analysis.reference is None else [_on_reference(analysis)]
    for comparisons in analysis.against.values():
        found += _on_baseline(comparisons, analysis.guidance)
    found += [
        f"Ablation, {row.method}: {verdict(row, analysis.guidance)}" for row in analysis.ablation
    ]
    return found + _cautions(analysis)


def _on_reference(analysis: Analysis) -> str:
    assert analysis.reference is not None
    said = verdict(analysis.reference, analysis.guidance)
    lower = analysis.reference.fixed.joint.sign == -1
    doubt = "" if lower else " Without a gap to close, little can be learnt about distillation."
    return f"Teacher against base student, which all cells start from: {said}{doubt}"


def _on_baseline(rows: Sequence[Comparison], guidance: float) -> list[str]:
    """A sentence for each kind of verdict, with the methods it holds for."""
    groups: dict[str, list[str]] = {}
    for row in sorted(rows, key=_order):
        bounds = span(row.fixed.joint)
        numbers = (
            f" ({number(row.fixed.joint.mean, row.fixed.joint.half_width)}; {bounds})"
            if bounds
            else ""
        )
        groups.setdefault(statement(row, guidance), []).append(row.method + numbers)
    return [f"{said[0].upper()}{said[1:]}: {', '.join(who)}." for said, who in groups.items()]


def _order(row: Comparison) -> tuple[int, int]:
    """Lower FID first, higher FID next to last, what cannot be compared last."""
    signs = row.fixed.joint.sign, row.best.joint.sign if row.best else None
    first, second = (2 if sign is None else sign for sign in signs)
    return first, second


def _cautions(analysis: Analysis) -> list[str]:
    count = len(analysis.seeds)
    cautions = [
        "What cannot be said: nothing about the order of methods whose intervals cover zero, "
        "however their means lie; nothing about other data, models, budgets, settings or measures "
        "of quality; and nothing about another teacher or base student, because all seeds share "
        "them."
    ]
    if count < 2:
        cautions.append("With a single seed there are no intervals: no method can be told apart.")
    widths = _half_widths(row for rows in analysis.against.values() for row in rows)
    if widths:
        cautions.append(
            f"With {count} seeds and {len(widths)} comparisons at the fixed guidance, a difference "
            f"in FID had to exceed {number(min(widths))} to {number(max(widths))} (median "
            f"{number(median(widths))}), by comparison, to be told from none."
        )
    if 2 <= count <= 5:
        cautions.append(
            f"The sign-flip test cannot go below p = {2.0 ** (1 - count):g} with {count} seeds, so "
            "it cannot confirm any difference at 5 %; the t-intervals rest on normal differences."
        )
    return cautions


def _half_widths(rows: Iterable[Comparison]) -> list[float]:
    widths = [row.fixed.joint.half_width for row in rows]
    return [width for width in widths if width is not None]


def notes(analysis: Analysis) -> list[str]:
    """Doubts about the sweep: ends, single seeds, seeds left out."""
    found = []
    for name, summary in analysis.summaries.items():
        best = summary.best
        if best is None:
            continue
        if best.optimistic:
            found.append(f"{name}: best guidance chosen on the seed it is read at (optimistic).")
        if best.at_edge:
            ends = " and ".join(f"{scale:g}" for scale in best.at_edge)
            found.append(
                f"{name}: the chosen guidance lies at an end of the sweep ({ends}); the optimum "
                "may lie beyond."
            )
    return found
