"""A feature extractor for small-image metrics: a classifier trained on the user's own images.

Inception features say little about 8x8 digits and need a download; the penultimate layer of a
small convolutional classifier is the usual stand-in. Its numbers compare runs that share the
classifier (its digest is reported), and nothing else.

Shape letters: B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.config.quantities import Batch, LearningRate, Steps, Width
from common.config.schema import Config
from common.device import autocast, fastest_precision, precision
from common.files.tensors import load_tensors, reading_header, save_tensors, state_digest
from common.finite import largest, require_finite
from common.without_compiler import without_compiler


class ClassifierConfig(Config):
    width: Width = 32
    """Channels of the first convolution; features have twice as many."""
    steps: Steps = 400
    """Optimiser steps of training."""
    batch_size: Batch = 128
    """Images per step."""
    learning_rate: LearningRate = 2e-3
    """Adam's peak learning rate (cosine to 0)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the products while it is trained; auto: bfloat16 where evaluate.device accelerates it.
    The classifier and its features are float32, and one that is there stays."""

    @property
    def made_from(self) -> dict[str, Any]:
        """What decides which classifier is made, but for rounding."""
        return self.model_dump(mode="json", exclude={"dtype"})


class Classifier(nn.Module):
    """Three convolutions, global mean and max pooling, one linear layer.

    Weights and images lie channels-last, as convolutions like them (on a CPU with AVX2, float32,
    training and features take 0.65 to 0.8 of the usual layout's time).
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, stride=2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
        )
        self.squeeze = nn.Linear(4 * width, 2 * width)
        self.output = nn.Linear(2 * width, num_classes)
        cast(Any, self).to(memory_format=torch.channels_last)  # absent from its overloads

    def features(self, pixel_BCHW: Tensor) -> Tensor:
        """uint8 images of 1 or 3 channels to (B, 2 * width)."""
        image = as_rgb(pixel_BCHW).float() / 127.5 - 1
        map_BCHW = self.body(image.contiguous(memory_format=torch.channels_last))
        pooled = torch.cat([map_BCHW.mean((2, 3)), map_BCHW.amax((2, 3))], dim=1)
        return torch.tanh(self.squeeze(pooled))

    def layers(self, pixel_BCHW: Tensor) -> Tensor:
        """feature_BF whose squared distance between two images is LPIPS (arXiv 1801.03924, eq. 1)
        in this network, with all channels of the same weight: maps of every convolution, of norm 1
        over the channels, meant over the places and added over the layers."""
        image = as_rgb(pixel_BCHW).float() / 127.5 - 1
        map_BCHW, found = image.contiguous(memory_format=torch.channels_last), []
        for module in self.body:
            map_BCHW = module(map_BCHW)
            if isinstance(module, nn.ReLU):
                places = map_BCHW.shape[2] * map_BCHW.shape[3]
                unit_BCHW = F.normalize(map_BCHW, dim=1, eps=1e-3)
                found.append(unit_BCHW.flatten(1) / places**0.5)
        return torch.cat(found, dim=1)

    def forward(self, pixel_BCHW: Tensor) -> Tensor:
        return self.output(self.features(pixel_BCHW))


def as_rgb(pixel_BCHW: Tensor) -> Tensor:
    return pixel_BCHW.expand(-1, 3, -1, -1) if pixel_BCHW.shape[1] == 1 else pixel_BCHW


def training_precision(config: ClassifierConfig, device: torch.device) -> tuple[str, str]:
    """(float32 or bfloat16, why)."""
    if config.dtype == "auto":
        return fastest_precision(device)
    return config.dtype, "evaluate.classifier.dtype"


@without_compiler()
def train_classifier(
    config: ClassifierConfig,
    pixel_NCHW: Tensor,
    label_N: Tensor,
    *,
    num_classes: int,
    generator: torch.Generator,
    device: torch.device,
    watch: Callable[[int, float], object] = lambda step, loss: None,
) -> Classifier:
    """Cross-entropy on random crops (one pixel of shift), seeded by `generator`.

    Products are in `config.dtype`, which on `device` is what `training_precision` says.
    `watch` hears step and loss.

    Raises:
        Diverged: the loss is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        model = Classifier(config.width, num_classes).to(device)
    optimizer = torch.optim.Adam(model.parameters(), config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    dtype = precision(training_precision(config, device)[0])
    remedy = f"lower evaluate.classifier.learning_rate ({config.learning_rate:g})"
    for step in range(1, config.steps + 1):
        chosen_B = torch.randint(len(pixel_NCHW), (config.batch_size,), generator=generator)
        pixel_BCHW = _shifted(pixel_NCHW[chosen_B], generator).to(device)
        with autocast(device, dtype):
            loss = F.cross_entropy(model(pixel_BCHW), label_N[chosen_B].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        found = float(loss.detach())
        require_finite(step, {"classifier's loss": found}, remedy)
        watch(step, found)
    require_finite(config.steps, {"largest weight": float(largest(model.parameters()))}, remedy)
    return model.cpu().eval()


def _shifted(pixel_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """By up to one pixel, all alike."""
    top, left = torch.randint(3, (2,), generator=generator).tolist()
    side = pixel_BCHW.shape[-1]
    return F.pad(pixel_BCHW, (1, 1, 1, 1))[..., top : top + side, left : left + side]


@torch.no_grad()
def accuracy(model: Classifier, pixel_NCHW: Tensor, label_N: Tensor) -> float:
    """Fraction of images whose class the classifier finds."""
    parts = [model(part).argmax(1) for part in pixel_NCHW.split(512)]
    return float((torch.cat(parts) == label_N).double().mean())


def save_classifier(path: Path, model: Classifier, facts: dict[str, Any]) -> None:
    first = cast(nn.Conv2d, model.body[0])
    shape = {"width": first.out_channels, "num_classes": model.output.out_features}
    save_tensors(path, model.state_dict(), {"classifier": shape, "facts": facts})


def load_classifier(path: Path) -> tuple[Classifier, dict[str, Any]]:
    """The module and what was written beside it.

    Raises:
        InputError: the file is damaged, or holds something else.
    """
    tensors, metadata = load_tensors(path)
    with reading_header(path):
        with torch.device("meta"):  # the header may say any size
            outline = Classifier(**metadata["classifier"]).state_dict()
        facts = {**metadata["facts"]}
        if _shapes(outline) != _shapes(tensors):
            raise ValueError("its tensors are not those of such a classifier")
    model = Classifier(**metadata["classifier"])
    model.load_state_dict(tensors)
    return model.eval(), facts | {"digest": state_digest(model)}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}
