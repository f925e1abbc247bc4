"""The study as one self-contained HTML page, with its tables, figures and data inside.

The page needs no network and no script, can be read on a phone, and escapes every text from
outside; it is laid out in page.html.jinja.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image

from deploy.report.page import one_line
from deploy.study.analysis.results import (
    BASE,
    CellFacts,
    Measurement,
    SpeedRow,
    csv_text,
    write_bytes,
    write_csv,
)
from deploy.study.analysis.statistics import Analysis, Comparison
from deploy.study.analysis.tables import (
    COST_HEADER,
    PAIRED_HEADER,
    PairedRow,
    SummaryRow,
    cost_table,
    main_header,
    main_table,
    markdown,
    paired_rows,
    paired_table,
    summary_rows,
)
from deploy.study.analysis.verdicts import conclusions, notes
from deploy.study.page.definitions import DEFINITIONS
from deploy.study.page.figures import CAPTIONS
from deploy.study.page.speed import SPEED_HEADER, speed_table, speed_words

TEMPLATE = "page.html.jinja"
LOSSLESS_BYTES = 40_000
"""Sheets that are larger than this without loss are stored with some."""
TOLERANCE = 0.05
"""Share by which a cell may miss the median budget before the page says so."""


@dataclass(frozen=True)
class About:
    """What was run, for the head of the page."""

    title: str
    budget: str
    """The equal budget in words, such as "2000 steps of 64 images" or "600 s of training"."""
    equal: Literal["steps", "seconds"]
    """The field of CellFacts in which all cells should agree."""
    features: str
    """Feature space of the metrics, and number of samples and of real images."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Machine, load, commit, versions, digests of configs: shown in this order."""


def write_page(
    path: Path,
    analysis: Analysis,
    *,
    about: About,
    facts: Sequence[CellFacts],
    figures: Mapping[str, bytes],
    samples: Mapping[str, Image.Image],
    configs: Mapping[str, str],
    speed: Sequence[SpeedRow] = (),
) -> None:
    """Write the page to `path`, and its parts as files beside it.

    The parts are summary.md (its words, main table and figures), summary.csv, paired.csv and a
    PNG per figure.
    measurements.csv and cells.csv are inside the page; as files they are the caller's, who
    writes them while the study runs.

    Args:
        figures: `deploy.study.page.figures.draw`: PNG bytes by name.
        samples: grids of samples by model, made with the same labels and noise.
        configs: full config by method, as text.
        speed: milliseconds of an image, where they were measured (speed.csv).
    """
    page = render(
        analysis,
        about=about,
        facts=facts,
        figures=figures,
        samples=samples,
        configs=configs,
        speed=speed,
    )
    write_bytes(path, page.encode())
    summary = summary_markdown(analysis, about, figures, speed)
    write_bytes(path.with_name("summary.md"), summary.encode())
    write_csv(path.with_name("summary.csv"), SummaryRow, summary_rows(analysis))
    write_csv(path.with_name("paired.csv"), PairedRow, paired_rows(analysis))
    for name, data in figures.items():
        write_bytes(path.with_name(f"{name}.png"), data)


def summary_markdown(
    analysis: Analysis,
    about: About,
    figures: Iterable[str] = (),
    speed: Sequence[SpeedRow] = (),
) -> str:
    """The page's words, main table and figures in Markdown, to be kept beside the study."""
    facts = [f"- {name}: {one_line(text)}" for name, text in about.details.items()]
    lines = [
        f"# {one_line(about.title)}",
        "",
        _run_in_words(analysis, about),
        "",
        *facts,
        "",
        "## What the data support",
        "",
        f"Behind a method: its mean difference in FID at guidance {analysis.guidance:g} and the "
        "joint interval.",
        "",
        *(f"- {one_line(sentence)}" for sentence in conclusions(analysis)),
        "",
        markdown(main_header(analysis), main_table(analysis)),
    ]
    if speed:
        lines += [speed_words(speed), "", markdown(SPEED_HEADER, speed_table(speed))]
    lines += [f"![{CAPTIONS.get(name, name)}]({name}.png)\n" for name in figures]
    return "\n".join(lines)


