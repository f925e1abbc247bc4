"""Stand-ins for the files of LPIPS: the package's weights of channels, torchvision's layers.

Their numbers are a function of their places, so that what the real package computed of the same
numbers can be a constant in a test.
"""

from pathlib import Path

import torch
from torch import Tensor

from common.perceptual.trunk import OUTLINES, Network, trunk


def scattered(count: int, salt: int) -> Tensor:
    """Numbers in [0, 1), float32: integers that are mixed, the same on every machine."""
    mixed = (torch.arange(count) + 1000003 * salt) * 2654435761 % 2**32
    mixed = (mixed ^ (mixed >> 15)) * 0x2C1B3C6D % 2**32
    return ((mixed ^ (mixed >> 12)) % 2**24).float() / 2**24


def images(*shape: int, salt: int) -> Tensor:
    """In [-1, 1]."""
    return 2 * scattered(torch.Size(shape).numel(), salt).view(shape) - 1


def layers(network: Network) -> dict[str, Tensor]:
    """As torchvision's file has them, which holds a classifier as well."""
    found: dict[str, Tensor] = {}
    for salt, (name, value) in enumerate(trunk(network).state_dict(prefix="features.").items()):
        spread = (6 / max(1, value[0].numel())) ** 0.5 if value.dim() == 4 else 0.1
        found[name] = spread * (2 * scattered(value.numel(), salt).view(value.shape) - 1)
    return found | {"classifier.6.bias": torch.zeros(1000)}


def channels(network: Network) -> dict[str, Tensor]:
    """As the package's file has them."""
    return {
        f"lin{index}.model.1.weight": scattered(width, 100 + index).view(1, width, 1, 1)
        for index, width in enumerate(OUTLINES[network].widths)
    }


def package(site: Path) -> Path:
    """A package `lpips` in `site` that nobody can import; its folder of weights."""
    folder = site / "lpips" / "weights" / "v0.1"
    folder.mkdir(parents=True)
    (site / "lpips" / "__init__.py").write_text("raise ImportError('it imports torchvision')\n")
    for network in OUTLINES:
        torch.save(channels(network), folder / f"{network}.pth")
    return folder
