"""From the cells of a study to its page, its tables and its figures."""

import os
import platform

from PIL import Image
from rich.console import Console

from common.config.schema import digest, dump_toml
from deploy.console.versions import versions
from deploy.report.grids import save_png, side_by_side
from deploy.study.analysis.results import CellFacts, Measurement, SpeedRow, write_csv
from deploy.study.analysis.statistics import Analysis, analyse
from deploy.study.config import Study
from deploy.study.jobs import Found, Job
from deploy.study.page.figures import draw
from deploy.study.page.page import About, write_page
from deploy.study.runner import Harvest, StudyFolder

PAGE = "study.html"


def publish(
    study: Study,
    folder: StudyFolder,
    wanted: dict[tuple[str, int], Job],
    harvest: Harvest,
    target: Console,
) -> Analysis:
    """Write the page and its parts from what is there; says what is missing."""
    config = study.config
    cells = [harvest.found[key] for key in wanted if key in harvest.found]
    measurements = [row for cell in cells for row in cell.measurements]
    facts = [cell.facts for cell in cells if cell.facts.steps]
    _write_rows(folder, measurements, facts, harvest.speed)
    samples = _samples(study, folder)
    shown = dict.fromkeys((*study.references, *config.baselines, *config.ablation))
    panels = {name: samples[name] for name in shown if name in samples}
    if panels:
        save_png(folder.root / "samples.png", side_by_side(panels))
    analysis = analyse(
        measurements,
        methods=study.shown,
        baselines=config.baselines,
        ablation=config.ablation,
        guidance=config.guidance.fixed,
    )
    write_page(
        folder.root / PAGE,
        analysis,
        about=_about(study, wanted, cells),
        facts=facts,
        figures=draw(analysis, harvest.speed),
        samples=samples,
        configs={name: _config_text(wanted, name) for name in config.methods},
        speed=harvest.speed,
    )
    missing = [f"{method}/{seed}" for method, seed in wanted.keys() - harvest.found.keys()]
    done = f"{len(cells)} of {len(wanted)} cells; the page is {folder.root / PAGE}"
    target.print(done + (f"; missing: {', '.join(sorted(missing))}" if missing else ""))
    return analysis


def _write_rows(
    folder: StudyFolder,
    measurements: list[Measurement],
    facts: list[CellFacts],
    speed: list[SpeedRow],
) -> None:
    write_csv(folder.root / "measurements.csv", Measurement, measurements)
    write_csv(folder.root / "cells.csv", CellFacts, facts)
    if speed:
        write_csv(folder.root / "speed.csv", SpeedRow, speed)


def _about(study: Study, wanted: dict[tuple[str, int], Job], cells: list[Found]) -> About:
    config, start = study.config, study.start
    given, images = config.budget, start.learner.global_batch_size
    if given.steps is not None:
        words = f"{given.steps} steps of {images} images"
        words += "".join(f", but {steps} of {name}" for name, steps in given.own.items())
    else:
        words = f"{given.seconds:g} s of training, in steps of {images} images"
    settings = start.evaluate
    details = {
        "question": config.question,
        "measured": f"{config.weights} at guidance {config.guidance.fixed:g}, and over "
        f"{', '.join(f'{scale:g}' for scale in config.guidance.scales)}",
        "machine": ", ".join(sorted({cell.facts.device for cell in cells})) or platform.machine(),
        "cells at a time": f"{config.cells.cpus:g} CPUs and {config.cells.gpus:g} GPUs each",
        "load when written": ", ".join(f"{load:.1f}" for load in os.getloadavg()),
        "commit": ", ".join(sorted({cell.commit for cell in cells})),
        "versions": ", ".join(f"{name} {found}" for name, found in versions().items()),
        "shared start": digest(start),
    }
    return About(
        title=config.title,
        budget=words,
        equal="steps" if given.steps is not None else "seconds",
        features=f"{settings.features} features of {settings.samples} samples against "
        f"{settings.reference_images or 'all'} {settings.reference} images at most",
        details={name: text for name, text in details.items() if text},
    )


def _samples(study: Study, folder: StudyFolder) -> dict[str, Image.Image]:
    """Grids of the first seed: equal labels and noise for all models."""
    found = {}
    rows = {name: (name,) for name in study.references} | study.rows
    for method, names in rows.items():
        for name in names:
            way = name.removeprefix(method)
            path = folder.cell(method, study.config.seeds[0]) / f"samples{way}.png"
            if path.exists():
                with Image.open(path) as image:
                    found[name] = image.copy()
    return found


def _config_text(wanted: dict[tuple[str, int], Job], method: str) -> str:
    """What is the method's own: the rest is the shared start."""
    job = next(job for (name, _), job in wanted.items() if name == method)
    own = {name: getattr(job.config, name) for name in ("objective", "contexts", "rollout")}
    own |= {"teacher": job.config.teacher, "learner": job.config.learner}
    return "\n".join(f"[{name}]\n{dump_toml(section)}" for name, section in own.items())
