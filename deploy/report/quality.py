"""What was measured of every model, for the report."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

REAL = "real"
"""Of the sheet of samples: rows, and images in a row of a model and of the real images."""


@dataclass(frozen=True)
class Quality:
    """Metrics by model, how they were made, and images for the sheet."""

    metrics: dict[str, dict[str, float]]
    left_out: dict[str, str]
    """Metrics that the number of images does not define, and why."""
    features: dict[str, Any]
    weights: dict[str, dict[str, str]]
    """File and digest of every model that was measured."""
    likelihood: dict[str, dict[str, float]]
    """Of models that give sequences a probability: nats per token and standard errors, by name."""
    classes: dict[int, str]
    """Rows of the sheet: names by label."""
    images: dict[str, list[Tensor]]
    """By model, and of real images: a pixel_PCHW per row."""
    drawing_ms: dict[str, float]
    """By model: milliseconds of wall clock for an image, sampled and decoded in batches."""
