"""Image files of one colour in every format and mode, and the colour that is read from them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, TiffImagePlugin

from common.images.opening import ImagesConfig, decode_image

SIDE = 8


def encoded(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def flat(mode, value, kind="PNG", **options):
    return encoded(Image.new(mode, (SIDE, SIDE), value), kind, **options)


def wide(value, kind="PNG", dtype="<u2", **options):
    return encoded(Image.fromarray(np.full((SIDE, SIDE), value, dtype)), kind, **options)


def png(depth, colour, row, *chunks):
    """A PNG by hand: SIDE equal rows of packed samples."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, colour, 0, 0, 0)
    rows = zlib.compress((b"\0" + row) * SIDE)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tags(photometric):
    found = TiffImagePlugin.ImageFileDirectory_v2()
    found[262] = photometric
    return found


def associated(red, green, blue, alpha):
    """A TIFF whose colours are stored multiplied by alpha: tag 338, extra samples, is 1."""
    data = flat("RGBA", (red, green, blue, alpha), "TIFF")
    straight, multiplied = (struct.pack("<HHIH", 338, 3, 1, kind) for kind in (2, 1))
    assert data.count(straight) == 1
    return data.replace(straight, multiplied)


def netpbm(maxval, value):
    return b"P5 8 8 %d\n" % maxval + struct.pack(">H", value) * SIDE * SIDE


def palette(mode="P", **options):
    image = Image.new(mode, (SIDE, SIDE), 1)
    image.putpalette([0, 0, 255, 200, 30, 40] + [0] * 762)
    return encoded(image, "PNG", **options)


def pixel(data, **changes):
    """The colour of the first pixel; all of a flat picture are alike."""
    config = ImagesConfig.model_validate({"kind": "folder", "size": SIDE, "channels": 3, **changes})
    return decode_image(data, config, "x")[:, 0, 0].tolist()


def over(colour, alpha, background=(255, 255, 255)):
    return [
        c * alpha / 255 + b * (1 - alpha / 255) for c, b in zip(colour, background, strict=True)
    ]


RED = (200, 30, 40)
