"""What `varkd sample` draws: which classes, how many of each, and the sheet that shows them.

Shape letters: N images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from common.data.tokens import read_header
from common.errors import InputError
from common.images.opening import open_images
from common.memory import require_memory
from common.randomness import derive_seed
from deploy.config import RunConfig
from deploy.console.progress import Bar, busy
from deploy.report.grids import by_class, class_sheet, real_by_class, save_png, spread
from deploy.run_folder.workspace import AnyModelFile, ModelName, Workspace
from deploy.stages.draw import draw_batches, load_for_sampling, passes_of, teacher_between
from deploy.stages.samples_file import counted, require_room, save_npz, shuffled
from rollout.evaluation.one_pass import Passes
from rollout.sampler import SamplingConfig

SHEET_CLASSES = 20
"""Of a sheet for which no classes are chosen, taken evenly."""
SHEET_COLUMNS = 8
"""Of a sheet, where no number per class is chosen."""
REAL_COLUMNS = 2
LONGEST_SIDE = 8192
"""Pixels of a whole sheet: its images are reduced to fit."""


@dataclass(frozen=True)
class Order:
    """What somebody wants to be drawn."""

    output: Path
    model: str
    file: AnyModelFile
    names: dict[int, str]
    """Rows of a sheet: names by label."""
    per_class: int
    seed: int
    label_N: Tensor

    @property
    def is_sheet(self) -> bool:
        return self.output.suffix == ".png"


def take_order(
    config: RunConfig,
    workspace: Workspace,
    model: ModelName,
    *,
    output: Path,
    classes: str | None,
    per_class: int | None,
    seed: int | None,
) -> Order:
    """Classes, numbers and seed of the command line; what it leaves out follows the config.

    A sheet for which nothing is chosen fits a screen.

    Raises:
        InputError: another kind of output, an unknown class, nothing to draw, or no such model.
    """
    if output.suffix not in (".png", ".npz"):
        raise InputError(f"--to {output}: must end in .png (sheet) or .npz (ADM's evaluator)")
    is_sheet = output.suffix == ".png"
    workspace.existing_tokenizer()  # the first thing that a new run lacks
    file = workspace.model(config, model)
    total = file.spec.num_classes
    names = class_names(workspace, total)
    chosen = choose_classes(classes, names, total)
    if chosen is None:
        chosen = spread(total, SHEET_CLASSES) if is_sheet else list(range(total))
    if per_class is None:
        per_class = config.sample.per_class
        per_class = min(per_class, SHEET_COLUMNS) if is_sheet else per_class
    if not per_class:
        raise InputError("nothing to draw; set --per-class or sample.per_class to 1 or more")
    _require_space(len(chosen) * per_class, config, None if is_sheet else output)
    root = derive_seed(config.seed if seed is None else seed, "sample-command")
    label_N = torch.tensor(chosen).repeat_interleave(per_class)
    label_N = label_N if is_sheet else shuffled(label_N, root)
    rows = {label: names[label] for label in chosen}
    return Order(output, model, file, rows, per_class, root, label_N)


def _require_space(images: int, config: RunConfig, output: Path | None) -> None:
    """A sheet is made in memory, an .npz needs the disk: asked before there is even a label."""
    if output is not None:
        require_room(output, images, config.evaluate.size or config.images.size)
        return
    size = images * config.images.channels * config.images.size**2
    require_memory(size, f"a sheet of {images:,} images", "lower --per-class or choose classes")


def how_to_draw(config: RunConfig) -> SamplingConfig:
    """As `varkd evaluate` measures, unless sample.sampling says otherwise."""
    return config.sample.sampling or config.evaluate.sampling


def class_names(workspace: Workspace, total: int) -> tuple[str, ...]:
    """As the tokens have them; a run folder without tokens has only numbers."""
    if workspace.train_tokens.exists():
        return read_header(workspace.train_tokens).classes
    return tuple(str(label) for label in range(total))


def choose_classes(words: str | None, names: Sequence[str], total: int) -> list[int] | None:
    """Labels of "3,7" or "cat,dog", in that order; None where nothing was chosen.

    A name counts before a number, so that folders called 1, 2, 3 are meant by their names.

    Raises:
        InputError: a word is neither, or a class is chosen twice.
    """
    if words is None:
        return None
    by_name = {name: label for label, name in enumerate(names)}
    chosen: list[int] = []
    for word in (part.strip() for part in words.split(",")):
        label = by_name.get(word)
        if label is None and word.isascii() and word.isdecimal() and int(word[:9]) < total:
            label = int(word[:9])
        if label is None:
            some = ", ".join([*list(names)[:10], *(["..."] if len(names) > 10 else [])])
            raise InputError(
                f"--classes: {word!r} is no class; choose names or numbers (0 to {total - 1}) of "
                f"{some}"
            )
        if label in chosen:
            raise InputError(f"--classes: {word!r} is chosen twice; name every class once")
        chosen.append(label)
    return chosen


def fill(order: Order, config: RunConfig, workspace: Workspace, target: Console) -> None:
    """Draw the images and write them.

    Raises:
        InputError: a file is missing, they speak different tokens, or the disk has no room.
    """
    model, tokenizer = load_for_sampling(order.file, workspace, config.sample.device)
    side = None if order.is_sheet else config.evaluate.size
    batches = draw_batches(
        model,
        tokenizer,
        order.label_N,
        sampling=how_to_draw(config),
        batch_size=config.sample.batch_size or config.evaluate.batch_size,
        seed=order.seed,
        size=side,
        conditions=config.conditions.of(
            "teacher" if order.model == "teacher" else "student", model.spec.num_classes
        ),
        passes=_passes(config, workspace),
    )
    with Bar(target, "sample", len(order.label_N)) as bar:
        batches = counted(batches, bar)
        if not order.is_sheet:
            save_npz(order.output, batches, order.label_N, side or config.images.size)
            return
        pixel_NCHW = torch.cat(list(batches))
    save_png(order.output, _sheet(order, pixel_NCHW, config, target))


def _passes(config: RunConfig, workspace: Workspace) -> Passes:
    """Of a one-pass student; what `sample` leaves out is the first of evaluate.steps."""
    if config.sample.inserted is not None:
        return teacher_between(config, workspace, config.sample.inserted, config.sample.device)
    steps = config.sample.steps or config.evaluate.steps[0]
    return passes_of(config, workspace, steps, config.sample.device)


def _sheet(order: Order, pixel_NCHW: Tensor, config: RunConfig, target: Console) -> Image.Image:
    """A row per class: some real images, where the run's are at hand, then samples."""
    labels = list(order.names)
    panels = {order.model: by_class(pixel_NCHW, order.label_N, labels, order.per_class)}
    try:
        with busy(target, "looking for real images", at_once=False):
            source = open_images(config.images, config.evaluate.reference)
            real = real_by_class(source, labels, REAL_COLUMNS)
        panels = {"real": real, **panels}
    except InputError as error:
        target.print(f"no column of real images: {error}")
    most = LONGEST_SIDE // max(len(labels), order.per_class + REAL_COLUMNS)
    return class_sheet(list(order.names.values()), panels, most_pixels=max(8, most))
