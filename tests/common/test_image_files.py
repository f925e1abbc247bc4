"""Image files as a whole: refused, turned upright, cropped, counted, damaged."""

import struct
import time
from collections import Counter

import numpy as np
import pytest
from building.encoded import RED, SIDE, encoded, flat, netpbm, palette, pixel, png, wide
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.errors import InputError
from common.images.opening import ImagesConfig, decode_image


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
    """The square is that of the whole enlarged picture, of 35 million pixels."""
    value = np.random.default_rng(0).integers(256, size=(3, 26000), dtype=np.uint8)
    strip = Image.fromarray(value.T if turned else value)
    long = round(26000 * 64 / 3)
    target = (64, long) if turned else (long, 64)
    whole = np.asarray(strip.resize(target, Image.Resampling.BICUBIC))
    middle = (target[0] - 64) // 2 if not turned else (target[1] - 64) // 2
    expected = whole[middle : middle + 64] if turned else whole[:, middle : middle + 64]
    config = ImagesConfig(kind="folder", size=64, channels=1)
    found = decode_image(encoded(strip, "PNG"), config, "x")[0].numpy()
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_a_line_of_millions_of_pixels_is_cropped_in_seconds():
    """Enlarged, it has 2.6e12."""
    begun = time.perf_counter()
    line = encoded(Image.new("L", (1, 10_000_000), 9), "PNG")
    config = ImagesConfig(kind="folder", size=512, channels=1)
    found = decode_image(line, config, "x")
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
