"""What pixels mean: every mode and format against values worked out by hand, and hostile files."""

import io
import struct
import time
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from common.errors import InputError
from common.images import ImagesConfig, decode_image

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


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (wide(3, "TIFF", "<i4"), "x: holds 32-bit integers, whose black and white are not known"),
        (wide(0.5, "TIFF", "<f4"), "x: holds floating-point numbers, whose black"),
        (b"Pf 8 8 -1.0\n" + bytes(256), "x: holds floating-point numbers"),
        (
            png(16, 2, struct.pack(">24H", *[257] * 24), (b"tRNS", struct.pack(">3H", 1, 2, 3))),
            "x: has one transparent colour of 16 bits",
        ),
        (b"", r"x: not a readable image \(the file is empty\)"),
        (None, r"x: not a readable image \(the file is empty\)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "no known image format"),
        (flat("RGB", RED)[:45], "x: not a readable image"),
        (flat("1", 1).replace(struct.pack(">II", 8, 8), struct.pack(">II", 20000, 10000)), "x: "),
        (encoded(Image.new("1", (20000, 10000)), "PNG"), "x: has more than 179 megapixels; scale"),
    ],
)
def test_what_has_no_clear_pixels_is_refused_by_a_sentence(data, message):
    with pytest.raises(InputError, match=message):
        pixel(data)


STORED = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
SHOWN = {
    1: STORED,
    2: STORED[:, ::-1],
    3: STORED[::-1, ::-1],
    4: STORED[::-1],
    5: STORED.T,
    6: np.rot90(STORED, -1),
    7: STORED[::-1, ::-1].T,
    8: np.rot90(STORED),
}
"""EXIF's table: where row 0 and column 0 of what is stored lie in what is shown."""


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_photographs_are_turned_upright_unless_ignored(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(STORED).convert("RGB"), kind, exif=exif, **lossless)
    config = ImagesConfig(kind="folder", size=6, channels=1)
    shown = SHOWN[orientation]
    top, left = (shown.shape[0] - 6) // 2, (shown.shape[1] - 6) // 2
    expected = shown[top : top + 6, left : left + 6]
    assert decode_image(data, config, "x")[0].tolist() == expected.tolist()
    if kind != "TIFF":  # Pillow itself turns those
        ignored = config.model_copy(update={"exif": "ignore"})
        assert decode_image(data, ignored, "x")[0].tolist() == STORED[:, 1:7].tolist()


def test_broken_exif_is_no_reason_to_refuse_a_photograph():
    data = flat("RGB", RED, "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f rubbish")
    assert pixel(data) == pytest.approx(RED, abs=3)


def test_what_was_done_to_pixels_is_counted():
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in (RED, (0, 0, 255))]
    exif = Image.Exif()
    exif[0x0112] = 3
    notes: Counter[str] = Counter()
    config = ImagesConfig(kind="folder", size=SIDE, channels=3)
    for data in (
        encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        flat("RGBA", (*RED, 9)),
        flat("RGBA", (*RED, 255)),
        wide(9),
        flat("RGB", RED, exif=exif),
    ):
        decode_image(data, config, "x", notes)
    assert notes == {"of several frames": 2, "transparent": 1, "of 16 bits": 1, "turned upright": 1}
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel(animated) == list(RED)


@pytest.mark.parametrize("turned", [False, True])
def test_a_strip_is_cropped_without_drawing_all_of_it(turned):
    """The square is that of the whole enlarged picture: 54 million pixels here, 2.6e12 below."""
    value = np.random.default_rng(0).integers(256, size=(3, 40000), dtype=np.uint8)
    strip = Image.fromarray(value.T if turned else value)
    long = round(40000 * 64 / 3)
    target = (64, long) if turned else (long, 64)
    whole = np.asarray(strip.resize(target, Image.Resampling.BICUBIC))
    middle = (target[0] - 64) // 2 if not turned else (target[1] - 64) // 2
    expected = whole[middle : middle + 64] if turned else whole[:, middle : middle + 64]
    config = ImagesConfig(kind="folder", size=64, channels=1)
    found = decode_image(encoded(strip, "PNG"), config, "x")[0].numpy()
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    begun = time.perf_counter()
    line = encoded(Image.new("L", (1, 10_000_000), 9), "PNG")
    found = decode_image(line, config.model_copy(update={"size": 512}), "x")
    assert found.unique().tolist() == [9]
    assert time.perf_counter() - begun < 60, "seconds; drawing all of it would take days"


WHOLE = [
    flat("RGBA", (*RED, 128)),
    palette(transparency=bytes([255, 128])),
    flat("P", 1, "GIF", transparency=1),
    flat("RGB", RED, "JPEG"),
    flat("CMYK", (1, 2, 3, 4), "JPEG"),
    flat("RGB", RED, "JPEG2000"),
    flat("RGBA", (*RED, 128), "WEBP"),
    flat("RGBA", (*RED, 128), "AVIF"),
    flat("RGBA", (*RED, 128), "TIFF", compression="tiff_lzw"),
    flat("LAB", (1, 2, 3), "TIFF"),
    flat("P", 3, "BMP"),
    flat("RGBA", (*RED, 128), "TGA"),
    flat("RGBA", (*RED, 128), "QOI"),
    flat("RGBA", (*RED, 128), "SGI"),
    flat("P", 3, "PCX"),
    wide(999, "TIFF"),
    netpbm(1000, 302),
]


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(
    whole=st.sampled_from(WHOLE),
    changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6),
    length=st.integers(0, 4000),
)
def test_damaged_files_are_read_or_refused(whole, changes, length):
    data = bytearray(whole[: max(length, 4)] if length < len(whole) else whole)
    for place, value in changes:
        data[place % len(data)] = value
    config = ImagesConfig(kind="folder", size=SIDE, channels=3)
    try:
        found = decode_image(bytes(data), config, "x")
    except InputError as error:
        sentence = str(error)
        assert sentence[:3] == "x: "
    else:
        assert found.shape == (3, SIDE, SIDE)
