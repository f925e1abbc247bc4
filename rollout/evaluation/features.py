"""A feature extractor for small-image metrics: a classifier trained on the user's own images.

Inception features say little about 8x8 digits and need a download; the penultimate layer of a
small convolutional classifier is the usual stand-in. Its numbers compare runs that share the
classifier (its digest is reported), and nothing else.

Shape letters: B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from common.config.quantities import Batch, LearningRate, Steps, Width
from common.config.schema import Config
from common.device import autocast, fastest_precision, precision
from common.finite import largest, require_finite
from common.perceptual.classifier import Classifier
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
