"""What pixels mean: every mode and format against values worked out by hand."""

import struct

import numpy as np
import pytest
from building.encoded import (
    RED,
    SIDE,
    associated,
    encoded,
    flat,
    netpbm,
    over,
    palette,
    pixel,
    png,
    tags,
    wide,
)
from PIL import Image

from common.images.opening import ImagesConfig, decode_image

HALF = over(RED, 128)
WHITE = [255] * 3
GREY = [77] * 3


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (flat("RGB", RED), RED),
        (flat("L", 77), GREY),
        (flat("1", 1), WHITE),
        (flat("1", 0, "PPM"), (0, 0, 0)),
        (b"P4 8 8\n" + b"\xff" * SIDE, (0, 0, 0)),  # a PBM's 1 is black
        (b"P4 8 8\n" + b"\0" * SIDE, WHITE),
        (png(2, 0, b"\x55\x55"), [85] * 3),
        (png(4, 0, b"\x55" * 4), [85] * 3),
        (palette(), RED),
        (flat("RGB", RED, "GIF"), RED),
        (flat("RGB", RED, "TIFF"), RED),
        (flat("RGB", RED, "BMP"), RED),
        (flat("RGB", RED, "TGA"), RED),
        (flat("RGB", RED, "QOI"), RED),
        (flat("RGB", RED, "PPM"), RED),
        (flat("RGB", RED, "SGI"), RED),
        (flat("RGB", RED, "PCX"), RED),
        (flat("RGB", RED, "JPEG2000"), RED),
        (flat("RGB", RED, "WEBP", lossless=True), RED),
        (flat("RGBX", (*RED, 7), "TIFF"), RED),
        (flat("L", 77, "TIFF", tiffinfo=tags(photometric=0)), GREY),
    ],
)
def test_plain_samples_are_as_stored(data, expected):
    assert pixel(data) == list(expected)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (flat("RGBA", (*RED, 0)), WHITE),
        (flat("RGBA", (*RED, 255)), RED),
        (flat("RGBA", (*RED, 128)), HALF),
        (flat("RGBA", (*RED, 128), "TIFF"), HALF),
        (flat("RGBA", (*RED, 128), "WEBP", lossless=True), HALF),
        (flat("RGBA", (*RED, 128), "TGA"), HALF),
        (flat("RGBA", (*RED, 128), "QOI"), HALF),
        (flat("RGBA", (*RED, 128), "SGI"), HALF),
        (flat("RGBA", (*RED, 128), "JPEG2000"), HALF),
        (associated(100, 15, 20, 128), HALF),
        (flat("LA", (77, 128)), over([77] * 3, 128)),
        (flat("LA", (77, 0), "TIFF"), WHITE),
        (palette(transparency=1), WHITE),
        (palette(transparency=0), RED),
        (palette(transparency=bytes([255, 128])), HALF),
        (flat("P", 1, "GIF", transparency=1), WHITE),
        (flat("RGB", RED, transparency=RED), WHITE),
        (flat("RGB", RED, transparency=(200, 30, 41)), RED),
        (flat("L", 77, transparency=77), WHITE),
        (flat("L", 77, transparency=78), GREY),
        (png(1, 0, b"\xff", (b"tRNS", b"\0\1")), WHITE),
        (png(1, 0, b"\0", (b"tRNS", b"\0\1")), (0, 0, 0)),
        (png(1, 0, b"\0", (b"tRNS", b"\0\0")), WHITE),
        (png(2, 0, b"\x55\x55", (b"tRNS", b"\0\1")), WHITE),
        (png(2, 0, b"\x55\x55", (b"tRNS", b"\0\2")), [85] * 3),
        (png(4, 0, b"\x55" * 4, (b"tRNS", b"\0\5")), WHITE),
        (png(16, 0, struct.pack(">8H", *[3000] * 8), (b"tRNS", b"\x0b\xb8")), WHITE),
        (png(16, 0, struct.pack(">8H", *[3000] * 8), (b"tRNS", b"\x0b\xb9")), [12] * 3),
    ],
)
def test_transparent_pixels_show_the_background(data, expected):
    assert pixel(data) == pytest.approx(list(expected), abs=2)


def test_the_background_is_the_users():
    data = flat("RGBA", (*RED, 128))
    assert pixel(data, background="#002040") == pytest.approx(over(RED, 128, (0, 32, 64)), abs=1)
    assert pixel(flat("RGBA", (*RED, 0)), background="black", channels=1) == [0]
    luma = 0.299 * RED[0] + 0.587 * RED[1] + 0.114 * RED[2]
    assert pixel(data, channels=1) == pytest.approx([luma * 128 / 255 + 127], abs=1)
    for wrong in ("nocolour", "#00000080"):
        with pytest.raises(ValueError, match=r"is no colour|is itself transparent"):
            ImagesConfig(background=wrong)


@pytest.mark.parametrize(
    ("data", "level"),
    [
        (wide(0), 0),
        (wide(65535), 255),
        (wide(257 * 77), 77),
        (wide(257 * 77 + 128), 77),
        (wide(257 * 77 + 129), 78),
        (wide(257 * 77, "TIFF"), 77),
        (wide(257 * 77, "TIFF", ">u2"), 77),
        (wide(257 * 77, "TIFF", tiffinfo=tags(photometric=0)), 178),
        (wide(257 * 77, "JPEG2000"), 77),
        (netpbm(65535, 257 * 77), 77),
        (netpbm(1000, 302), 77),
        (netpbm(4095, 4095), 255),
        (png(16, 2, struct.pack(">24H", *[257 * 77] * 24)), 77),
        (png(16, 6, struct.pack(">32H", *[257 * 77, 257 * 77, 257 * 77, 65535] * 8)), 77),
        (png(16, 4, struct.pack(">16H", *[257 * 77, 65535] * 8)), 77),
    ],
)
def test_samples_of_16_bits_are_scaled_by_their_range(data, level):
    assert pixel(data) == [level] * 3
    assert pixel(data, channels=1) == [level]


def test_a_picture_of_16_bits_is_its_rounded_copy_through_the_same_crop():
    value = np.random.default_rng(0).integers(65536, size=(37, 53), dtype=np.uint16)
    config = ImagesConfig(kind="folder", size=SIDE, channels=1)
    copy = np.rint(value / 257).astype(np.uint8)
    found, expected = (
        decode_image(encoded(Image.fromarray(array), "PNG"), config, "x") for array in (value, copy)
    )
    assert found.tolist() == expected.tolist()


def jfif(y, cb, cr):
    cb, cr = cb - 128, cr - 128
    return [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]


@pytest.mark.parametrize(
    ("data", "expected", "tolerance"),
    [
        (flat("CMYK", (10, 80, 120, 60), "TIFF"), [187, 134, 103], 1),  # (255 - C)(255 - K) / 255
        (flat("CMYK", (10, 80, 120, 60), "JPEG", quality=98), [187, 134, 103], 3),  # Adobe's
        (flat("YCbCr", (120, 90, 170), "TIFF"), jfif(120, 90, 170), 1),
        (flat("YCbCr", (120, 90, 170), "JPEG", quality=98), jfif(120, 90, 170), 3),
        # CIELAB: L* 50 without colour is 18.42 % of white; 53.2, 80, 67 is the red of sRGB.
        (flat("LAB", (128, 128, 128), "TIFF"), [119, 119, 119], 2),
        (flat("LAB", (138, 128 + 81, 128 + 70), "TIFF"), [255, 0, 0], 8),
    ],
)
def test_other_colour_models_become_rgb(data, expected, tolerance):
    assert pixel(data) == pytest.approx(expected, abs=tolerance)
