"""What `varkd evaluate` writes, and whether its metric orders what it must."""

import json

import pytest
import torch

from common.errors import InputError
from deploy.stages.distill import distill
from deploy.stages.evaluate import write_report

REPORT = ("report.json", "report.md", "samples.png", "curves.png", "diagnostics.png")


def test_the_report_has_every_promised_number_and_picture_whatever_a_killed_one_left(run_in, quiet):
    from PIL import Image

    run = run_in()
    distill(*run, quiet, local=True)
    for name in REPORT:
        (run[1].root / name).write_bytes(b"half")
        (run[1].root / f".{name}.1.tmp").write_bytes(b"half")
    report = write_report(*run, quiet)
    stored = json.loads((run[1].root / "report.json").read_text())
    assert stored == json.loads(json.dumps(report))
    assert stored["steps"] == 6
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
    from common.images.opening import open_images
    from deploy.stages.quality import assess
    from rollout.evaluation.metrics import measure

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


def test_tensorboard_has_the_same_samples_at_every_kept_step(run_in, quiet, capsys):
    """Labels and noise are fixed: a grid differs from another only by the weights."""
    from rich.console import Console
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, workspace = run_in("learner.export_every=2")
    distill(config, workspace, quiet, local=True)
    folder = workspace.board / "samples"

    def grids():
        write_report(config, workspace, Console())
        assert len(list(folder.iterdir())) == 1, "those of an earlier evaluation are replaced"
        events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
        return {
            tag: {event.step: event.encoded_image_string for event in events.Images(tag)}
            for tag in events.Tags()["images"]
        }

    first = grids()
    assert set(first) == {"samples/teacher", "samples/student", "samples/student_ema"}
    assert list(first["samples/student"]) == [0, 2, 4, 6]
    assert len(set(first["samples/student"].values())) == 4
    workspace.milestone("student", 4).write_bytes(b"cut off")
    second = grids()
    assert "no grid of student at step 4" in " ".join(capsys.readouterr().out.split())
    del first["samples/student"][4]
    assert second == first


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("distill.json", "", "distill.json: expected what `varkd distill` writes, which is JSON"),
        ("distill.json", '{"steps": 6', "distill.json: expected .*, which is JSON, but found"),
        ("distill.json", "[1]", "distill.json: holds no JSON object"),
        ("distill.json", '{"steps": "six"}', "distill.json: steps is 'six', no int"),
        ("distill.json", "\x00\xff", "distill.json: not valid UTF-8 at byte 1"),
        ("profiles.jsonl", '{"step": 1, "profile": 3}\n', "profiles.jsonl: row 1 holds no curves"),
    ],
)
def test_a_broken_record_of_the_run_is_named_before_anything_is_sampled(
    run_in, quiet, name, content, message
):
    run = run_in()
    (run[1].root / "distill.json").write_text("{}")
    (run[1].root / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        write_report(*run, quiet)
    assert not (run[1].root / "report.json").exists()


def test_numbers_that_are_not_finite_leave_the_report_whole(run_in, quiet):
    run = run_in()
    distill(*run, quiet, local=True)
    with (run[1].root / "metrics.jsonl").open("a") as file:
        row = '{"step": 7, "loss": NaN, "lag_mean": Infinity, "lag_max": NaN, '
        file.write(row + '"survival/student": NaN, "share/data": NaN, "time": "x"}\n')
    write_report(*run, quiet)
    text = (run[1].root / "report.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    page = (run[1].root / "report.md").read_text()
    assert "nan" not in page.lower()
    assert "staleness | mean -, max" in page
