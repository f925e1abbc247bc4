"""The analysis as rows: summary.csv and paired.csv, and the main table for people."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from deploy.report.page import one_line
from deploy.study.analysis.intervals import Estimate, Paired, estimate
from deploy.study.analysis.results import METRICS, NATS, REWARDS, CellFacts
from deploy.study.analysis.statistics import Analysis, Comparison, Summary
from deploy.study.analysis.verdicts import left_out, number, span, statement, verdict

TITLES = {"fid": "FID", "kid": "KID", "precision": "precision", "recall": "recall"}
TITLES |= {"inception_score": "Inception score", "data_nll": "-log q of data"}
TITLES |= {"reverse_kl": "KL(student, teacher)", "forward_kl": "KL(teacher, student)"}
TITLES |= {"acceptance": "acceptance", "entropy": "entropy"}
TITLES |= {"reward": "reward", "reward_of_data": "reward of data"}


@dataclass(frozen=True)
class SummaryRow:
    """A mean over seeds and its 95 % t-interval."""

    method: str
    view: str
    """"fixed": at the fixed guidance; "sweep": at this guidance; "best": at the chosen ones."""
    guidance: float | None
    metric: str
    mean: float | None
    """Empty where no seed has a number."""
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class PairedRow:
    """FID of a method minus FID of what it is compared with."""

    family: str
    """"baselines", "ablation" or "reference": what p_holm and the joint interval count."""
    method: str
    baseline: str
    view: str
    """"fixed" or "best" guidance."""
    seeds: int
    difference: float | None
    """Empty where no seed has both."""
    low: float | None
    high: float | None
    joint_low: float | None
    joint_high: float | None
    joint_half_width: float | None
    p_t: float | None
    p_holm: float | None
    p_flip: float | None
    smallest_p_flip: float | None
    verdict: str


def summary_rows(analysis: Analysis) -> Iterator[SummaryRow]:
    for name, summary in analysis.summaries.items():
        for metric in measured(analysis):
            yield _summary_row(name, "fixed", analysis.guidance, metric, summary.fixed[metric])
        if summary.best:
            found = estimate(list(summary.best.fid.values()))
            yield _summary_row(name, "best", None, "fid", found)
        for guidance, found in summary.sweep.items():
            yield _summary_row(name, "sweep", guidance, "fid", found)


def _summary_row(
    method: str, view: str, guidance: float | None, metric: str, found: Estimate
) -> SummaryRow:
    bounds = found.mean if found.count else None, found.low, found.high, found.count
    return SummaryRow(method, view, guidance, metric, *bounds)


def paired_rows(analysis: Analysis) -> Iterator[PairedRow]:
    families: dict[str, Sequence[Comparison]] = {
        "baselines": [row for rows in analysis.against.values() for row in rows],
        "ablation": analysis.ablation,
        "reference": [analysis.reference] if analysis.reference else [],
    }
    for family, comparisons in families.items():
        for row in comparisons:
            said = verdict(row, analysis.guidance)
            yield _paired_row(family, row, "fixed", row.fixed, said)
            if row.best:
                yield _paired_row(family, row, "best", row.best, said)


def _paired_row(family: str, row: Comparison, view: str, paired: Paired, said: str) -> PairedRow:
    return PairedRow(
        family=family,
        method=row.method,
        baseline=row.baseline,
        view=view,
        seeds=len(paired.seeds),
        difference=paired.alone.mean if paired.seeds else None,
        low=paired.alone.low,
        high=paired.alone.high,
        joint_low=paired.joint.low,
        joint_high=paired.joint.high,
        joint_half_width=paired.joint.half_width,
        p_t=paired.p_t,
        p_holm=paired.p_holm,
        p_flip=paired.p_flip,
        smallest_p_flip=paired.smallest_p_flip,
        verdict=said,
    )


def measured(analysis: Analysis) -> list[str]:
    """The metrics that anything has a number of; FID first."""
    found = analysis.summaries.values()
    return [
        metric
        for metric in METRICS
        if metric not in (*NATS, *REWARDS) or any(summary.fixed[metric].count for summary in found)
    ]


def main_header(analysis: Analysis) -> list[str]:
    """Columns of the main table; metrics without a guidance in their title are at the fixed one."""
    others = [TITLES[metric] for metric in measured(analysis)[1:]]
    fixed = f"FID at guidance {analysis.guidance:g}"
    return ["method", "seeds", fixed, "FID at best guidance", "chosen", *others]


def main_table(analysis: Analysis) -> list[list[str]]:
    """A row per reference and method: means with their intervals, as text."""
    others = measured(analysis)[1:]
    return [_main_row(summary, others) for summary in analysis.summaries.values()]


def _main_row(summary: Summary, others: Sequence[str]) -> list[str]:
    fixed = summary.fixed
    best, chosen = "", ""
    if summary.best:
        best = with_interval(estimate(list(summary.best.fid.values())))
        best += " (optimistic)" if summary.best.optimistic else ""
        counts = Counter(summary.best.guidance.values())
        ends = summary.best.at_edge
        chosen = ", ".join(
            f"{scale:g}{' (end of sweep)' if scale in ends else ''}"
            + (f" x{times}" if len(counts) > 1 else "")
            for scale, times in sorted(counts.items())
        )
    cells = [with_interval(fixed[metric]) for metric in others]
    count = str(fixed["fid"].count)
    return [summary.method, count, with_interval(fixed["fid"]), best, chosen, *cells]


def with_interval(found: Estimate) -> str:
    """The mean, then its interval in brackets, on a line of its own, if there is one."""
    if not found.count:
        return "-"
    mean, bounds = number(found.mean, found.half_width), span(found)
    return f"{mean}\n[{bounds}]" if bounds else mean


PAIRED_HEADER = ["method", "guidance", "seeds", "difference", "95 % alone", "95 % joint"]
PAIRED_HEADER += ["half-width", "p (t)", "p (Holm)", "p (sign flip)", "verdict"]


def paired_table(rows: Sequence[Comparison], guidance: float) -> list[list[str]]:
    """A row per comparison; cells have a line for the fixed guidance and one for the best."""
    return [_comparison_row(row, guidance) for row in rows]


def _comparison_row(row: Comparison, guidance: float) -> list[str]:
    lines = [[f"{guidance:g}", *_paired_cells(row.fixed)]]
    if row.best:
        lines.append(["best", *_paired_cells(row.best)])
    cells = ["\n".join(column) for column in zip(*lines, strict=True)]
    return [row.method, *cells, f"{statement(row, guidance)}.{left_out(row)}"]


def _paired_cells(paired: Paired) -> list[str]:
    p_values = [_p(paired.p_t), _p(paired.p_holm), _p(paired.p_flip)]
    if paired.smallest_p_flip is not None:
        p_values[-1] += f" (min {_p(paired.smallest_p_flip)})"
    width = paired.joint.half_width
    return [
        str(len(paired.seeds)),
        number(paired.alone.mean, paired.alone.half_width),
        span(paired.alone) or "-",
        span(paired.joint) or "-",
        "-" if width is None else number(width),
        *p_values,
    ]


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value >= 1e-4 else "< 0.0001"


COST_HEADER = ["method", "cells", "steps", "images", "seconds", "seconds per step"]
COST_HEADER += ["gate survival", "device"]


def cost_table(methods: Sequence[str], facts: Sequence[CellFacts]) -> list[list[str]]:
    """Means over the cells of each method."""
    found = []
    for method in methods:
        cells = [cell for cell in facts if cell.method == method]
        if not cells:
            continue
        survival = [cell.survival for cell in cells if cell.survival is not None]
        found.append(
            [
                method,
                str(len(cells)),
                f"{fmean(cell.steps for cell in cells):.0f}",
                f"{fmean(cell.images for cell in cells):.0f}",
                f"{fmean(cell.seconds for cell in cells):.1f}",
                f"{fmean(cell.seconds_per_step for cell in cells):.3g}",
                f"{fmean(survival):.1%}" if survival else "-",
                ", ".join(sorted({cell.device for cell in cells})),
            ]
        )
    return found


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells may hold anything."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(one_line, line))} |\n" for line in lines)
