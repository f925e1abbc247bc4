"""Writes somebody's first config: choices that suit their images and a laptop, each with a reason.

The numbers follow the shipped `smoke` and `cifar10`, which train in minutes on two CPU cores.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tomli_w

from deploy.cli.survey import Survey

LONGEST_SIDE = 32
"""Pixels: 64 tokens of 4x4 pixels; the time of a step grows with their number."""
GRID = 8
"""Tokens per side, at most."""
PATCHES_PER_CODE = 20
"""Patches that k-means should see for every code that it fits."""


class Scale(NamedTuple):
    """What a number of images is enough for."""

    above: int
    """Images."""
    teacher: tuple[int, int, int]
    """Width, depth, heads."""
    student: tuple[int, int, int]
    teacher_steps: int
    steps: int
    batch: int
    samples: int
    classifier: tuple[int, int]
    """Width and steps."""
    dropout: float


SCALES = (
    Scale(20_000, (192, 6, 6), (96, 3, 4), 1500, 400, 32, 2000, (48, 1500), 0.0),
    Scale(1_000, (128, 4, 4), (64, 2, 4), 900, 250, 32, 1000, (48, 800), 0.1),
    Scale(0, (64, 3, 4), (32, 2, 4), 400, 100, 16, 200, (32, 150), 0.1),
)


@dataclass(frozen=True)
class Choices:
    size: int
    patch: int
    vocab_size: int
    scale: Scale
    per_class: int

    @property
    def tokens(self) -> int:
        return (self.size // self.patch) ** 2


def choose(found: Survey) -> Choices:
    """Sizes that suit the images."""
    size = LONGEST_SIDE if found.sides[1] >= LONGEST_SIDE else max(8, found.sides[1] // 4 * 4)
    patch = 4 if size // 2 > GRID else 2
    scale = next(scale for scale in SCALES if found.images >= scale.above)
    codes = 512 if not found.is_grey else 128
    seen = found.images * (size // patch) ** 2
    distinct = found.distinct_patches(size, patch)
    while codes > 16 and (codes * PATCHES_PER_CODE > seen or codes * 2 > distinct):
        codes //= 2
    classes = len(found.classes)
    return Choices(size, patch, codes, scale, 8 if classes <= 20 else 2 if classes <= 200 else 1)


def write_config(found: Survey, name: str) -> str:
    """The text of a config; `name` is that of its file."""
    made = choose(found)
    parts = [
        _heading(found, name),
        _images(found, made),
        _tokenizer(found, made),
        _models(found, made),
        _pretrain(found, made),
        _distillation(made),
        _evaluation(found, made),
    ]
    return "\n".join(parts)


def _heading(found: Survey, name: str) -> str:
    what = "scikit-learn's digits" if found.train is None else str(found.train)
    low, middle, high = found.sides
    across = f"{low}" if low == high else f"{low} to {high} (median {middle})"
    colours = "grey" if found.is_grey else "in colour"
    some = f", {found.transparent} of {found.opened} with transparency" if found.transparent else ""
    return f"""\
# {found.images:,} images of {_several(len(found.classes), "class", "classes")}: {what}
# Sized for a laptop: every number below may be changed, and `varkd options` explains them all.
#
#   varkd tokenize {name} && varkd pretrain {name}
#   varkd distill {name} && varkd evaluate {name}
#
# {_several(found.opened, "image was", "images were")} opened: {colours}{some}.
# Their shorter sides: {across} pixels. Smallest class: {_several(found.fewest, "image", "images")}.
"""


def _images(found: Survey, made: Choices) -> str:
    lines = ["[images]", f'kind = "{found.kind}"']
    if found.train is not None:
        lines.append(f"train = {_toml(found.train)}")
    if found.test is not None:
        lines.append(f"test = {_toml(found.test)}  # {found.test_images:,} images")
    elif found.kind != "digits":
        lines.append('# test = "..."  # held-out images in the same layout; none were found')
    why = "side of the square that images are cropped and scaled to"
    if found.sides[1] > made.size:
        why += "; 64 takes 4 times the tokens"
    lines.append(f"size = {made.size}  # {why}")
    grey = "all opened images are grey" if found.is_grey else "RGB; 1 makes them grey"
    lines.append(f"channels = {1 if found.is_grey else 3}  # {grey}")
    if found.transparent:
        lines.append('background = "white"  # what shows where images are transparent')
    return "\n".join(lines) + "\n"


def _tokenizer(found: Survey, made: Choices) -> str:
    side = made.size // made.patch
    seen = found.images * made.tokens
    return f"""\
