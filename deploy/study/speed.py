"""Milliseconds of an image, of all that a study draws from: side by side in one process.

Everything is drawn and decoded once unmeasured, then round after round, forwards and backwards in
turn, so that a drift of the machine meets all alike. On a CPU the process's own seconds count,
which other jobs hardly change; on a GPU the clock's.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from common.device import place
from common.errors import InputError
from common.files.atomic import write_text
from common.files.paths import read_json
from common.tokenization.tokenizer import Tokenizer
from deploy.config import RunConfig
from deploy.layout import check_layout
from deploy.run_folder.workspace import Workspace
from deploy.stages.draw import Drawn, draw_batches, load_for_sampling, ways
from deploy.study.analysis.intervals import Values, estimate
from deploy.study.analysis.results import BASE, REFERENCES, TEACHER, SpeedRow
from deploy.study.jobs import Job
from deploy.study.measuring import drawing_config
from deploy.study.sections import SpeedConfig
from rollout.evaluation.one_pass import Passes

LEAST_IMAGES = 16
"""Of a measurement, however few are drawn together."""
Draw = Callable[[int], None]
"""Draws and decodes so many at a time, at least LEAST_IMAGES."""


@dataclass(frozen=True)
class SpeedJob:
    """All that a process needs to time a study; it travels as cells do."""

    cells: Mapping[str, Job]
    """One done cell of each method, and of the references that are models."""
    settings: SpeedConfig
    file: Path

    @property
    def request(self) -> str:
        """Changes whenever it would have to be measured anew."""
        made_from = {name: job.request for name, job in self.cells.items()}
        threads = sorted({job.threads for job in self.cells.values()})
        asked = [made_from, threads, self.settings.model_dump(mode="json")]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def measure_speed(job: SpeedJob) -> None:
    """Write `job.file`; nothing is left to do where it holds this very measurement."""
    check_layout()
    if read_speed(job) is not None:
        return
    teacher = job.cells[TEACHER]
    torch.set_num_threads(teacher.threads)
    device = place(teacher.config.evaluate.device)
    draws = dict(_draws(job))
    rows = [
        row
        for batch in job.settings.batches
        for row in _rows(batch, _milliseconds(draws, batch, job.settings.rounds, device), device)
    ]
    load = os.getloadavg()[0]
    stored = {"request": job.request, "load": load, "rows": [asdict(row) for row in rows]}
    write_text(job.file, json.dumps(stored, indent=1))


def read_speed(job: SpeedJob) -> list[SpeedRow] | None:
    """What was measured of just these cells; None where there is nothing."""
    try:
        stored = read_json(job.file, "milliseconds of a study")
        if stored["request"] != job.request:
            return None
        return [SpeedRow(**row) for row in stored["rows"]]
    except (FileNotFoundError, InputError, KeyError, TypeError):
        return None


def _draws(job: SpeedJob) -> Iterator[tuple[str, Draw]]:
    """By name of the row, the teacher first."""
    for name, cell in job.cells.items():
        config, start = drawing_config(cell.config, cell.fixed), Workspace(cell.start)
        device = config.evaluate.device
        if name in REFERENCES:
            file = start.model(config, "student_before" if name == BASE else "teacher")
        else:
            file = Workspace(cell.folder).model(config, cell.weights)
        model, tokenizer = load_for_sampling(file, start, device)
        several = ways(config, start, device)
        for way, passes in several.items() if name not in REFERENCES else [("", several[""])]:
            yield f"{name}{way}", partial(_draw, config, model, tokenizer, passes)


def _draw(
    config: RunConfig, model: Drawn, tokenizer: Tokenizer, passes: Passes, batch: int
) -> None:
    images = _images(batch)
    label_N = torch.arange(images) % model.spec.num_classes
    for _ in draw_batches(
        model,
        tokenizer,
        label_N,
        sampling=config.evaluate.sampling,
        batch_size=batch,
        seed=config.seed,
        size=config.evaluate.size,
        conditions=config.conditions.table(model.spec.num_classes),
        passes=passes,
    ):
        pass


def _images(batch: int) -> int:
    return batch * -(-LEAST_IMAGES // batch)


def _milliseconds(
    draws: Mapping[str, Draw], batch: int, rounds: int, device: torch.device
) -> dict[str, dict[int, float]]:
    """Of an image, by name and round."""
    names, found = list(draws), {name: {} for name in draws}
    for name in names:
        draws[name](batch)
    for at in range(rounds):
        for name in names if at % 2 == 0 else reversed(names):
            began = _now(device)
            draws[name](batch)
            found[name][at] = 1000 * (_now(device) - began) / _images(batch)
    return found


def _now(device: torch.device) -> float:
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _rows(batch: int, found: Mapping[str, Values], device: torch.device) -> Iterator[SpeedRow]:
    teacher = found[TEACHER]
    for name, values in found.items():
        mean = estimate(list(values.values()))
        times = estimate([teacher[at] / value for at, value in values.items()])
        yield SpeedRow(
            method=name,
            batch=batch,
            rounds=mean.count,
            milliseconds=mean.mean,
            low=mean.low,
            high=mean.high,
            times_as_fast=times.mean,
            times_low=times.low,
            times_high=times.high,
            clock="wall" if device.type == "cuda" else "cpu",
        )
