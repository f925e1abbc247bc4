"""Parts of a split's token file: images are encoded, published codes are read.

Shape letters: A views of an image, B images of a batch, C channels, H height, W width, S side of a
view, L slots, n rows of a part.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.data.crops import VIEWS, Crops, cut_views
from common.data.published_codes import Codes
from common.data.tokens import TokenHeader, count_images, read_header, write_tokens
from common.device import place
from common.errors import InputError
from common.files.tensors import state_digest
from common.images.contents import Contents, Reading
from common.images.opening import ImageSource
from common.tokenization.tokenizer import load_tokenizer

BATCH = 64
"""Images that are decoded together."""


@dataclass(frozen=True)
class ImagesPart:
    """Rows of one split and the file that they go to."""

    path: Path
    source: ImageSource | Codes
    size: int
    """Side of an encoded view in pixels."""
    crops: Crops = "center"

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
        reading = Reading()
        if isinstance(part.source, Codes):
            token_nAL, label_n = part.source.read(reading)
            facts: dict[str, Any] = {"squared_error": 0.0, "pixels": 0}
        else:
            token_nAL, facts = self._encode(part.source, part, reading, watch)
            label_n = part.source.label_N
        facts["labels"] = label_n.unique().tolist()
        facts["contents"] = reading.contents().as_dict()
        facts["notes"] = dict(reading.notes)
        shape = self._tokenizer.shape
        header = TokenHeader(shape, (), self._digest, token_nAL.shape[1], facts)
        write_tokens(part.path, header, [(token_nAL, label_n)])

    @torch.no_grad()
    def _encode(
        self,
        source: ImageSource,
        part: ImagesPart,
        reading: Reading,
        watch: Callable[[int], None],
    ) -> tuple[Tensor, dict[str, Any]]:
        """token_nAL, and the reconstruction error of the first batch's first views."""
        tokens: list[Tensor] = []
        facts: dict[str, Any] = {}
        for pixel_BCHW in source.batches(BATCH, reading):
            watch(sum(len(token) for token in tokens))
            pixel_BACSS = cut_views(pixel_BCHW, part.crops, part.size)
            token_BL = self._tokenizer.encode(pixel_BACSS.flatten(0, 1).to(self._device)).cpu()
            tokens.append(token_BL.unflatten(0, (-1, VIEWS[part.crops])))
            if not facts:
                decoded = self._tokenizer.decode(tokens[0][:, 0].to(self._device)).cpu()
                difference = decoded.double() - pixel_BACSS[:, 0].double()
                facts["squared_error"] = float(difference.square().sum())
                facts["pixels"] = difference.numel()
        return torch.cat(tokens), facts
