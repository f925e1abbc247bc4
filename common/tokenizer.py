"""The contract of an image tokenizer: pixels <-> a grid of codes.

Shape letters: N images, B batch, H height, W width, L slots, V codes, D code width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from common.backbone import SequenceSpec
from common.checkpoint import load_tensors, save_tensors
from common.errors import InputError
from common.plugins import PluginConfig, make


class Tokenizer(nn.Module, ABC):
    """Holds its codebook as buffers; saved and loaded as safetensors."""

    vocab_size: int
    grid: tuple[int, int]

    @property
    @abstractmethod
    def codebook_VD(self) -> Tensor:
        """Decoder-side code vectors for codebook relaxation (method.md 2.4)."""

    @abstractmethod
    def encode(self, pixel_BCHW: Tensor) -> Tensor:
        """uint8 pixels to token_BL (int64) in raster order."""

    @abstractmethod
    def decode(self, token_BL: Tensor) -> Tensor:
        """Tokens to uint8 pixel_BCHW."""

    def spec(self, num_classes: int) -> SequenceSpec:
        rows, cols = self.grid
        return SequenceSpec(self.vocab_size, rows * cols, self.grid, num_classes)


class TokenizerConfig(PluginConfig, ABC):
    """Knobs of a tokenizer, and how to obtain one."""

    @abstractmethod
    def fit(self, batches: Iterator[Tensor], *, size: int, channels: int, seed: int) -> Tokenizer:
        """Learn codes from uint8 batches pixel_BCHW of side `size`."""

    @abstractmethod
    def build(self, *, size: int, channels: int) -> Tokenizer:
        """An empty module of the right shape, to load a state dict into."""

    @abstractmethod
    def describe(self, size: int) -> tuple[int, tuple[int, int]]:
        """(vocabulary, grid) for images of side `size`, before anything is fitted."""


def save_tokenizer(
    path: Path, tokenizer: Tokenizer, config: TokenizerConfig, *, size: int, channels: int
) -> None:
    shape = {"size": size, "channels": channels}
    metadata = {"config": config.model_dump(mode="json"), "image": shape}
    save_tensors(path, tokenizer.state_dict(), metadata)


def load_tokenizer(path: Path) -> Tokenizer:
    """Rebuild what `save_tokenizer` stored."""
    tensors, metadata = load_tensors(path)
    if "image" not in metadata:
        raise InputError(f"{path}: holds no tokenizer; run `varkd tokenize` first")
    config: TokenizerConfig = make("common.tokenizers", metadata["config"])
    tokenizer = config.build(**metadata["image"])
    tokenizer.load_state_dict(tensors)
    return tokenizer.eval()


@torch.no_grad()
def decode_all(tokenizer: Tokenizer, token_NL: Tensor, batch_size: int = 256) -> Tensor:
    """Decode any number of sequences in batches; returns uint8 pixel_NCHW on the CPU."""
    return torch.cat([tokenizer.decode(part).cpu() for part in token_NL.split(batch_size)])
