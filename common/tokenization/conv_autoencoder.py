"""What the two official tokenizers share: a convolutional autoencoder around a quantiser, read
from a published file (docs/backbones.md, "VAR tokenizer").

Shape letters: B batch, C channels, H height, W width, h and w latent sides, L slots, D code width.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from common.config.quantities import Depth, Vocabulary, Width
from common.config.schema import UserPath
from common.errors import InputError
from common.files.loading import Rename, load
from common.files.official import Checkpoint
from common.outline import outlines
from common.tokenization.conv import GROUPS, ConvSizes, Decoder, Encoder
from common.tokenization.tokenizer import Tokenizer, TokenizerConfig

PIXELS_AT_ONCE = 2**19
"""Bounds the memory of `encode` and `decode`: 8 images of side 256."""
FAMILIES = {
    "encoder.mid.1.q.": "a LlamaGen tokenizer (kind llamagen_vq)",
    "encoder.mid.attn_1.qkv.": "a VAR tokenizer (kind var_vqvae)",
    "tok_embeddings.": "a LlamaGen transformer",
    "word_embed.": "a VAR transformer",
    "layers.cross_dec.": "an ARPG transformer",
}
"""Names that only one family of files has."""


class ConvTokenizerConfig(TokenizerConfig, ABC):
    weights: UserPath | None = None
    """The official file, as downloaded or as safetensors; `varkd tokenize` reads it."""
    base: Annotated[Width, Field(multiple_of=GROUPS)] = 128
    """Channels at full resolution."""
    ch_mult: tuple[Depth, ...] = Field(default=(1, 1, 2, 2, 4), min_length=1, max_length=12)
    """Channels of every level in multiples of base; each level has half the side of the last."""
    res_blocks: Depth = 2
    """Residual blocks per level; the decoder has one more."""
    z_channels: Width = 256
    """Channels between encoder and quantiser."""
    vocab_size: Vocabulary = 16384
    """Code vectors."""

    signature: ClassVar[str]
    """Key in FAMILIES of the files that this kind reads."""
    published: ClassVar[str]
    """Names of the published files."""

    @property
    @abstractmethod
    def sizes(self) -> ConvSizes:
        """What encoder and decoder are built from."""

    @abstractmethod
    def rename(self, name: str) -> str | None:
        """An official name to the module's, `common.files.official.Rename`."""

    def given(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """Entries of the module that are put together from several in the file."""
        return {}

    def fit(self, batches: Iterator[Tensor], *, size: int, channels: int, seed: int) -> Tokenizer:
        """Read the official weights; there is nothing to learn, so no image is looked at.

        Raises:
            InputError: grey images, a wrong image size, or no file that holds this very network.
        """
        self.describe(size)
        if channels != 3:
            raise InputError(
                f"tokenizer {self.kind} reads colour images, but images.channels is {channels}; "
                "set it to 3"
            )
        if self.weights is None:
            raise InputError(
                f"tokenizer.weights is not set; give the path of {self.published}, or of a file "
                "with the same layout"
            )
        checkpoint = Checkpoint(self.weights)
        self._require_this_network(checkpoint)
        with outlines():
            tokenizer = self.build(size=size, channels=channels)
        given = self.given(checkpoint)
        load(tokenizer, checkpoint, self.rename, given=given, dtype=torch.float32)
        return tokenizer.eval()

    def _require_this_network(self, checkpoint: Checkpoint) -> None:
        names = list(checkpoint.entries)
        prefix = next((p for p in FAMILIES if any(n.startswith(p) for n in names)), None)
        family = FAMILIES[prefix] if prefix else f"no known network ({names[0]}, ...)"
        if prefix != self.signature:
            raise InputError(
                f"{checkpoint.path}: holds {family}, expected {FAMILIES[self.signature]}; choose "
                f"another file, such as {self.published}, or another tokenizer.kind"
            )
        found = _sizes_in(checkpoint.shapes, self.rename)
        for name, expected in self.model_dump(include=set(found)).items():
            if found[name] != expected:
                held = ", ".join(f"{key} {value}" for key, value in found.items())
                raise InputError(
                    f"{checkpoint.path}: holds {family} with {held}, but tokenizer.{name} is "
                    f"{expected}; choose the sizes of the file"
                )


class ConvTokenizer(Tokenizer):
    """Encoder, quantiser, decoder; a kind adds how a latent map becomes tokens and back."""

    def __init__(
        self, config: ConvTokenizerConfig, *, size: int, code_width: int, kernel: int
    ) -> None:
        """`kernel` is the side of the convolutions around the quantiser."""
        super().__init__()
        self.shape = config.describe(size)
        self.images_at_once = max(1, PIXELS_AT_ONCE // size**2)
        z_channels, padding = config.z_channels, kernel // 2
        self.encoder = Encoder(config.sizes)
        self.quant_conv = nn.Conv2d(z_channels, code_width, kernel, padding=padding)
        self.post_quant_conv = nn.Conv2d(code_width, z_channels, kernel, padding=padding)
        self.decoder = Decoder(config.sizes)

    @abstractmethod
    def quantise(self, latent_BDhw: Tensor) -> Tensor:
        """token_BL of a latent map."""

    @abstractmethod
    def embed(self, token_BL: Tensor) -> Tensor:
        """The quantised latent_BDhw that tokens stand for."""

    def latent(self, image_BCHW: Tensor) -> Tensor:
        """latent_BDhw of images in [-1, 1], before it is quantised."""
        return self.quant_conv(self.encoder(image_BCHW))

    def render(self, latent_BDhw: Tensor) -> Tensor:
        """A quantised latent map to image_BCHW, nominally in [-1, 1] but not clamped."""
        return self.decoder(self.post_quant_conv(latent_BDhw))

    @torch.no_grad()
    def encode(self, pixel_BCHW: Tensor) -> Tensor:
        parts = pixel_BCHW.split(self.images_at_once)
        return torch.cat([self.quantise(self.latent(normalise(part))) for part in parts])

    def image(self, token_BL: Tensor) -> Tensor:
        return self.render(self.embed(token_BL))


def normalise(pixel_BCHW: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return pixel_BCHW.float() / 255 * 2 - 1


def _sizes_in(shapes: Mapping[str, tuple[int, ...]], rename: Rename) -> dict[str, Any]:
    """The network's sizes under the names of the config's fields; empty for a damaged file, whose
    missing names `load` will list."""
    ours = {rename(name): shape for name, shape in shapes.items()}

    def count(pattern: str) -> int:
        return next(index for index in itertools.count() if pattern.format(index) not in ours)

    level = "encoder.conv_blocks.{}.res.0.conv1.weight"
    try:
        base = ours["encoder.conv_in.weight"][0]
        vocab_size, code_width = shapes["quantize.embedding.weight"]
        return {
            "base": base,
            "ch_mult": tuple(ours[level.format(i)][0] // base for i in range(count(level))),
            "res_blocks": count("encoder.conv_blocks.0.res.{}.conv1.weight"),
            "z_channels": ours["encoder.conv_out.weight"][0],
            "vocab_size": vocab_size,
            "code_width": code_width,
        }
    except (KeyError, IndexError, ValueError):
        return {}
