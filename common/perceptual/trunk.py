"""The convolutions of the published networks that LPIPS looks through.

They are VGG16 (arXiv 1409.1556, configuration D) and the one-tower AlexNet (arXiv 1404.5997) as
torchvision has them, by whose names and places in `features` their files are read.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

from torch import nn

Network = Literal["vgg", "alex"]


class Outline(NamedTuple):
    """What is known of a network before its weights are."""

    title: str
    published: str
    """torchvision's file."""
    taps: tuple[int, ...]
    """Places of the layers whose maps are compared."""
    widths: tuple[int, ...]
    """Channels of those maps."""
    smallest_side: int
    """Pixels below which a map would have none."""


OUTLINES: dict[Network, Outline] = {
    "vgg": Outline("VGG16", "vgg16-397923af.pth", (3, 8, 15, 22, 29), (64, 128, 256, 512, 512), 16),
    "alex": Outline(
        "AlexNet", "alexnet-owt-7be5be79.pth", (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), 31
    ),
}


def trunk(network: Network) -> nn.Sequential:
    """Up to the last layer that is looked at."""
    return nn.Sequential(*(_vgg() if network == "vgg" else _alex()))


def _vgg() -> Iterator[nn.Module]:
    blocks, before = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 3
    for block, (width, count) in enumerate(blocks):
        if block:
            yield nn.MaxPool2d(2, 2)
        for inside, outside in pairwise((before, *[width] * count)):
            yield nn.Conv2d(inside, outside, 3, padding=1)
            yield nn.ReLU(inplace=True)
        before = width


def _alex() -> Iterator[nn.Module]:
    yield from (nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True))
    yield nn.MaxPool2d(3, 2)
    yield from (nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True))
    yield nn.MaxPool2d(3, 2)
    for inside, outside in ((192, 384), (384, 256), (256, 256)):
        yield from (nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU(inplace=True))
