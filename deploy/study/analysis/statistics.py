"""From measurements to summaries, paired comparisons and what may be said of them.

Every method is judged at the study's fixed guidance and at a guidance of its own. The second is
chosen for each seed by the other seeds, so that the reported FID had no part in the choice.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from deploy.study.analysis.guidance import Best, choose_guidance
from deploy.study.analysis.intervals import Estimate, Paired, compare, estimate
from deploy.study.analysis.results import BASE, METRICS, REFERENCES, TEACHER, Measurement

Finals = dict[float, dict[int, Measurement]]
"""The last step of a method's cells, by guidance and seed."""


@dataclass(frozen=True)
class Curve:
    """FID at the fixed guidance during training: mean, lowest and highest over the seeds."""

    steps: tuple[float, ...]
    seconds: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Summary:
    """One method over its seeds."""

    method: str
    fixed: dict[str, Estimate]
    """By metric, at the fixed guidance."""
    fid: dict[int, float]
    """FID by seed at the fixed guidance."""
    best: Best | None
    """None where no sweep was measured."""
    sweep: dict[float, Estimate]
    """FID by guidance."""
    curve: Curve


@dataclass(frozen=True)
class Comparison:
    """A method against a baseline, at the fixed guidance and at the best of each."""

    method: str
    baseline: str
    fixed: Paired
    best: Paired | None
    missing: tuple[int, ...]
    """Seeds that one of the two lacks."""


@dataclass(frozen=True)
class Analysis:
    """All that the page shows; see `analyse`."""

    measurements: tuple[Measurement, ...]
    guidance: float
    methods: tuple[str, ...]
    baselines: tuple[str, ...]
    seeds: tuple[int, ...]
    summaries: dict[str, Summary]
    """References first (where measured), then the methods in their order."""
    against: dict[str, tuple[Comparison, ...]]
    """By baseline. All of them together are one family."""
    ablation: tuple[Comparison, ...]
    """Each method of the ablation against the one before it; a family of their own."""
    reference: Comparison | None
    """The teacher against the base student."""
    gaps: tuple[str, ...]
    """What was not measured, or is not a number, in sentences."""


def analyse(
    measurements: Iterable[Measurement],
    *,
    methods: Sequence[str],
    baselines: Sequence[str],
    guidance: float,
    ablation: Sequence[str] = (),
) -> Analysis:
    """Summaries, paired comparisons and gaps of a study, at the fixed `guidance`.

    `methods` are shown in their order; rows of others are left out, and of rows that agree in
    method, seed, step and guidance the last one counts. `baselines` may hold references;
    none is compared again with a baseline before it. `ablation` orders some of the methods.

    Raises:
        ValueError: a name is unknown or reserved, or appears twice.
    """
    _check_names(methods, baselines, ablation)
    names = (*REFERENCES, *methods)
    rows = {(m.method, m.seed, m.step, m.guidance): m for m in measurements if m.method in names}
    seeds = tuple(sorted({seed for _, seed, _, _ in rows}))
    finals = {name: _finals(name, rows.values()) for name in names}
    finals = {name: found for name, found in finals.items() if found or name in methods}
    sweep = sorted({scale for found in finals.values() for scale in found})
    summaries = _summaries(finals, rows.values(), sweep, guidance)
    against = _family(_pairs(methods, baselines), summaries, seeds)
    reference = _family([(TEACHER, BASE)], summaries, seeds)
    return Analysis(
        measurements=tuple(rows.values()),
        guidance=guidance,
        methods=tuple(methods),
        baselines=tuple(baselines),
        seeds=seeds,
        summaries=summaries,
        against={name: tuple(c for c in against if c.baseline == name) for name in baselines},
        ablation=_family(list(zip(ablation[1:], ablation, strict=False)), summaries, seeds),
        reference=reference[0] if summaries.keys() >= {TEACHER, BASE} else None,
        gaps=tuple(_gaps(finals, seeds, sweep, guidance)),
    )


def _pairs(methods: Sequence[str], baselines: Sequence[str]) -> list[tuple[str, str]]:
    return [
        (method, baseline)
        for place, baseline in enumerate(baselines)
        for method in methods
        if method not in baselines[: place + 1]
    ]


def _check_names(methods: Sequence[str], baselines: Sequence[str], ablation: Sequence[str]) -> None:
    for names in (methods, baselines, ablation):
        if len(set(names)) < len(names):
            raise ValueError(f"names appear twice in {list(names)}")
    if reserved := set(methods) & set(REFERENCES):
        raise ValueError(f"{sorted(reserved)} are names of the references, not of methods")
    if unknown := {*baselines, *ablation} - {*methods, *REFERENCES}:
        raise ValueError(f"{sorted(unknown)} are no methods of the study; it has {list(methods)}")


def _finals(method: str, rows: Iterable[Measurement]) -> Finals:
    """The rows of each cell's last step; step 0 of a method is only where its curve starts."""
    cells: dict[int, list[Measurement]] = {}
    for row in rows:
        if row.method == method and (row.step > 0 or method in REFERENCES):
            cells.setdefault(row.seed, []).append(row)
    found: Finals = {}
    for seed, cell in cells.items():
        last = max(row.step for row in cell)
        for row in cell:
            if row.step == last:
                found.setdefault(row.guidance, {})[seed] = row
    return found


