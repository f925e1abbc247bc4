"""The tokenizers that k-means fits: how well they reconstruct, and what they need."""

import pytest
import torch

from common.errors import InputError
from common.images import ImagesConfig, open_images
from common.plugins import make
from common.tokenizers.multiscale_kmeans import spaced_images

KMEANS = ["patch_kmeans", "multiscale_kmeans"]


def configure(kind, **settings):
    return make("common.tokenizers", {"kind": kind, "vocab_size": 32, **settings})


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
        tokens = fitted.quantizer.quantise(latent)
        return float((fitted.quantizer.accumulate(tokens) - latent).square().mean())

    errors = [error(rounds) for rounds in (1, 3, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.95 * errors[0]


@pytest.mark.parametrize(("limit", "stride"), [(1, 128), (10, 16), (33, 4), (50, 2), (100, 1)])
def test_images_are_sampled_evenly(limit, stride):
    """The smallest power of two as distance that keeps at most `limit` of 100 images."""
    pixels = torch.arange(100, dtype=torch.uint8)[:, None, None, None]
    found = spaced_images(iter(pixels.split(7)), limit).flatten().tolist()
    assert found == list(range(0, 100, stride))