[tokenizer]
kind = "patch_kmeans"  # fitted in seconds; "conv_vq" looks better, and is trained first
patch = {made.patch}  # {side}x{side} = {made.tokens} tokens per image
vocab_size = {made.vocab_size}  # codes; the images have {seen:,} patches to fit them to
"""


def _models(found: Survey, made: Choices) -> str:
    lines = []
    for role, (width, depth, heads), why in (
        ("teacher", made.scale.teacher, "large for so many images, small for a laptop"),
        ("student", made.scale.student, "what you want to end with: half the width or less"),
    ):
        dropout = made.scale.dropout if role == "teacher" else 0.0
        lines.append(
            f"""\
[models.{role}]
kind = "llamagen"
width = {width}  # {why}
depth = {depth}
heads = {heads}
multiple_of = 32
dropout = {dropout}{"  # against learning few images by heart" if dropout else ""}
"""
        )
    return "\n".join(lines)


def _pretrain(found: Survey, made: Choices) -> str:
    scale = made.scale
    epochs = scale.teacher_steps * scale.batch / found.images
    return f"""\
[pretrain.teacher]
steps = {scale.teacher_steps}  # each image {epochs:.1f} times; raise it while the loss falls
batch_size = {scale.batch}
optimizer = {{ learning_rate = 1e-3, warmup = {scale.teacher_steps // 15}, schedule = "cosine" }}

[pretrain.student]
steps = {scale.teacher_steps // 4}  # a start that distillation improves on
batch_size = {scale.batch}
optimizer = {{ learning_rate = 1e-3, warmup = {scale.teacher_steps // 30} }}
"""


def _distillation(made: Choices) -> str:
    scale, images = made.scale, 2 * made.scale.batch
    return f"""\
[contexts]  # half of the batches are images, half are begun by the student itself
mix_per = "step"
[contexts.sources.data]
ratio = 0.5
[contexts.sources.student]
ratio = 0.5

[objective]
kind = "varkd"  # `varkd options objective` lists the others

[rollout]
workers = 2  # processes that sample from the student
batch_size = {scale.batch}

[learner]
steps = {scale.steps}  # distillation; more steps, better student
global_batch_size = {images}  # two leases of rollout.batch_size
micro_batch = {images}
max_staleness = 4
publish_every = 2
checkpoint_every = {scale.steps // 4}  # `varkd distill --resume` goes on from the last one
optimizer = {{ learning_rate = 1e-3, warmup = 20, schedule = "cosine", ema = 0.98 }}
"""


def _evaluation(found: Survey, made: Choices) -> str:
    scale = made.scale
    width, steps = scale.classifier
    held_out = found.test_images >= scale.samples // 2
    reference = "test" if held_out else "train"
    why = "held-out images" if held_out else "there are too few held-out images to compare with"
    return f"""\
[evaluate]
samples = {scale.samples}  # per model; FIDs of fewer samples are higher
reference = "{reference}"  # {why}
sampling = {{ guidance = 1.5 }}  # sharper classes than 1, less variety
classifier = {{ width = {width}, steps = {steps} }}  # its features measure FID here

[sample]
per_class = {made.per_class}  # images of a class in `varkd sample`
"""


def _several(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"


def _toml(path: Path) -> str:
    return tomli_w.dumps({"v": str(path)}).removeprefix("v = ").strip()
