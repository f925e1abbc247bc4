"""What `varkd evaluate` writes, and whether its metric orders what it must."""

import json

import torch

from deploy.distill import distill
from deploy.report import write_report


def test_the_report_has_every_promised_number_and_picture(run_in, quiet):
    from PIL import Image

    run = run_in()
    distill(*run, quiet, local=True)
    report = write_report(*run, quiet)
    stored = json.loads((run[1].root / "report.json").read_text())
    assert stored == json.loads(json.dumps(report))
    assert {"teacher", "student_before", "student_after"} <= set(stored["fid"])
    assert {"mean", "max", "dropped"} <= set(stored["staleness"])
    for key in (
        "wall_seconds",
        "steps",
        "images_per_second",
        "weights_published",
        "rollout_workers",
        "survival_rate",
        "versions",
        "config_digest",
    ):
        assert stored[key] is not None, key
    assert "not with Inception" in stored["features"]["note"]
    assert 0 < stored["survival_rate"] <= 1
    assert {"data", "student"} <= stored["final"]["confidence"].keys()
    assert stored["final"]["survival"]["student"] > 0
    for name in ("samples.png", "curves.png", "diagnostics.png"):
        with Image.open(run[1].root / name) as picture:
            assert picture.width > 300
            assert len(set(picture.convert("L").tobytes())) > 20
    page = (run[1].root / "report.md").read_text()
    assert f"{stored['fid']['student_after']:.3f}" in page


def test_evaluation_prefers_the_teacher_and_real_images(run_in, quiet):
    """The metric orders what it must: reals < a trained model < noise."""
    from common.images import open_images
    from deploy.quality import assess
    from rollout.evaluate import measure

    config, workspace = run_in("evaluate.classifier.steps=150")
    quality = assess(config, workspace, quiet)
    train = open_images(config.images, "train").pixels()
    held_out = open_images(config.images, "test").pixels()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, held_out.shape, generator=generator, dtype=torch.uint8)
    file = workspace.classifier
    real, random = (
        measure(config.evaluate, x, train, classifier=file)["fid"] for x in (held_out, noise)
    )
    assert real < quality.metrics["teacher"]["fid"] < random