def render(
    analysis: Analysis,
    *,
    about: About,
    facts: Sequence[CellFacts],
    figures: Mapping[str, bytes],
    samples: Mapping[str, Image.Image],
    configs: Mapping[str, str],
    speed: Sequence[SpeedRow] = (),
) -> str:
    """The page as text; arguments as for `write_page`."""
    sheets = {name: _data("image/webp", thumbnail(image)) for name, image in samples.items()}
    drawn = {
        CAPTIONS.get(name, name): _data("image/webp", lossless(png))
        for name, png in figures.items()
    }
    return _template().render(
        title=about.title,
        words=_run_in_words(analysis, about),
        details=about.details,
        guidance=f"{analysis.guidance:g}",
        conclusions=conclusions(analysis),
        doubts=[*analysis.gaps, *uneven(facts, about.equal), *notes(analysis)],
        main=(main_header(analysis), main_table(analysis)),
        comparisons=list(_comparisons(analysis)),
        cost=(COST_HEADER, cost_table(analysis.methods, facts)),
        speed=Section("Speed", speed_words(speed), SPEED_HEADER, speed_table(speed)),
        figures=_pictures(drawn),
        samples=_pictures(sheets),
        definitions=DEFINITIONS,
        downloads=_downloads(analysis, facts, speed),
        configs=configs,
    )


def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    page = Environment(
        loader=loader,
        autoescape=True,  # names of methods and classes come from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return page.get_template(TEMPLATE)


def _pictures(sources: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"caption": caption, "source": source} for caption, source in sources.items()]


def thumbnail(image: Image.Image) -> bytes:
    """A sheet of samples as WebP: enlarged pixels take little room without loss, photographs more,
    so they get some."""
    exact = _webp(image, lossless=True)
    return exact if len(exact) <= LOSSLESS_BYTES else _webp(image, quality=80)


def lossless(png: bytes) -> bytes:
    """The same picture in less room."""
    with Image.open(io.BytesIO(png)) as image:
        return _webp(image, lossless=True)


def _webp(image: Image.Image, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, "WEBP", **options)
    return data.getvalue()


def uneven(facts: Sequence[CellFacts], equal: Literal["steps", "seconds"]) -> list[str]:
    """A sentence for each cell whose budget is off the median by more than `TOLERANCE`."""
    if not facts:
        return []
    middle = median(getattr(cell, equal) for cell in facts)
    return [
        f"{cell.method}, seed {cell.seed}: {getattr(cell, equal):g} {equal}, where the median cell "
        f"has {middle:g}; its budget is not equal."
        for cell in facts
        if abs(getattr(cell, equal) - middle) > TOLERANCE * middle
    ]


def _run_in_words(analysis: Analysis, about: About) -> str:
    count = len(analysis.seeds)
    seeds = ", ".join(map(str, analysis.seeds))
    base = " base student," if BASE in analysis.summaries else ""
    return (
        f"{len(analysis.methods)} methods, {count} seed{'' if count == 1 else 's'} ({seeds}), from "
        f"one shared start: same tokenizer, teacher,{base} data order and sample noise. "
        f"Equal budget by {about.equal}: {about.budget}. Metrics: {about.features}. "
        f"Guidance is {analysis.guidance:g} unless it says best. "
        "Brackets: 95 % t-interval over seeds"
        + ("; with one seed there is none." if count < 2 else ".")
    )


@dataclass(frozen=True)
class Section:
    """A table of comparisons."""

    title: str
    words: str
    header: list[str]
    rows: list[list[str]]


def _comparisons(analysis: Analysis) -> Iterable[Section]:
    def section(title: str, rows: Sequence[Comparison], words: str = "") -> Section:
        return Section(title, words, PAIRED_HEADER, paired_table(rows, analysis.guidance))

    if analysis.reference:
        yield section("Teacher against base student", [analysis.reference])
    families = {f"Against {name}": rows for name, rows in analysis.against.items() if rows}
    for place, (title, rows) in enumerate(families.items()):
        words = "Baselines above are compared in their own table." if place else ""
        yield section(title, rows, words)
    if analysis.ablation:
        header = ["method", "against", *PAIRED_HEADER[1:]]
        lines = zip(
            analysis.ablation, paired_table(analysis.ablation, analysis.guidance), strict=True
        )
        rows = [[line[0], row.baseline, *line[1:]] for row, line in lines]
        yield Section("Ablation", "Each method against the one before it.", header, rows)


def _downloads(
    analysis: Analysis, facts: Sequence[CellFacts], speed: Sequence[SpeedRow]
) -> dict[str, str]:
    files = {
        "measurements.csv": csv_text(Measurement, analysis.measurements),
        "cells.csv": csv_text(CellFacts, facts),
        "summary.csv": csv_text(SummaryRow, summary_rows(analysis)),
        "paired.csv": csv_text(PairedRow, paired_rows(analysis)),
    }
    if speed:
        files["speed.csv"] = csv_text(SpeedRow, speed)
    return {name: _data("text/csv;charset=utf-8", text.encode()) for name, text in files.items()}


def _data(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
