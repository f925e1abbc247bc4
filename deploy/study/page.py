"""The study as one self-contained HTML page, with its tables, figures and data inside.

The page needs no network and no script; every text from outside is escaped.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import median
from typing import Literal

from PIL import Image

from deploy.study.definitions import DEFINITIONS
from deploy.study.figures import CAPTIONS
from deploy.study.results import CellFacts, Measurement, csv_text, write_bytes, write_csv
from deploy.study.statistics import Analysis
from deploy.study.tables import (
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
from deploy.study.verdicts import conclusions, notes

STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem; max-width: 84rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.4rem; }
h2 { border-bottom: 1px solid var(--line); } h3 { font-size: 1.05rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .5rem; text-align: left; vertical-align: top; }
tr { border-bottom: 1px solid var(--line); } th { background: var(--soft); }
td { white-space: nowrap; } td:last-child { white-space: normal; min-width: 12rem; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
.plain td:last-child { min-width: 0; white-space: nowrap; }
figure { margin: 1rem 0; break-inside: avoid; }
figure img { background: #fff; max-width: 100%; border-radius: 4px; }
figcaption, .soft { font-size: .85rem; opacity: .8; }
.samples { display: flex; flex-wrap: wrap; gap: 1rem; } .samples figure { margin: 0; }
pre { overflow-x: auto; background: var(--soft); padding: .7rem; font-size: .8rem; }
dt { font-weight: 600; margin-top: .6rem; } dd { margin-left: 1rem; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
.facts dt, .facts dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { max-width: none; font-size: 11px; } .wide { overflow: visible; }
  td { white-space: normal; } h2, h3 { break-after: avoid; } tr { break-inside: avoid; } }
"""
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
) -> None:
    """Write the page to `path`, and its parts as files beside it.

    The parts are summary.md (its words, main table and figures), summary.csv, paired.csv and a
    PNG per figure.
    measurements.csv and cells.csv are inside the page; as files they are the caller's, who
    writes them while the study runs.

    Args:
        figures: `deploy.study.figures.draw`: PNG bytes by name.
        samples: grids of samples by model, made with the same labels and noise.
        configs: full config by method, as text.
    """
    page = render(
        analysis, about=about, facts=facts, figures=figures, samples=samples, configs=configs
    )
    write_bytes(path, page.encode())
    summary = summary_markdown(analysis, about, figures)
    write_bytes(path.with_name("summary.md"), summary.encode())
    write_csv(path.with_name("summary.csv"), SummaryRow, summary_rows(analysis))
    write_csv(path.with_name("paired.csv"), PairedRow, paired_rows(analysis))
    for name, data in figures.items():
        write_bytes(path.with_name(f"{name}.png"), data)


def summary_markdown(analysis: Analysis, about: About, figures: Iterable[str] = ()) -> str:
    """The page's words, main table and figures in Markdown, to be kept beside the study."""
    facts = [f"- {name}: {_line(text)}" for name, text in about.details.items()]
    lines = [
        f"# {_line(about.title)}",
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
        *(f"- {_line(sentence)}" for sentence in conclusions(analysis)),
        "",
        markdown(main_header(analysis), main_table(analysis)),
    ]
    lines += [f"![{CAPTIONS.get(name, name)}]({name}.png)\n" for name in figures]
    return "\n".join(lines)


def _line(text: str) -> str:
    return escape(" ".join(text.split()), quote=False)