def _summaries(
    finals: Mapping[str, Finals],
    rows: Iterable[Measurement],
    sweep: Sequence[float],
    guidance: float,
) -> dict[str, Summary]:
    fixed = [row for row in rows if row.guidance == guidance and math.isfinite(row.fid)]
    return {
        name: _summary(name, found, sweep, guidance, _courses(name, fixed))
        for name, found in finals.items()
    }


def _summary(
    method: str,
    finals: Finals,
    sweep: Sequence[float],
    guidance: float,
    courses: Sequence[Sequence[Measurement]],
) -> Summary:
    fixed = finals.get(guidance, {})
    by_metric = {metric: _values(fixed, metric) for metric in METRICS}
    by_guidance = {scale: _values(finals[scale]) for scale in sorted(finals)}
    return Summary(
        method=method,
        fixed={metric: estimate(list(values.values())) for metric, values in by_metric.items()},
        fid=by_metric["fid"],
        best=choose_guidance(by_guidance, sweep),
        sweep={g: estimate(list(v.values())) for g, v in by_guidance.items() if v},
        curve=_curve(courses),
    )


def _values(rows: Mapping[int, Measurement], metric: str = "fid") -> dict[int, float]:
    """A metric by seed, where it is a number."""
    found = {seed: getattr(row, metric) for seed, row in sorted(rows.items())}
    return {n: value for n, value in found.items() if value is not None and math.isfinite(value)}


def _courses(method: str, rows: Iterable[Measurement]) -> list[list[Measurement]]:
    """A seed's evaluations at the fixed guidance in order, from the base student on."""
    courses: dict[int, dict[int, Measurement]] = {}
    start: dict[int, Measurement] = {}
    for row in rows:
        if row.method == method:
            courses.setdefault(row.seed, {})[row.step] = row
        if row.method == BASE:
            start[row.seed] = row
    for seed in courses.keys() & start.keys() if method not in REFERENCES else ():
        courses[seed][0] = start[seed]
    return [[course[step] for step in sorted(course)] for course in courses.values()]


def _curve(courses: Sequence[Sequence[Measurement]]) -> Curve:
    """Seeds are aligned by the number of the evaluation and at their ends.

    With a budget of seconds, seeds end at different steps: the k-th evaluations are averaged over
    seeds, in steps, seconds and FID alike, and so are the last ones.
    """
    shared = min((len(course) for course in courses), default=0)
    columns = [[course[k] for course in courses] for k in range(shared - 1)]
    columns += [[course[-1] for course in courses]] if shared else []
    fids = [[row.fid for row in column] for column in columns]
    return Curve(
        steps=tuple(math.fsum(r.step for r in column) / len(column) for column in columns),
        seconds=tuple(math.fsum(r.seconds for r in column) / len(column) for column in columns),
        mean=tuple(math.fsum(column) / len(column) for column in fids),
        low=tuple(min(column) for column in fids),
        high=tuple(max(column) for column in fids),
    )


def _family(
    pairs: Sequence[tuple[str, str]], summaries: Mapping[str, Summary], seeds: Sequence[int]
) -> tuple[Comparison, ...]:
    """Compare pairs by name; the fixed and the best guidance are adjusted each for itself."""
    found = [(summaries.get(method), summaries.get(other)) for method, other in pairs]
    fixed = compare([(a.fid if a else {}, b.fid if b else {}) for a, b in found])
    best = compare([(_best_fid(a), _best_fid(b)) for a, b in found])
    return tuple(
        Comparison(
            method=method,
            baseline=other,
            fixed=at_fixed,
            best=at_best if at_best.seeds else None,
            missing=tuple(seed for seed in seeds if seed not in at_fixed.seeds),
        )
        for (method, other), at_fixed, at_best in zip(pairs, fixed, best, strict=True)
    )


def _best_fid(summary: Summary | None) -> Mapping[int, float]:
    return summary.best.fid if summary and summary.best else {}


def _gaps(
    finals: Mapping[str, Finals],
    seeds: Sequence[int],
    sweep: Sequence[float],
    guidance: float,
) -> Iterable[str]:
    for name, by_guidance in finals.items():
        for seed in seeds:
            found = {scale: rows[seed] for scale, rows in by_guidance.items() if seed in rows}
            if guidance not in found:
                yield f"{name}, seed {seed}: no final evaluation at the fixed guidance."
            elif broken := [g for g in sorted(found) if not math.isfinite(found[g].fid)]:
                where = ", ".join(f"{g:g}" for g in broken)
                yield f"{name}, seed {seed}: FID is not a number at guidance {where}."
            if found and (absent := [g for g in sweep if g not in found]):
                where = ", ".join(f"{g:g}" for g in absent)
                yield f"{name}, seed {seed}: not measured at guidance {where}."
