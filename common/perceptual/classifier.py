"""A small convolutional classifier, whose features and layers compare small images.

How it is trained is in rollout/evaluation/features.py.

Shape letters: B batch, C channels, H height, W width, K classes, F features.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from common.files.tensors import load_tensors, reading_header, save_tensors, state_digest


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

    def perceptual(self, image_BCHW: Tensor) -> Tensor:
        """The same of images in [-1, 1]."""
        return self.layers((image_BCHW + 1) * 127.5)

    def forward(self, pixel_BCHW: Tensor) -> Tensor:
        return self.output(self.features(pixel_BCHW))


def as_rgb(pixel_BCHW: Tensor) -> Tensor:
    return pixel_BCHW.expand(-1, 3, -1, -1) if pixel_BCHW.shape[1] == 1 else pixel_BCHW


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


def frozen_classifier(path: Path, device: torch.device) -> Classifier:
    """To look through, on that device.

    Raises:
        InputError: there is none; `varkd distill` trains it before it starts anything.
    """
    if not path.exists():
        raise InputError(
            f"images are compared by the run's own classifier, but {path} is not there; begin "
            "again with `varkd distill`"
        )
    return load_classifier(path)[0].to(device).requires_grad_(False)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}
