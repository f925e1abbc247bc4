"""Small line charts as numbers for an SVG: no library draws while a run trains."""

from collections.abc import Mapping
from dataclasses import dataclass

from deploy.report.curve import Curve

WIDTH, HEIGHT = 320, 132
LEFT, RIGHT, TOP, BOTTOM = 46, 6, 8, 18
LABEL = 6
"""Characters that have room at the left."""
UNITS = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}


@dataclass(frozen=True, slots=True)
class Line:
    label: str
    points: str
    """As the attribute `points` of an SVG's polyline."""


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    lines: list[Line]
    low: str
    high: str
    first: str
    last: str


def chart(title: str, curves: Mapping[str, Curve]) -> Chart | None:
    """None where there is nothing to see."""
    found = {label: points for label, curve in curves.items() if (points := curve.points())}
    if not found:
        return None
    steps = [step for points in found.values() for step, _ in points]
    values = [value for points in found.values() for _, value in points]
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    if 0 <= low < high / 2:
        low = 0.0
    across, up = (last - first) or 1.0, (high - low) or 1.0
    lines = []
    for label, points in found.items():
        places = (
            (
                LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / across,
                HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / up,
            )
            for step, value in points
        )
        lines.append(Line(label, " ".join(f"{x:.1f},{y:.1f}" for x, y in places)))
    return Chart(title, lines, _short(low), _short(high), f"{first:,.0f}", f"{last:,.0f}")


def _short(value: float) -> str:
    """Three digits, as far as there is room."""
    rounded = float(f"{value:.3g}")
    for unit, size in UNITS.items():
        if size <= abs(rounded) < 1000 * size:
            return f"{rounded / size:.3g}{unit}"
    texts = [f"{value:.{digits}g}" for digits in (3, 2, 1)]
    return next((text for text in texts if len(text) <= LABEL), texts[-1])
