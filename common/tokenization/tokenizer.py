"""The contract of an image tokenizer: pixels <-> a grid of codes.

Shape letters: N images, B batch, H height, W width, L slots, V codes, D code width,
n = B * L latent vectors.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.config.plugins import PluginConfig, make
from common.config.quantities import Side
from common.config.schema import Config, validate
from common.errors import InputError
from common.files.tensors import fill, load_tensors, reading_header, save_tensors
from common.memory import module_bytes, require_memory
from common.models.code_table import CodeTable
from common.outline import outlines
from common.spec import SequenceSpec


class Tokenizer(nn.Module, ABC):
    """Holds its codebook as buffers; saved and loaded as safetensors."""

    shape: SequenceSpec
    """Vocabulary, length, grid and scales; its class count is 0, classes are the data's."""

    images_at_once: int = 256
    """Images that are decoded together, whatever the caller's batch."""

    def lent(self) -> Mapping[str, nn.Module]:
        """Modules without which some family cannot read its own tokens (`Backbone.borrowed`), by
        name: codes, or what paints them."""
        return {"codes": CodeTable(self.codebook_VD.detach())}

    @property
    @abstractmethod
    def codebook_VD(self) -> Tensor:
        """Decoder-side code vectors for codebook relaxation (docs/method.md, "Relaxation")."""

    @abstractmethod
    def encode(self, pixel_BCHW: Tensor) -> Tensor:
        """uint8 pixels to token_BL (int64), in raster order or coarse to fine."""

    @abstractmethod
    def image(self, token_BL: Tensor) -> Tensor:
        """Tokens to image_BCHW, nominally in [-1, 1] but not clamped."""

    def image_of(self, vector_BLD: Tensor) -> Tensor:
        """Code vectors in the order of the tokens to what `image` gives for codes of these
        vectors; they need not be codes, and gradients pass through them.

        Raises:
            InputError: this kind cannot.
        """
        raise InputError(
            f"a tokenizer of class {type(self).__name__} draws images of codes only, but "
            "images of vectors are wanted; choose another tokenizer.kind or objective"
        )

    def to_pixels(self, image_BCHW: Tensor) -> Tensor:
        """What `image` gives to uint8; an official tokenizer rounds as its sampler does."""
        return ((image_BCHW + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    @torch.no_grad()
    def decode(self, token_BL: Tensor, side: int | None = None) -> Tensor:
        """Tokens to uint8 pixel_BCHW, of another side if one is given.

        Images are resized before they are clamped and rounded, bicubic without antialias, as
        LlamaGen's sampler brings 384 pixels to 256 (docs/backbones.md, "LlamaGen sampling").
        """
        return self._pixels(self.image, token_BL, side)

    @torch.no_grad()
    def decode_vectors(self, vector_BLD: Tensor, side: int | None = None) -> Tensor:
        """The same of code vectors, which need not be codes.

        Raises:
            InputError: as `image_of`.
        """
        return self._pixels(self.image_of, vector_BLD, side)

    def _pixels(
        self, draw: Callable[[Tensor], Tensor], content: Tensor, side: int | None
    ) -> Tensor:
        parts = []
        for part in content.split(self.images_at_once):
            image_BCHW = draw(part)
            if side is not None and side != image_BCHW.shape[-1]:
                image_BCHW = F.interpolate(image_BCHW, size=(side, side), mode="bicubic")
            parts.append(self.to_pixels(image_BCHW))
        return torch.cat(parts)

    def spec(self, num_classes: int) -> SequenceSpec:
        return replace(self.shape, num_classes=num_classes)


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """A training pass: images (not clamped), their codes, and the quantiser's losses, weighted."""

    image_BCHW: Tensor
    token_BL: Tensor
    vector_nD: Tensor
    """What the codes stand for, without gradient."""
    codebook_loss: Tensor
    commitment_loss: Tensor


class TrainableTokenizer(Tokenizer, ABC):
    """Learns by gradient descent, `varkd pretrain --model tokenizer`."""

    @abstractmethod
    def reconstruct(self, image_BCHW: Tensor) -> Reconstruction:
        """Encode, quantise and decode images in [-1, 1], with gradients straight through."""

    @abstractmethod
    def place_codes(self, token_k: Tensor, vector_kD: Tensor) -> None:
        """Put the codes `token_k` where these latent vectors are."""


class TokenizerConfig(PluginConfig, ABC):
    """Knobs of a tokenizer, and how to obtain one."""

    @abstractmethod
    def fit(self, batches: Iterator[Tensor], *, size: int, channels: int, seed: int) -> Tokenizer:
        """Learn codes from uint8 batches pixel_BCHW of side `size`."""

    @abstractmethod
    def build(self, *, size: int, channels: int) -> Tokenizer:
        """An empty module of the right shape, to load a state dict into."""

    @abstractmethod
    def describe(self, size: int) -> SequenceSpec:
        """The tokens of images of side `size` (0 classes), before anything is fitted or loaded."""


class TrainableTokenizerConfig(TokenizerConfig, ABC):
    """`fit` gives the start of training: `varkd tokenize` takes only what was trained from it."""

    @abstractmethod
    def fit(
        self, batches: Iterator[Tensor], *, size: int, channels: int, seed: int
    ) -> TrainableTokenizer: ...


def require_room(config: TokenizerConfig, *, size: int, channels: int) -> None:
    """Refuse a tokenizer that does not fit into this machine's memory.

    Raises:
        InputError: its parameters and buffers are larger than what is free.
    """
    needed = module_bytes(lambda: config.build(size=size, channels=channels))
    sizes = "tokenizer.vocab_size, its widths or its depth"
    require_memory(needed, "a tokenizer of these sizes", f"lower {sizes}")


def save_tokenizer(
    path: Path,
    tokenizer: Tokenizer,
    config: TokenizerConfig,
    *,
    size: int,
    channels: int,
    **extra: Any,
) -> None:
    shape = {"size": size, "channels": channels}
    metadata = {"config": config.model_dump(mode="json"), "image": shape, **extra}
    save_tensors(path, tokenizer.state_dict(), metadata)


def load_tokenizer(path: Path) -> Tokenizer:
    """Rebuild what `save_tokenizer` stored.

    Raises:
        InputError: the file is missing, damaged, no tokenizer, or contradicts itself.
    """
    tensors, metadata = load_tensors(path)
    if "image" not in metadata:
        raise InputError(f"{path}: holds no tokenizer; run `varkd tokenize` first")
    with reading_header(path), outlines():
        config: TokenizerConfig = make("common.tokenization.tokenizers", metadata["config"])
        shape = validate(_ImageShape, metadata["image"], source="the images' shape")
        tokenizer = config.build(size=shape.size, channels=shape.channels)
    fill(path, tokenizer, tensors)
    return tokenizer.eval()


class _ImageShape(Config):
    size: Side
    channels: Literal[1, 3]


def decode_all(tokenizer: Tokenizer, token_NL: Tensor, *, batch_size: int = 256) -> Tensor:
    """Decode any number of sequences in batches; returns uint8 pixel_NCHW on the CPU."""
    device = tokenizer.codebook_VD.device
    parts = token_NL.split(batch_size)
    return torch.cat([tokenizer.decode(part.to(device)).cpu() for part in parts])
