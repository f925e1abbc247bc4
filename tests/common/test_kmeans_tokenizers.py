"""The tokenizers that k-means fits: how well they reconstruct, and what they need."""

import pytest
import torch

from common.config.plugins import make
from common.errors import InputError
from common.images.opening import ImagesConfig, open_images
from common.tokenization.subsample import draw_rows

KMEANS = ["patch_kmeans", "multiscale_kmeans"]


def configure(kind, **settings):
    return make("common.tokenization.tokenizers", {"kind": kind, "vocab_size": 32, **settings})


def digits():
    return open_images(ImagesConfig(), "train")


@pytest.mark.parametrize("kind", KMEANS)
def test_fitted_codes_reconstruct_better_than_the_mean_image(kind):
    source = digits()
    fitted = configure(kind).fit(source.batches(512), size=8, channels=1, seed=3)
    pixels = source.pixels(200)
    error = (fitted.decode(fitted.encode(pixels)).float() - pixels.float()).square().mean()
    assert error < 0.3 * (pixels.float() - pixels.float().mean(0)).square().mean()


@pytest.mark.parametrize("kind", KMEANS)
def test_images_without_variety_are_refused(kind):
    flat = iter([torch.zeros(4, 1, 8, 8, dtype=torch.uint8)])
    with pytest.raises(InputError, match="only 1 different patches"):
        configure(kind).fit(flat, size=8, channels=1, seed=0)


def test_multiscale_kmeans_never_loses_by_another_round():
    def error(rounds):
        config = configure("multiscale_kmeans", vocab_size=16, rounds=rounds)
        fitted = config.fit(digits().batches(512), size=8, channels=1, seed=0)
        latent = fitted.latent(digits().pixels())
        tokens = fitted.quantize.quantise(latent)
        return float((fitted.quantize.accumulate(tokens) - latent).square().mean())

    errors = [error(rounds) for rounds in (1, 3, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.95 * errors[0]


@pytest.mark.parametrize("limit", [1, 10, 33, 99, 100, 500])
def test_rows_are_drawn_in_order_without_repeats_whatever_the_pieces(limit):
    rows = torch.arange(100)[:, None, None]
    for seed in range(3):
        drawn = [draw_rows(rows.split(size), limit, seed).flatten() for size in (1, 7, 16, 100)]
        assert all(torch.equal(drawn[0], other) for other in drawn)
        assert len(drawn[0]) == min(limit, 100)
        assert torch.equal(drawn[0], drawn[0].unique())


def test_every_row_has_the_same_chance_to_be_drawn():
    rows = torch.arange(40)
    seen = torch.bincount(torch.cat([draw_rows(rows.split(7), 8, seed) for seed in range(2000)]))
    # Binomial with 2,000 tries of 8 / 40: 400 +- 17.9; five of these for the furthest of 40 rows.
    assert (seen - 400).abs().max() < 5 * 17.9


def test_a_grid_with_a_plain_border_is_seen_whole():
    """Every eighth patch, in a grid eight patches wide, is the left border of every image."""
    noise = torch.randint(256, (64, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    noise[..., :2] = 255
    config = configure("patch_kmeans", fit_patches=64 * 64 // 8)
    fitted = config.fit(iter(noise.byte().split(16)), size=16, channels=1, seed=0)
    error = (fitted.decode(fitted.encode(noise.byte())).float() - noise).square().mean()
    assert error < 0.5 * (noise.float() - noise.float().mean()).square().mean()


def test_images_that_alternate_are_all_seen():
    """Every second image is plain, as in a set of images and masks."""
    pixels = torch.randint(256, (128, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    pixels[::2] = 0
    config = configure("multiscale_kmeans", fit_vectors=30 * 32)
    fitted = config.fit(iter(pixels.split(16)), size=8, channels=1, seed=0)
    assert len(fitted.codebook_VD.unique(dim=0)) == 32
