"""From a file's content to pixels: what every kind of image that Pillow reads means.

Samples are scaled by their type's range to 8 bits, transparency lies on `images.background`,
`images.exif` says whether photographs are turned upright, of several frames the first counts, and
colour profiles are ignored: numbers are taken for sRGB, CMYK as 255 - ink.
"""

import functools
import io
import struct
import warnings
import zlib
from collections import Counter

import numpy as np
import torch
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from common.errors import InputError
from common.images.config import ImagesConfig

FORMATS = frozenset(
    {"AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI"}
    | {"TGA", "TIFF", "WEBP"}
)
"""What is read; Pillow's others are drawings (some start programs), fonts, icons or films."""
PNG, PNG_SIGNATURE = ("PNG",), b"\x89PNG\r\n\x1a\n"
MOST_PIXELS = 178_956_970
"""Pillow's own limit: decoding one image takes less than 3 GB."""
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""What Pillow's readers raise on files that are cut or forged."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation."""
ORIENTATION, PHOTOMETRIC, MIN_IS_WHITE = 0x0112, 262, 0
WIDE_TARGET = 2**25
"""Pixels that an image may have between resizing and cropping."""


def decode_image(
    data: bytes | None, config: ImagesConfig, where: str, notes: Counter[str] | None = None
) -> Tensor:
    """One encoded image to uint8 pixel_CHW of the configured size and channels.

    `notes` counts what was done to its pixels, by a word or two.

    Raises:
        InputError: the bytes are no image, or one whose samples have no known range; the message
            names `where`.
    """
    notes = Counter() if notes is None else notes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, odd EXIF and odd palettes
            with Image.open(io.BytesIO(data or b""), formats=_formats_of(data or b"")) as image:
                plain = plain_image(image, config, notes, data or b"")
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except UnidentifiedImageError:
        found = "the file is empty" if not data else "no known image format"
        raise InputError(f"{where}: not a readable image ({found}); remove or replace it") from None
    except Image.DecompressionBombError:
        raise InputError(
            f"{where}: has more than {MOST_PIXELS / 1e6:.0f} megapixels; scale it down or remove it"
        ) from None
    except DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{where}: not a readable image ({reason}); remove or replace it"
        ) from None
    samples = bytearray(center_crop(plain, config.size).tobytes())  # faster than np.asarray
    flat = torch.frombuffer(samples, dtype=torch.uint8)
    return flat.view(config.size, config.size, -1).permute(2, 0, 1)


def _formats_of(data: bytes) -> tuple[str, ...]:
    """Those that may read a file that begins so: Pillow asks one after the other."""
    return PNG if data.startswith(PNG_SIGNATURE) else _formats()


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(FORMATS.intersection(Image.OPEN))


@functools.cache
def suffixes() -> frozenset[str]:
    """Endings of files, in lower case, that hold images which are read."""
    Image.init()
    return frozenset(end for end, name in Image.registered_extensions().items() if name in FORMATS)


def plain_image(
    image: Image.Image, config: ImagesConfig, notes: Counter[str], data: bytes = b""
) -> Image.Image:
    """Upright, opaque, 8 bits per sample, in the configured number of channels.

    Raises:
        InputError: samples without a known range; the sentence does not name the file.
    """
    image.load()
    depth = _png_depth(image, data)
    alpha = _key_alpha(image, depth)
    plain = _eight_bits(image, notes)
    if alpha is None and plain.has_transparency_data:
        plain = plain.convert("RGBA")
        alpha = plain.getchannel("A")
    plain = plain.convert("RGB")
    if alpha is not None and alpha.getextrema() != (255, 255):
        notes["transparent"] += 1
        canvas = Image.new("RGB", image.size, config.background)
        canvas.paste(plain, mask=alpha)
        plain = canvas
    turn = UPRIGHT.get(_orientation(image)) if config.exif == "apply" else None
    if turn is not None:
        notes["turned upright"] += 1
        plain = plain.transpose(turn)
    if _has_more_frames(image):
        notes["of several frames"] += 1
    return plain.convert("L") if config.channels == 1 else plain


