"""Measure every model of the run and write its report."""

import json
from typing import Any

from PIL.Image import Image
from rich.console import Console

from common.files.atomic import write_text
from common.models.generator import GeneratorConfig
from deploy.backend.beside import Beside
from deploy.config import RunConfig
from deploy.report.grids import class_sheet, save_png
from deploy.report.html_page import write_page
from deploy.report.page import to_markdown
from deploy.report.plots import curves, diagnostics, save
from deploy.report.quality import REAL, Quality
from deploy.report.summary import plain, summarise
from deploy.run_folder.records import read_numbers, read_run_facts, read_windows
from deploy.run_folder.workspace import Workspace
from deploy.stages.boards import FOLDER as GRIDS
from deploy.stages.boards import Grid, draw_grids, save_grids
from deploy.stages.quality import assess

MOST_PIXELS = 128
"""Side of an image on the sheet of samples."""

TITLES = {
    REAL: "real",
    "teacher": "teacher",
    "student_before": "student before",
    "student_after": "student after",
}
AVERAGED = {"student_ema": "its average"}
"""Shown as well where a student draws in one pass, and the average is what is used of it."""


def write_report(
    config: RunConfig,
    workspace: Workspace,
    target: Console,
    *,
    wall_seconds: float | None = None,
    jobs: Beside | None = None,
) -> dict[str, Any]:
    """Evaluate every model of the run, in other processes with `jobs`, and write the report's six
    files."""
    facts = read_run_facts(workspace.root / "distill.json")
    rows = read_numbers(workspace.root / "metrics.jsonl")
    profiles = read_windows(workspace.root / "profiles.jsonl")
    pictures: dict[str, bytes] = {}
    grids: list[Grid] = []

    def draw(classes: dict[int, str]) -> None:
        tau = _threshold(config, rows)
        pictures["diagnostics.png"] = diagnostics(rows, profiles, tau=tau)
        grids.extend(draw_grids(config, workspace, classes, facts.get("steps", 0), target))

    quality = assess(config, workspace, target, jobs, meanwhile=draw)
    report = summarise(config, facts, rows, quality)
    if wall_seconds is not None:
        report["wall_seconds"] = round(wall_seconds, 2)
    report = plain(report)
    save_png(workspace.root / "samples.png", _sample_sheet(config, quality))
    pictures["curves.png"] = curves(rows, report["fid"])
    for name, picture in pictures.items():
        save(workspace.root / name, picture)
    text = json.dumps(report, indent=2, allow_nan=False)
    write_text(workspace.root / "report.json", text + "\n")
    write_text(workspace.root / "report.md", to_markdown(report))
    save_grids(workspace.board / GRIDS, grids)
    write_page(config, workspace, facts, report)
    return report


def _threshold(config: RunConfig, rows: list[dict[str, Any]]) -> float | None:
    """The confidence below which the gate closes, where it is the teacher's over all codes."""
    gate = getattr(config.objective, "gate", None)
    if gate is None or not gate.closes or gate.mode == "speculative" or gate.entropy_space != "V":
        return None
    return next((row["gate/tau"] for row in reversed(rows) if "gate/tau" in row), gate.tau)


def _sample_sheet(config: RunConfig, quality: Quality) -> Image:
    """Real images beside those of the models, a row per class."""
    one_pass = isinstance(config.models.student, GeneratorConfig)
    titles = TITLES | (AVERAGED if one_pass else {})
    titles |= {
        name: name.replace("_after_", " ").replace("_", " ")
        for name in quality.images
        if name.startswith("student_after_")
    }
    panels = {
        title: quality.images[name] for name, title in titles.items() if name in quality.images
    }
    return class_sheet(list(quality.classes.values()), panels, most_pixels=MOST_PIXELS)