def render(
    analysis: Analysis,
    *,
    about: About,
    facts: Sequence[CellFacts],
    figures: Mapping[str, bytes],
    samples: Mapping[str, Image.Image],
    configs: Mapping[str, str],
) -> str:
    """The page as text; arguments as for `write_page`."""
    doubts = [*analysis.gaps, *uneven(facts, about.equal), *notes(analysis)]
    parts = [
        f"<h1>{escape(about.title)}</h1>",
        f"<p>{escape(_run_in_words(analysis, about))}</p>",
        _definitions(about.details, "facts"),
        "<h2>What the data support</h2>",
        f'<p class="soft">Behind a method: its mean difference in FID at guidance '
        f"{analysis.guidance:g} and the joint interval.</p>",
        _list(conclusions(analysis)),
        *(["<h2>Gaps and doubts</h2>", _list(doubts)] if doubts else []),
        "<h2>Teacher, base student and methods</h2>",
        _table(main_header(analysis), main_table(analysis)),
        *_comparisons(analysis),
        "<h2>Cost</h2>",
        _table(COST_HEADER, cost_table(analysis.methods, facts)),
        "<h2>Figures</h2>",
        *(_figure(_data("image/png", figures[name]), CAPTIONS.get(name, name)) for name in figures),
        *_samples(samples),
        "<h2>Definitions</h2>",
        _definitions(DEFINITIONS, "terms"),
        "<h2>Data and configs</h2>",
        _downloads(analysis, facts),
        *(_config(name, text) for name, text in configs.items()),
    ]
    head = f'<meta charset="utf-8"><title>{escape(about.title)}</title><style>{STYLE}</style>'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


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
    return (
        f"{len(analysis.methods)} methods, {count} seed{'' if count == 1 else 's'} ({seeds}), from "
        "one shared start: same tokenizer, teacher, base student, data order and sample noise. "
        f"Equal budget by {about.equal}: {about.budget}. Metrics: {about.features}. "
        f"Guidance is {analysis.guidance:g} unless it says best. "
        "Brackets: 95 % t-interval over seeds"
        + ("; with one seed there is none." if count < 2 else ".")
    )


def _comparisons(analysis: Analysis) -> Iterable[str]:
    if analysis.reference:
        yield "<h2>Teacher against base student</h2>"
        yield _table(PAIRED_HEADER, paired_table([analysis.reference], analysis.guidance))
    families = {f"Against {name}": rows for name, rows in analysis.against.items() if rows}
    for place, (title, rows) in enumerate(families.items()):
        yield f"<h2>{escape(title)}</h2>"
        if place:
            yield '<p class="soft">Baselines above are compared in their own table.</p>'
        yield _table(PAIRED_HEADER, paired_table(rows, analysis.guidance))
    if analysis.ablation:
        yield "<h2>Ablation</h2><p>Each method against the one before it.</p>"
        header = ["method", "against", *PAIRED_HEADER[1:]]
        lines = zip(
            analysis.ablation, paired_table(analysis.ablation, analysis.guidance), strict=True
        )
        yield _table(header, [[line[0], row.baseline, *line[1:]] for row, line in lines])


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line.replace(chr(10), '<br>')}</tr>" for line in lines)
    shape = "" if header[-1] == "verdict" else ' class="plain"'
    table = f"<table{shape}><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _list(sentences: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def _definitions(terms: Mapping[str, str], kind: str) -> str:
    entries = (f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in terms.items())
    return f'<dl class="{kind}">{"".join(entries)}</dl>' if terms else ""


def _figure(source: str, caption: str) -> str:
    text = escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _samples(samples: Mapping[str, Image.Image]) -> Iterable[str]:
    if not samples:
        return
    yield "<h2>Samples</h2><p>Same labels and noise in every panel.</p>"
    yield '<div class="samples">'
    for name, image in samples.items():
        data = io.BytesIO()
        image.save(data, "PNG", optimize=True)
        yield _figure(_data("image/png", data.getvalue()), name)
    yield "</div>"


def _downloads(analysis: Analysis, facts: Sequence[CellFacts]) -> str:
    files = {
        "measurements.csv": csv_text(Measurement, analysis.measurements),
        "cells.csv": csv_text(CellFacts, facts),
        "summary.csv": csv_text(SummaryRow, summary_rows(analysis)),
        "paired.csv": csv_text(PairedRow, paired_rows(analysis)),
    }
    links = (
        f'<a download="{name}" href="{_data("text/csv;charset=utf-8", text.encode())}">{name}</a>'
        for name, text in files.items()
    )
    return f"<p>{', '.join(links)}</p>"


def _config(name: str, text: str) -> str:
    return f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"


def _data(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
