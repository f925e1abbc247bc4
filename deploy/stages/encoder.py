"""Parts of a split's token file, whatever their source.

Shape letters: A views of an image, B images of a batch, C channels, H height, W width, L slots, n
rows of a part.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.data.token_rows import TokenRows
from common.data.tokens import TokenHeader, count_images, read_header, write_tokens
from common.device import place
from common.errors import InputError
from common.files.tensors import state_digest
from common.images.contents import Contents, Reading
from common.tokenization.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class ImagesPart:
    """Rows of one split and the file that they go to."""

    path: Path
    source: TokenRows

    def __len__(self) -> int:
        return len(self.source)


def outdated(part: ImagesPart) -> str | None:
    """Why a part that is there has to be made again, with the name of what differs; else None."""
    try:
        facts = read_header(part.path).facts
        if count_images(part.path) != len(part):
            return "it has another number of images"
    except InputError as error:
        return str(error)
    if "contents" not in facts:
        return "it does not say what it was made of"
    return Contents.from_dict(facts["contents"]).difference(part.source)


class Encoder:
    """Holds the tokenizer on its device and makes one part after the other."""

    def __init__(self, tokenizer_file: Path, device: str) -> None:
        self._device = place(device)
        self._tokenizer = load_tokenizer(tokenizer_file).to(self._device)
        self._digest = state_digest(self._tokenizer)

    def make(self, part: ImagesPart, watch: Callable[[int], None] = lambda done: None) -> None:
        """Write `part.path`; `watch` hears how many of its images are done.

        Raises:
            InputError: an image or a file of codes is bad, or the part cannot be written.
        """
        reading, encoder = Reading(), _Measured(self._tokenizer, self._device)
        token_nAL, label_n = part.source.read(encoder, reading, watch)
        facts: dict[str, Any] = {
            "squared_error": encoder.squared_error,
            "pixels": encoder.pixels,
            "labels": label_n.unique().tolist(),
            "contents": reading.contents().as_dict(),
            "notes": dict(reading.notes),
        }
        shape = self._tokenizer.shape
        header = TokenHeader(shape, (), self._digest, token_nAL.shape[1], facts)
        write_tokens(part.path, header, [(token_nAL, label_n)])


class _Measured:
    """The tokenizer, which counts the error of what it is shown again."""

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self._tokenizer, self._device = tokenizer, device
        self.squared_error, self.pixels = 0.0, 0

    @torch.no_grad()
    def encode(self, pixel_BCHW: Tensor) -> Tensor:
        return self._tokenizer.encode(pixel_BCHW.to(self._device)).cpu()

    @torch.no_grad()
    def measure(self, pixel_BCHW: Tensor, token_BL: Tensor) -> None:
        decoded = self._tokenizer.decode(token_BL.to(self._device)).cpu()
        difference = decoded.double() - pixel_BCHW.double()
        self.squared_error += float(difference.square().sum())
        self.pixels += difference.numel()
