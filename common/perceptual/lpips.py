"""LPIPS 0.1 (arXiv 1801.03924, equation 1) of files that the user has.

The weights of channels lie in the package `lpips`, which is looked at and never imported: it
imports torchvision. Those of the network are torchvision's own file.

Shape letters: B images, C channels, H height, W width, F features.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from common.config.schema import Config, UserPath
from common.errors import InputError
from common.files.loading import load
from common.files.official import Checkpoint
from common.files.tensors import state_digest
from common.outline import outlines
from common.perceptual.trunk import OUTLINES, Network, trunk

PACKAGE = "lpips"
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation by channel, as pixels in [-1, 1] have them (the package's)."""
EPSILON = 1e-10
"""Beside the norm of a place's channels (the package's)."""


class LpipsConfig(Config):
    network: Network = "vgg"
    """Which one is looked through; `vgg` needs images of 16 pixels or more, `alex` of 31."""
    weights: UserPath
    """torchvision's file of it: `vgg16-397923af.pth` or `alexnet-owt-7be5be79.pth`. The weights of
    its channels come from the installed package lpips."""

    def require_side(self, key: str, side: int) -> None:
        """Refuse images of which some layer would see nothing; `key` is where this table stands.

        Raises:
            ValueError: `side` is too small.
        """
        outline = OUTLINES[self.network]
        if side < outline.smallest_side:
            raise ValueError(
                f"{key} compares images through {outline.title}, which needs "
                f"{outline.smallest_side} pixels, but images.size is {side}; leave {key} out, and "
                "the run's own classifier compares them"
            )

    @property
    def is_installed(self) -> bool:
        """Whether the package is."""
        return importlib.util.find_spec(PACKAGE) is not None

    def check(self) -> None:
        """Refuse files that are something else, by their tensors' names and shapes alone.

        Raises:
            InputError: one is missing or damaged or holds another network.
        """
        self._open()

    def load(self) -> "Lpips":
        """The network on the CPU, in float32 and frozen.

        Raises:
            InputError: as `check`, or a number is none that a distance can be made of.
        """
        channels, layers = self._open()
        given = {}
        for name, value in channels.tensors(_channel_shapes(self.network), torch.float32):
            if bool((value < 0).any()):
                raise InputError(
                    f"{channels.path}: {name} has negative numbers, of which no distance is made; "
                    f"install {PACKAGE} again"
                )
            given[name.partition(".")[0]] = value.flatten()
        with outlines():
            model = Lpips(self.network)
        named = {name for name in layers.entries if name in _layer_shapes(self.network)}
        load(
            model,
            layers,
            lambda name: name if name in named else None,
            given=given | scaling(),
            dtype=torch.float32,
        )
        return model.requires_grad_(False).eval()

    def title(self, digest: str) -> str:
        """For reports."""
        return f"LPIPS ({self.network}, {self.weights.name}, digest {digest})"

    def digest(self) -> str:
        """Sixteen hex digits of all that distances depend on; reads the files whole."""
        return state_digest(self.load())

    def _open(self) -> tuple[Checkpoint, Checkpoint]:
        """The files of channels and layers."""
        channels, layers = Checkpoint(self._channels_file()), Checkpoint(self.weights)
        outline = OUTLINES[self.network]
        _require(channels, _channel_shapes(self.network), f"install {PACKAGE} 0.1 again")
        advice = f"give the path of {outline.published}, torchvision's {outline.title}"
        _require(layers, _layer_shapes(self.network), advice)
        return channels, layers

    def _channels_file(self) -> Path:
        found = importlib.util.find_spec(PACKAGE)
        if found is None:
            raise InputError(
                f"LPIPS needs the package {PACKAGE}, which is not installed, for its weights of "
                f"channels; pip install {PACKAGE} (the extra {PACKAGE}), or leave the table out "
                "that names its network"
            )
        folder = Path(next(iter(found.submodule_search_locations or ()), ""))
        return folder / "weights" / "v0.1" / f"{self.network}.pth"


class Lpips(nn.Module):
    """image_BCHW in [-1, 1], of one or three channels, to feature_BF whose squared distance between
    two images is their LPIPS; differentiable in the image."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.features = trunk(network)
        self._taps = OUTLINES[network].taps
        for index, width in enumerate(OUTLINES[network].widths):
            self.register_buffer(f"lin{index}", torch.ones(width))
        for name, value in scaling().items():
            self.register_buffer(name, value)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        shift_CHW, scale_CHW = self.get_buffer("shift"), self.get_buffer("scale")
        map_BCHW, found = (image_BCHW - shift_CHW) / scale_CHW, []
        for place, layer in enumerate(self.features):
            map_BCHW = layer(map_BCHW)
            if place in self._taps:
                weight_C = self.get_buffer(f"lin{len(found)}")
                places = map_BCHW.shape[2] * map_BCHW.shape[3]
                norm_BHW = torch.linalg.vector_norm(map_BCHW, dim=1, keepdim=True)
                unit_BCHW = map_BCHW / (norm_BHW + EPSILON)
                found.append((unit_BCHW * (weight_C / places).sqrt()[:, None, None]).flatten(1))
        return torch.cat(found, dim=1)


def scaling() -> dict[str, Tensor]:
    """What pixels are brought to before the first layer."""
    return {"shift": _of_channels(SHIFT), "scale": _of_channels(SCALE)}


def _of_channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]


def _channel_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    widths = OUTLINES[network].widths
    return {f"lin{i}.model.1.weight": (1, width, 1, 1) for i, width in enumerate(widths)}


def _layer_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    with outlines():
        state = trunk(network).state_dict(prefix="features.")
    return {name: tuple(value.shape) for name, value in state.items()}


def _require(checkpoint: Checkpoint, wanted: dict[str, tuple[int, ...]], advice: str) -> None:
    for name, shape in wanted.items():
        found = checkpoint.shapes.get(name)
        if found != shape:
            said = "is not there" if found is None else f"has shape {list(found)}"
            raise InputError(f"{checkpoint.path}: {name} {said}, expected {list(shape)}; {advice}")
