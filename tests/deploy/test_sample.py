"""`varkd sample`: which classes, how many, from which noise, and how the sheet shows them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import InputError
from deploy.main import main
from deploy.report.grids import CELL_PIXELS
from deploy.run_folder.opening import open_run
from deploy.stages.distill import distill
from deploy.stages.sample import choose_classes, fill, how_to_draw, take_order


def varkd(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    out = capsys.readouterr()
    return caught.value.code, out.out, out.err


@pytest.fixture(scope="module")
def distilled(prepared, tmp_path_factory, quiet, tiny_overrides):
    """A run folder with a student, made once."""
    root = tmp_path_factory.mktemp("distilled")
    for entry in prepared.iterdir():
        if entry.name != "config.toml":
            (root / entry.name).symlink_to(entry)
    config, workspace = open_run(Path("smoke"), [*tiny_overrides, "learner.steps=1"], root)
    distill(config, workspace, quiet, local=True)
    return root


def order_of(root, output="x.png", model="student", **chosen):
    config, workspace = open_run(root, [])
    asked = {"classes": None, "per_class": None, "seed": None, **chosen}
    return take_order(config, workspace, model, output=root / output, **asked)


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (None, None),
        ("2", [2]),
        ("cat,dog", [0, 1]),
        (" dog , 0", [1, 0]),
        ("10", [3]),  # a folder called 10: its name counts, not the number
        ("3", [3]),
    ],
)
def test_classes_are_names_or_numbers(words, labels):
    assert choose_classes(words, ("cat", "dog", "emu", "10"), 4) == labels


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cow", "'cow' is no class; choose names or numbers (0 to 2) of cat, dog, emu"),
        ("3", "'3' is no class"),
        ("-1", "'-1' is no class"),
        ("1.0", "'1.0' is no class"),
        ("", "'' is no class"),
        ("²", "'²' is no class"),
        ("99999999999999999999", "is no class"),
        ("cat,0", "'0' is chosen twice"),
    ],
)
def test_a_word_that_is_no_class_is_refused(words, message):
    with pytest.raises(InputError) as caught:
        choose_classes(words, ("cat", "dog", "emu"), 3)
    assert message in str(caught.value)


def test_samples_are_drawn_as_evaluation_draws_them_unless_said_otherwise():
    config, _ = open_run(Path("smoke"), ["evaluate.sampling.temperature=0.7"])
    assert how_to_draw(config) == config.evaluate.sampling
    assert how_to_draw(config).guidance is not None, "smoke evaluates with guidance 1.5"
    config, _ = open_run(Path("smoke"), ["sample.sampling.top_k=5"])
    assert (how_to_draw(config).top_k, how_to_draw(config).guidance) == (5, None)


def test_an_order_follows_the_command_line_and_then_the_config(distilled):
    order = order_of(distilled, classes="7,3", per_class=2)
    assert order.label_N.tolist() == [7, 7, 3, 3]
    assert order.names == {7: "7", 3: "3"}
    assert len(order_of(distilled).label_N) == 10 * 8
    many = order_of(distilled, output="x.npz", per_class=11)
    assert many.label_N.bincount().tolist() == [11] * 10
    assert many.label_N.tolist() != sorted(many.label_N.tolist())
    assert order_of(distilled, seed=0).seed == order_of(distilled).seed
    assert order_of(distilled, seed=1).seed != order_of(distilled).seed
    with pytest.raises(InputError, match="nothing to draw"):
        order_of(distilled, per_class=0)
    with pytest.raises(InputError, match=r"must end in \.png"):
        order_of(distilled, output="x.gif")


def test_a_sheet_shows_real_images_of_its_classes_beside_the_samples(distilled, quiet):
    config, workspace = open_run(distilled, [])
    order = order_of(distilled, output="sheet.png", classes="3,7", per_class=4)
    fill(order, config, workspace, quiet)
    with Image.open(order.output) as sheet:
        pixels = np.asarray(sheet.convert("L")).astype(int)
    # Two rows of cells, and columns for 2 real images and 4 samples beside the names.
    assert 2 * CELL_PIXELS < pixels.shape[0] < 3 * CELL_PIXELS
    assert 6 * CELL_PIXELS < pixels.shape[1] < 8 * CELL_PIXELS
    from common.images.opening import open_images

    source = open_images(config.images, config.evaluate.reference)
    row = int((source.label_N == 3).nonzero()[0])
    first = source.subset([row]).pixels()[0, 0].numpy()
    enlarged = first.repeat(6, axis=0).repeat(6, axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (48, 48))
    ends = np.flatnonzero(np.isin(np.arange(48) % 6, (0, 5)))  # of the squares of a pixel
    at = np.ix_(ends, ends)
    difference = np.abs(windows[:, :, *at] - enlarged[at]).max(axis=(2, 3))
    assert (difference <= 1).sum() == 1, "the first real three is on the sheet, once"


def test_the_seed_decides_the_noise_and_nothing_else_does(capsys, distilled):
    def drawn(name, *words):
        path = distilled / f"{name}.npz"
        code, out, err = varkd(
            capsys,
            "sample",
            distilled,
            "--to",
            path,
            "--classes",
            "3,7",
            "--per-class",
            "3",
            *words,
        )
        assert code == 0, err
        assert out.splitlines()[0] == "6 images of student, 3 of each class"
        stored = np.load(path)
        return stored["arr_0"], stored["arr_1"]

    images, labels = drawn("a")
    again, _ = drawn("b")
    other, _ = drawn("c", "--seed", "5")
    assert sorted(labels.tolist()) == [3, 3, 3, 7, 7, 7]
    assert np.array_equal(images, again)
    assert not np.array_equal(images, other)
    for words in (("--seed", "x"), ("--per-class", "-1"), ("--classes", "ten")):
        code, out, err = varkd(capsys, "sample", distilled, *words)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1


def test_a_sheet_without_the_runs_images_says_so(distilled, capsys):
    config, workspace = open_run(
        distilled, ["images.kind=folder", "images.train=/nowhere/at/all", "images.size=8"]
    )
    order = order_of(distilled, output="alone.png", classes="1", per_class=1)
    from deploy.console.progress import console

    fill(order, config, workspace, console())
    assert order.output.exists()
    assert "no column of real images: " in capsys.readouterr().err
    assert torch.equal(order.label_N, torch.tensor([1]))
