"""What the intervals allow to be said, in words; nothing else on the page judges a method.

A direction is named only where the joint interval excludes zero. Equal words are used in both
directions, and "lower FID" stands for itself: FID is what was measured, not what is good.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import median

from deploy.study.intervals import Estimate, Paired
from deploy.study.statistics import Analysis, Comparison

SHIFT = "may be a shift along the guidance axis"


def number(value: float, half_width: float | None = None) -> str:
    """A number with as many decimals as two digits of its half-width, or three digits.

    More where it would else read as zero: a bound has to show its side of zero.
    """
    if not math.isfinite(value):
        return "-"
    scale = half_width or abs(value)
    digits = 2 if half_width else 3
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
    """One sentence on FID of the method against its baseline.

    "lower FID" without a condition needs the joint interval below zero at the fixed guidance and
    at the best guidance of each.
    """
    fixed, best = comparison.fixed, comparison.best
    name = comparison.baseline
    at_fixed = f"at guidance {guidance:g} ({_difference(fixed)})"
    if fixed.joint.sign is None:
        return f"cannot be compared with {name}: {_why_not(fixed)}.{_missing(comparison)}"
    if best is None or best.joint.sign is None:
        said = f"{_direction(fixed, name)} {at_fixed}"
        unknown = f"; no interval at other guidance, so this {SHIFT}" if fixed.joint.sign else ""
        return f"{said}{unknown}.{_missing(comparison)}"
    at_best = f"at the best guidance of each ({_difference(best)})"
    if fixed.joint.sign == best.joint.sign:
        return f"{_direction(fixed, name)} {at_fixed} and {at_best}.{_missing(comparison)}"
    said = f"{_direction(fixed, name)} {at_fixed}, but {_direction(best, name)} {at_best}"
    shift = f": it {SHIFT}" if fixed.joint.sign else ""
    return f"{said}{shift}.{_missing(comparison)}"


def _direction(paired: Paired, name: str) -> str:
    words = {-1: "lower FID than", 0: "not distinguishable from", 1: "higher FID than"}
    return f"{words[paired.joint.sign or 0]} {name}"


def _difference(paired: Paired) -> str:
    mean = number(paired.joint.mean, paired.joint.half_width)
    return f"difference {mean}, interval {span(paired.joint)}"


def _why_not(paired: Paired) -> str:
    count = len(paired.seeds)
    if count < 2:
        return f"{count or 'no'} common seed{'' if count == 1 else 's'}, and an interval needs two"
    return f"the difference is the same on all {count} seeds, so they measure no spread"


def _missing(comparison: Comparison) -> str:
    if not comparison.missing:
        return ""
    seeds = ", ".join(map(str, comparison.missing))
    return f" On common seeds only; without {seeds}, which may flatter either."


def conclusions(analysis: Analysis) -> list[str]:
    """What the data support and what they do not, in sentences."""
    found = [] if analysis.reference is None else [_on_reference(analysis)]
    for baseline, comparisons in analysis.against.items():
        found += _on_baseline(baseline, comparisons, analysis.guidance)
    found += [
        f"{row.method}, after {row.baseline} in the ablation: {verdict(row, analysis.guidance)}"
        for row in analysis.ablation
    ]
    return found + _cautions(analysis)


def _on_reference(analysis: Analysis) -> str:
    assert analysis.reference is not None
    said = verdict(analysis.reference, analysis.guidance)
    lower = analysis.reference.fixed.joint.sign == -1
    doubt = "" if lower else " Without a gap to close, little can be learnt about distillation."
    return f"The teacher against the student that all cells start from: {said}{doubt}"


def _on_baseline(baseline: str, rows: Sequence[Comparison], guidance: float) -> list[str]:
    """A sentence for each comparison that shows a direction, one for all the others."""
    told = [row for row in rows if _shows_direction(row)]
    unclear = [row.method for row in rows if row not in told and row.fixed.joint.sign is not None]
    untested = [row.method for row in rows if row.fixed.joint.sign is None]
    found = [f"{row.method}: {verdict(row, guidance)}" for row in told]
    if unclear:
        found.append(f"Not distinguishable from {baseline}: {', '.join(unclear)}.")
    if untested:
        found.append(f"Not comparable with {baseline}: {', '.join(untested)}.")
    return found


def _shows_direction(row: Comparison) -> bool:
    fixed, best = row.fixed.joint.sign, row.best.joint.sign if row.best else None
    return fixed is not None and bool(fixed or best)


def _cautions(analysis: Analysis) -> list[str]:
    count = len(analysis.seeds)
    cautions = [
        "What cannot be said: nothing about the order of methods whose intervals cover zero, however "
        "their means lie; nothing about other data, models, budgets, settings or measures of "
        "quality; and nothing about another teacher or base student, because all seeds share them."
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
