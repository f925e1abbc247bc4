"""Sample grids in TensorBoard: the same labels and noise at every step, so that steps compare.

They are drawn by `varkd evaluate`, from the students that `learner.export_every` kept, and not
during the run, which they would hold up.
"""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from rich.console import Console
from torch import Tensor

from common.errors import InputError
from common.exchange.metrics import protos
from common.files.atomic import write_atomically
from common.randomness import derive_seed
from deploy.config import RunConfig
from deploy.console.progress import Bar
from deploy.report.grids import by_class, class_sheet, spread
from deploy.run_folder.workspace import AnyModelFile, Workspace
from deploy.stages.draw import draw_batches, load_for_sampling
from rollout.evaluation.one_pass import Passes

FOLDER = "samples"
"""Below TensorBoard's folder of the run: a run of its own there, which no training run clears."""
CLASSES, PER_CLASS, MOST_PIXELS = 10, 4, 128


@dataclass(frozen=True)
class Grid:
    """A picture at a step, under a name that all steps share."""

    tag: str
    step: int
    image: Image


def draw_grids(
    config: RunConfig,
    workspace: Workspace,
    classes: dict[int, str],
    steps: int,
    target: Console,
) -> list[Grid]:
    """Of teacher and student at step 0, of every kept student, and of the last one at `steps`.

    `classes` are names by label; some of many are shown. A kept student that cannot be read is
    named and left out.
    """
    labels = [list(classes)[place] for place in spread(len(classes), CLASSES)]
    label_N = torch.tensor(labels).repeat_interleave(PER_CLASS)
    models, found = _models(config, workspace, steps), []
    with Bar(target, "grids for TensorBoard", len(models)) as bar:
        for done, ((tag, step), file) in enumerate(models.items(), 1):
            try:
                pixel_NCHW = _drawn(config, workspace, tag, file, label_N)
            except InputError as error:
                target.print(f"no grid of {tag} at step {step}: {error}")
                continue
            rows = by_class(pixel_NCHW, label_N, labels, PER_CLASS)
            names = [classes[label] for label in labels]
            sheet = class_sheet(names, {"": rows}, most_pixels=MOST_PIXELS)
            found.append(Grid(f"samples/{tag}", step, sheet))
            bar.show(done, {"step": step})
    return found


def _drawn(
    config: RunConfig, workspace: Workspace, tag: str, file: AnyModelFile, label_N: Tensor
) -> Tensor:
    """pixel_NCHW of these labels, always from the same noise."""
    model, tokenizer = load_for_sampling(file, workspace, config.evaluate.device)
    role = "teacher" if tag == "teacher" else "student"
    batches = draw_batches(
        model,
        tokenizer,
        label_N,
        sampling=config.evaluate.sampling,
        batch_size=config.evaluate.batch_size,
        seed=derive_seed(config.seed, "grids"),
        size=config.evaluate.size,
        conditions=config.conditions.of(role, model.spec.num_classes),
        passes=Passes(config.evaluate.steps[0]),
    )
    return torch.cat(list(batches))


def _models(
    config: RunConfig, workspace: Workspace, steps: int
) -> dict[tuple[str, int], AnyModelFile]:
    """Files by (tag, step), in the order of steps."""
    found: dict[tuple[str, int], AnyModelFile] = {}
    found["teacher", 0] = workspace.model(config, "teacher")
    if workspace.has_model(config, "student_before"):
        found["student", 0] = workspace.model(config, "student_before")
    for name in ("student", "student_ema"):
        for path in sorted(workspace.milestones.glob(f"{name}-*.safetensors")):
            number = path.stem.removeprefix(f"{name}-")
            if number.isdecimal() and int(number) <= steps:
                found[name, int(number)] = workspace.made_student(config, path)
        if workspace.student.exists():
            found[name, steps] = workspace.model(config, name)
    return found


def save_grids(folder: Path, grids: Sequence[Grid]) -> None:
    """Events with images, in place of those that an earlier call left in the folder."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    Event, Summary = protos("event").Event, protos("summary").Summary
    now = time.time()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:
            records = RecordWriter(handle)
            records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
            for grid in grids:
                value = Summary.Value(tag=grid.tag, image=_encoded(Summary, grid.image))
                event = Event(wall_time=now, step=grid.step, summary=Summary(value=[value]))
                records.write(event.SerializeToString())

    earlier = list(folder.glob("events.out.tfevents.*"))
    path = folder / f"events.out.tfevents.{now:020.6f}.samples"
    write_atomically(path, write)
    for old in earlier:
        old.unlink(missing_ok=True)


def _encoded(kind: Any, image: Image) -> Any:
    data = io.BytesIO()
    image.save(data, "PNG")
    return kind.Image(
        height=image.height,
        width=image.width,
        colorspace=len(image.getbands()),
        encoded_image_string=data.getvalue(),
    )
