"""What `varkd evaluate` writes, and whether its metric orders what it must."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from building.runs import TINY

from common.errors import InputError
from deploy.report.page import to_markdown
from deploy.run_folder.opening import open_run
from deploy.run_folder.workspace import Workspace
from deploy.stages.distill import distill
from deploy.stages.evaluate import write_report

REPORT = (
    *("report.json", "report.md", "report.html"),
    *("samples.png", "curves.png", "diagnostics.png"),
)


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory, quiet):
    """A finished run with students along the way, in whose folder a killed evaluation left much."""
    root = tmp_path_factory.mktemp("reported")
    shutil.copytree(prepared, root, dirs_exist_ok=True)
    (root / "config.toml").unlink(missing_ok=True)
    config, workspace = open_run(Path("smoke"), [*TINY, "learner.export_every=2"], root)
    distill(config, workspace, quiet, local=True)
    for name in REPORT:
        (root / name).write_bytes(b"half")
        (root / f".{name}.1.tmp").write_bytes(b"half")
    return config, workspace


@pytest.fixture(scope="module")
def report(run, quiet):
    return write_report(*run, quiet)


def test_the_report_has_every_promised_number_and_picture_whatever_a_killed_one_left(run, report):
    from PIL import Image

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
    live = (run[1].root / "report.html").read_text()
    assert live.count("data:image/png;base64,") == 2
    assert f"{stored['fid']['student_after']:.4g}" in live
    assert stored["bottleneck"] in live
    stored["replaced"] = {"worker-0": {"by": "worker|2", "seconds": 3.21}}
    stored["classes_shown"] = ["![a](http://x.example/a.png)", "<b>"]
    page = to_markdown(stored)
    assert "| replaced | worker-0 by worker\\|2 after 3.2 s |" in page
    assert "2 of 10: ![a]\\(http://x.example/a.png), &lt;b&gt;." in page, "no picture, no element"


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


@pytest.fixture
def changed(run, report, tmp_path):
    """A copy of the evaluated run, for a test that changes it."""
    config, workspace = run
    shutil.copytree(workspace.root, tmp_path / "changed", symlinks=True)
    return config, Workspace(tmp_path / "changed")


def grids(workspace):
    """Pictures by tag and step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = workspace.board / "samples"
    assert len(list(folder.iterdir())) == 1, "those of an earlier evaluation are replaced"
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {
        tag: {event.step: event.encoded_image_string for event in events.Images(tag)}
        for tag in events.Tags()["images"]
    }


def test_a_second_report_has_the_same_samples_of_every_kept_step_and_no_nan(changed, capsys):
    """Labels and noise are fixed: a grid differs from another only by the weights."""
    from rich.console import Console

    config, workspace = changed
    first = grids(workspace)
    assert set(first) == {"samples/teacher", "samples/student", "samples/student_ema"}
    assert list(first["samples/student"]) == [0, 2, 4, 6]
    assert len(set(first["samples/student"].values())) == 4
    workspace.milestone("student", 4).write_bytes(b"cut off")
    with workspace.metrics.open("a") as file:
        row = '{"step": 7, "loss": NaN, "lag_mean": Infinity, "lag_max": NaN, '
        file.write(row + '"survival/student": NaN, "share/data": NaN, "time": "x"}\n')
    write_report(config, workspace, Console())
    assert "no grid of student at step 4" in " ".join(capsys.readouterr().out.split())
    del first["samples/student"][4]
    assert grids(workspace) == first
    require_whole(workspace.root)


def require_whole(root):
    """Numbers that are not finite leave the report whole."""
    text = (root / "report.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    page = (root / "report.md").read_text()
    assert "nan" not in page.lower()
    assert "staleness | mean -, max" in page


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("distill.json", "", "distill.json: expected what `varkd distill` writes, which is JSON"),
        ("distill.json", '{"steps": 6', "distill.json: expected .*, which is JSON, but found"),
        ("distill.json", "[1]", "distill.json: holds no JSON object"),
        ("distill.json", '{"steps": "six"}', "distill.json: steps is 'six', no int"),
        (
            "distill.json",
            '{"replaced": {"a": 1}}',
            "distill.json: replaced is .* by whom and after",
        ),
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
