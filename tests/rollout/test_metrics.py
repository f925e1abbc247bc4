"""Metrics of few, alike or strange images: right values, or left out by name."""

import json
import math

import numpy as np
import pytest
import torch

from common.errors import InputError
from common.perceptual.classifier import Classifier, save_classifier
from deploy.report.summary import plain
from deploy.stages.distill import distill
from deploy.stages.evaluate import write_report
from rollout.evaluation.metrics import EvaluateConfig, balanced_labels, left_out, measure

CONFIG = EvaluateConfig()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "features.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_classifier(path, Classifier(4, 3), {})
    return path


def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)


def features(path, pixel_NCHW):
    from common.perceptual.classifier import load_classifier

    with torch.no_grad():
        return load_classifier(path)[0].features(pixel_NCHW).double().numpy()


def frechet(a, b):
    """|m1 - m2|^2 + tr(C1 + C2) - 2 tr(C1^1/2 C2 C1^1/2)^1/2, by symmetric eigenvalues alone."""
    values, vectors = np.linalg.eigh(np.cov(a.T))
    half = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(half @ np.cov(b.T) @ half).clip(0)).sum()
    gap = a.mean(0) - b.mean(0)
    return gap @ gap + np.trace(np.cov(a.T) + np.cov(b.T)) - 2 * cross


def kernel_distance(a, b):
    """The unbiased estimate of the squared MMD with the kernel (x.y / d + 1)^3."""
    d, n, m = a.shape[1], len(a), len(b)
    aa, bb, ab = ((x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    off = (aa.sum() - np.trace(aa)) / (n * (n - 1)), (bb.sum() - np.trace(bb)) / (m * (m - 1))
    return sum(off) - 2 * ab.mean()


def within_third_neighbour(points, of):
    """Share of points in the ball of some one of `of` that reaches to its third neighbour."""
    apart = np.linalg.norm(of[:, None] - of[None], axis=-1)
    radius = np.sort(apart, 1)[:, 3]
    return (np.linalg.norm(points[:, None] - of[None], axis=-1) <= radius).any(1).mean()


@pytest.mark.parametrize("count", [2, 3, 4, 9, 10, 60])
def test_what_few_images_define_is_right_and_the_rest_is_left_out_by_name(classifier, count):
    fake, real = images(count), images(60, seed=1)
    found = measure(CONFIG, fake, real, classifier=classifier)
    absent = left_out(count, 60)
    assert set(found) == {"fid", "kid", "precision", "recall", "inception_score"} - set(absent)
    assert set(absent) == (
        ({"precision", "recall"} if count < 4 else set())
        | ({"inception_score"} if count < 10 else set())
    )
    a, b = features(classifier, fake), features(classifier, real)
    assert found["fid"] == pytest.approx(frechet(a, b), rel=1e-3, abs=1e-5)
    if count == 60:
        assert found["kid"] == pytest.approx(kernel_distance(a, b), rel=1e-3, abs=1e-6)
    if count >= 4:
        assert found["precision"] == pytest.approx(within_third_neighbour(a, b), abs=0.02)
        assert found["recall"] == pytest.approx(within_third_neighbour(b, a), abs=0.02)
    assert found.get("inception_score", 1) >= 1 - 1e-6


def test_few_real_images_are_counted_too():
    assert set(left_out(100, 3)) == {"precision", "recall"}
    assert left_out(100, 4) == {}
    with pytest.raises(InputError, match=r"evaluate\.reference_images: FID .* 2 real .* here 1"):
        left_out(100, 1)
    with pytest.raises(InputError, match=r"evaluate\.samples: FID .* 2 samples .* here 1"):
        left_out(1, 100)


@pytest.mark.parametrize("constant", ["samples", "real", "both"])
def test_images_that_are_all_alike_have_finite_metrics(classifier, constant):
    grey = torch.full((20, 1, 8, 8), 90, dtype=torch.uint8)
    fake, real = (
        grey if constant in (name, "both") else images(20) for name in ("samples", "real")
    )
    found = measure(CONFIG, fake, real, classifier=classifier)
    assert len(found) == 5
    assert all(math.isfinite(value) for value in found.values())
    if constant == "both":
        assert found["fid"] == pytest.approx(0, abs=1e-6)
        assert (found["precision"], found["recall"]) == (1, 1)


def test_features_that_are_no_numbers_are_refused_with_a_sentence(tmp_path):
    path = tmp_path / "features.safetensors"
    broken = Classifier(4, 3)
    broken.output.weight.data.fill_(3e38)  # finite itself, and twice of it is not
    broken.squeeze.bias.data.fill_(9.0)
    save_classifier(path, broken, {})
    with pytest.raises(InputError, match=r"features\.safetensors: gives no numbers; train another"):
        measure(CONFIG, images(20), images(20), classifier=path)


def test_real_features_are_computed_once(classifier, tmp_path):
    counts = []
    for _ in range(2):
        seen, fake, real = [], images(20), images(30, 1)
        how = {"classifier": classifier, "cache": tmp_path, "seen": lambda: seen.append(1)}  # noqa: B023
        measure(CONFIG, fake, real, **how)
        counts.append(len(seen))
    assert counts[0] >= 20 + 30
    assert 20 <= counts[1] < 20 + 30, "torch-fidelity looks at a first image once more"


@pytest.mark.parametrize(
    ("samples", "classes", "wanted"),
    [
        (7, [0, 1, 2], [0, 1, 2, 0, 1, 2, 0]),
        (4, [3, 5], [3, 5, 3, 5]),
        (3, list(range(10)), [0, 3, 6]),
        (1, [4], [4]),
    ],
)
def test_labels_are_shared_among_the_classes_that_have_images(samples, classes, wanted):
    assert balanced_labels(samples, torch.tensor(classes)).tolist() == wanted


def test_a_report_of_few_samples_says_what_it_leaves_out(run_in, quiet):
    run = run_in("evaluate.samples=5")
    distill(*run, quiet, local=True)
    write_report(*run, quiet)
    text = (run[1].root / "report.json").read_text()
    stored = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert set(stored["metrics"]["teacher"]) == {"fid", "kid", "precision", "recall"}
    assert stored["features"]["classes"] == "5 of 10"
    page = (run[1].root / "report.md").read_text()
    assert "inception_score is left out: it needs 10 samples (10 splits), has 5." in page
    assert "nan" not in page


def test_json_has_no_word_for_what_is_not_finite():
    found = plain({"a": [1.5, math.nan, {"b": (-math.inf, 2)}], "c": "nan", "d": None})
    assert found == {"a": [1.5, None, {"b": [None, 2]}], "c": "nan", "d": None}


def test_more_images_than_memory_holds_are_refused_before_any_is_drawn(run_in):
    from deploy.stages.judge import Judge

    config, workspace = run_in()
    huge = config.evaluate.model_copy(update={"samples": 10**13})
    with pytest.raises(InputError, match=r"evaluate\.samples 10,000,000,000,000 beside .* lower"):
        Judge(config.model_copy(update={"evaluate": huge}), workspace)
