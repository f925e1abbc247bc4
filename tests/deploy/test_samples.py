"""Samples as files for other people's evaluators: sides, rounding, order, room on the disk."""

import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import InputError
from common.tokenization.tokenizers import llamagen_vq, patch_kmeans
from deploy.stages.samples_file import save_npz, shuffled


def cubic(distance):
    """The convolution kernel of bicubic interpolation with a = -0.75."""
    x, a = np.abs(distance), -0.75
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def resized(image_HW, side):
    """Four taps around each centre whatever the scale, as no antialias means; borders repeat."""
    size = len(image_HW)
    centre = (np.arange(side) + 0.5) * size / side - 0.5
    matrix = np.zeros((side, size))
    for row, place in enumerate(centre):
        for tap in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            matrix[row, np.clip(tap, 0, size - 1)] += cubic(place - tap)
    return matrix @ image_HW @ matrix.T


def flat_patches():
    """Codes are grey levels, some of them out of range, as a decoder's output is."""
    tokenizer = patch_kmeans.Config(patch=2, vocab_size=16).build(size=24, channels=1)
    tokenizer.code_VD.copy_(torch.linspace(-1.6, 1.6, 16)[:, None].expand(-1, 4))
    return tokenizer


def llamagen():
    config = llamagen_vq.Config(
        base=32, ch_mult=(1, 1), res_blocks=1, z_channels=32, code_width=4, vocab_size=16
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = config.build(size=24, channels=3).eval()
    tokenizer.decoder.conv_out.weight.data *= 30  # beyond [-1, 1] in places
    return tokenizer


RULES = {
    flat_patches: lambda image: np.clip(np.round((image + 1) * 127.5), 0, 255),
    llamagen: lambda image: np.floor(np.clip(127.5 * image + 128, 0, 255)),
}
"""How each brings the decoder's range to bytes: to the nearest, and as LlamaGen's sampler."""


@pytest.mark.parametrize("build", RULES)
def test_samples_are_resized_before_they_are_rounded(build):
    tokenizer, rule = build(), RULES[build]
    token_BL = torch.randint(
        16, (3, tokenizer.shape.length), generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        image_BCHW = tokenizer.image(token_BL).double().numpy()
    assert np.abs(image_BCHW).max() > 1
    wanted = rule(np.array([[resized(channel, 16) for channel in image] for image in image_BCHW]))
    found = tokenizer.decode(token_BL, 16).numpy()
    assert np.abs(found - wanted).max() <= 1  # where float32 falls on the other side of a half
    assert (found != wanted).mean() < 0.01
    early = rule(image_BCHW)
    late = np.clip(np.round([[resized(x, 16) for x in image] for image in early]), 0, 255)
    assert (late != wanted).mean() > 0.05, "a test that rounding first would pass"
    assert torch.equal(tokenizer.decode(token_BL, 24), tokenizer.decode(token_BL))


def drawn(label_N, batch=100):
    """Images whose grey is their label."""
    for part in label_N.split(batch):
        yield part[:, None, None, None].expand(-1, 1, 4, 4).to(torch.uint8)


def test_any_stretch_of_an_npz_has_all_classes(tmp_path):
    """ADM's evaluator scores splits of consecutive images, each against its own mean."""
    label_N = shuffled(torch.arange(20).repeat_interleave(500), seed=3)
    assert torch.equal(label_N.sort().values, torch.arange(20).repeat_interleave(500))
    assert torch.equal(label_N, shuffled(torch.arange(20).repeat_interleave(500), seed=3))
    assert not torch.equal(label_N, shuffled(torch.arange(20).repeat_interleave(500), seed=4))
    path = tmp_path / "x.npz"
    save_npz(path, drawn(label_N), label_N, side=4)
    stored = np.load(path)
    assert sorted(stored) == ["arr_0", "arr_1"]
    assert (stored["arr_0"].shape, stored["arr_0"].dtype) == ((10_000, 4, 4, 3), np.uint8)
    assert np.array_equal(stored["arr_1"], label_N.numpy())
    assert np.array_equal(stored["arr_0"][..., 0, 0, :], np.repeat(label_N.numpy()[:, None], 3, 1))
    for split in np.split(stored["arr_1"], 20):  # 500 images, 25 of each class on average
        assert np.bincount(split, minlength=20).min() > 5


def test_an_npz_is_what_numpy_would_write(tmp_path):
    label_N = torch.arange(7)
    save_npz(tmp_path / "ours.npz", drawn(label_N, 3), label_N, side=4)
    images = torch.cat(list(drawn(label_N))).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    np.savez(tmp_path / "theirs.npz", images.numpy(), label_N.numpy())
    ours, theirs = (np.load(tmp_path / f"{name}.npz") for name in ("ours", "theirs"))
    assert ours.files == theirs.files
    for name in ours.files:
        assert ours[name].dtype == theirs[name].dtype
        assert np.array_equal(ours[name], theirs[name])


def test_images_are_gone_from_memory_when_they_are_written(tmp_path):
    label_N, alive = torch.arange(100), []

    def watched():
        for pixel_BCHW in drawn(label_N, 10):
            copy = pixel_BCHW.clone()
            alive.append(weakref.ref(copy))
            yield copy
            del copy
            assert sum(reference() is not None for reference in alive) <= 1

    save_npz(tmp_path / "x.npz", watched(), label_N, side=4)
    assert len(alive) == 10


def test_what_the_disk_cannot_hold_is_refused_before_the_first_image(tmp_path):
    label_N = torch.zeros(1, dtype=torch.long).expand(10**9)

    def never():
        raise AssertionError("drawn all the same")
        yield

    with pytest.raises(InputError, match=r"x\.npz: needs 786,440\.0 GB, but .* free some space"):
        save_npz(tmp_path / "new" / "x.npz", never(), label_N, side=512)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path):
    """The operating system's own refusal: files over 4 KiB cannot be written in the child."""
    path = tmp_path / "x.npz"
    path.write_bytes(b"old")
    script = f"""
import resource, signal, sys, torch
from pathlib import Path
from common.errors import InputError
from deploy.stages.samples_file import save_npz
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
batches = (torch.zeros(10, 1, 16, 16, dtype=torch.uint8) for _ in range(10))
try:
    save_npz(Path({str(path)!r}), batches, torch.zeros(100, dtype=torch.long), side=16)
except InputError as error:
    sys.exit(str(error))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"{path}: could not be written"), done.stderr
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.npz"]


def test_what_a_killed_command_left_of_the_same_file_is_removed(tmp_path):
    halves = [tmp_path / f".{name}.99.tmp" for name in ("x.npz", "x.npz.old", "y.npz")]
    fresh = tmp_path / ".x.npz.77.tmp"
    for path in (*halves, fresh):
        path.write_bytes(b"half")
    for path in halves:
        os.utime(path, (0, 0))
    save_npz(tmp_path / "x.npz", drawn(torch.arange(3)), torch.arange(3), side=4)
    assert {path.name for path in tmp_path.iterdir()} == {
        "x.npz",
        ".x.npz.old.99.tmp",
        ".y.npz.99.tmp",
        ".x.npz.77.tmp",
    }