def _eight_bits(image: Image.Image, notes: Counter[str]) -> Image.Image:
    """The same picture in a mode of 8 bits per sample."""
    mode, kind = image.mode, image.format
    if mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM")):
        value_HW = np.asarray(image).astype(np.int64)
        if value_HW.min() < 0 or value_HW.max() > 65535:
            raise InputError("has samples outside of 0 to 65535; save it with 8 or 16 bits")
        if _is_white_first(image):  # Pillow turns those of 8 bits, not of 16
            value_HW = 65535 - value_HW
        notes["of 16 bits"] += 1
        return Image.fromarray(((value_HW + 128) // 257).astype(np.uint8))
    if mode in ("I", "F"):
        what = "32-bit integers" if mode == "I" else "floating-point numbers"
        raise InputError(
            f"holds {what}, whose black and white are not known; save it with 8 or 16 bits"
        )
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
        converted = ImageCms.applyTransform(image, transform)
        if converted is not None:
            return converted
    return image


def _is_white_first(image: Image.Image) -> bool:
    tags = getattr(image, "tag_v2", {})
    return tags.get(PHOTOMETRIC) == MIN_IS_WHITE


def _png_depth(image: Image.Image, data: bytes) -> int:
    return data[24] if image.format == "PNG" and len(data) > 24 else 8


def _key_alpha(image: Image.Image, depth: int) -> Image.Image | None:
    """0 where a picture without palette has the one value that its file calls transparent.

    Pillow compares PNG's value of 1, 2, 4 or 16 bits with samples of 8.
    """
    key = image.info.get("transparency")
    if key is None or isinstance(key, bytes) or image.mode in ("P", "PA", "LA", "RGBA"):
        return None
    if image.mode == "RGB" and depth == 16:
        raise InputError(
            "has one transparent colour of 16 bits, which is lost among 8; save it with an alpha "
            "channel"
        )
    value = np.asarray(image.convert("L") if image.mode == "1" else image)
    wanted = np.asarray(key)
    if image.mode == "1":
        wanted = np.where(wanted, 255, 0)
    elif depth < 8:
        wanted = wanted * (255 // (2**depth - 1))
    equal = value == wanted
    clear_HW = equal.all(-1) if equal.ndim == 3 else equal
    return Image.fromarray(np.where(clear_HW, 0, 255).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except DAMAGE:
        return 1  # photographs with broken EXIF are common, and shown as they are


def _has_more_frames(image: Image.Image) -> bool:
    try:
        return getattr(image, "is_animated", False)
    except DAMAGE:
        return False  # the first one was fine


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's crop: BOX halvings, BICUBIC to the short side, centre (docs/backbones.md, "LlamaGen
    codes")."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    if min(image.size) != size:
        scale = size / min(image.size)
        target = round(image.width * scale), round(image.height * scale)
        if target[0] * target[1] > WIDE_TARGET:
            return _crop_of_a_strip(image, target, size)
        image = image.resize(target, Image.Resampling.BICUBIC)
    if image.size == (size, size):
        return image
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _crop_of_a_strip(image: Image.Image, target: tuple[int, int], size: int) -> Image.Image:
    """The same square without what lies beside it: a line of pixels would become gigabytes."""
    box: list[tuple[float, float]] = []
    cut: list[tuple[int, int]] = []
    for length, wanted in zip(image.size, target, strict=True):
        step = length / wanted
        first = (wanted - size) // 2 * step
        start = max(0, int(first) - 4)  # BICUBIC looks two pixels to each side
        cut.append((start, min(length, int(first + size * step) + 5)))
        box.append((first - start, first + size * step - start))
    part = image.crop((cut[0][0], cut[1][0], cut[0][1], cut[1][1]))
    inside = (box[0][0], box[1][0], min(box[0][1], part.width), min(box[1][1], part.height))
    return part.resize((size, size), Image.Resampling.BICUBIC, box=inside)
