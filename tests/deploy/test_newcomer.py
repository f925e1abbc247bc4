"""The first ten minutes with one's own images: init, then every command that is printed next."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.config.schema import validate
from common.errors import InputError
from deploy.cli.first_config import choose, write_config
from deploy.cli.survey import survey
from deploy.config import RunConfig
from deploy.main import main
from deploy.run_folder.on_cpu import on_cpu
from deploy.run_folder.opening import open_run
from deploy.run_folder.shipped import shipped_names
from deploy.study.config import open_study

QUICK = [
    "pretrain.teacher.steps=3",
    "pretrain.student.steps=2",
    "learner.steps=2",
    "learner.global_batch_size=16",
    "learner.micro_batch=16",
    "rollout.batch_size=16",
    "learner.stall_seconds=120",
    "evaluate.samples=64",
    "evaluate.classifier.steps=3",
    "sample.per_class=2",
]


def make_images(root, classes, each, *, mode="RGB", size=(40, 32), suffix="png"):
    """Noise in the class's colour; every image differs."""
    generator = np.random.default_rng(len(classes) * each)
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(each):
            channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
            array = generator.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
            array[: size[1] // 2, :, 0] = 255 * number // len(classes)
            image = Image.fromarray(array[..., 0] if mode == "L" else array)
            image.save(root / name / f"{index}.{suffix}")
    return root


def typed(line):
    """The words that a shell makes of a line, after the command's name."""
    command = ["bash", "-c", f"printf '%s\\0' {line}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    name, *words = done.stdout.split("\0")[:-1]
    assert name == "varkd"
    return words


def varkd(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    out = capsys.readouterr()
    return caught.value.code, out.out, out.err


@pytest.mark.slow
def test_every_next_command_can_be_typed_as_it_is_printed(server, tmp_path):
    """From a folder with a space in its name to a grid of samples; results alone on stdout."""
    home = tmp_path / "my home"
    make_images(home / "my pets", ["cats", "dogs"], 20)
    command, seen = "varkd init 'my pets' --to 'my pets.toml'", []
    while command:
        verb = command.split()[1]
        line = command
        if verb != "init":
            local = " --local" if verb in ("tokenize", "distill") and "--local" not in line else ""
            line = f"{command}{local} {' '.join(QUICK)}"
        done = server.run(typed(line), home, seconds=120)
        assert done.code == 0, (line, done.err)
        assert "Traceback" not in done.err
        seen.append(verb)
        lines = done.out.splitlines()
        assert not [text for text in lines if re.search(r"\d+/\d+ \d+%", text)], "progress: stderr"
        names = next(text for text in lines if text.startswith("files: ")).removeprefix("files: ")
        for name in shlex.split(names.replace(",", " ")):
            assert (home / name).exists(), f"{verb} names {name}"
        following = [text for text in lines if text.startswith("next:  ")]
        command = following[-1].removeprefix("next:  ") if following else ""
        assert len(seen) < 10
    assert seen == ["init", "tokenize", "pretrain", "distill", "evaluate", "sample", "export"]


@pytest.mark.parametrize(
    ("classes", "each", "mode", "size", "expected"),
    [
        # side, patch, codes, channels, teacher's width
        (2, 20, "RGB", (64, 48), (32, 4, 128, 3, 64)),  # 2,560 patches / 20 = 128 codes
        (3, 4, "RGB", (640, 480), (32, 4, 32, 3, 64)),  # 768 patches: 32 codes have 24 each
        (2, 40, "L", (28, 28), (28, 4, 128, 1, 64)),  # 49 tokens of 80 images
        (2, 10, "RGBA", (9, 17), (8, 2, 16, 3, 64)),  # smaller than any side that is useful
        (5, 220, "RGB", (16, 16), (16, 2, 512, 3, 128)),
    ],
)
def test_a_first_config_suits_the_images(tmp_path, classes, each, mode, size, expected):
    names = [f"class {number}" for number in range(classes)]
    found = survey(make_images(tmp_path / "x", names, each, mode=mode, size=size))
    assert (found.images, found.classes) == (classes * each, tuple(names))
    assert found.sides == (min(size),) * 3
    text = write_config(found, "x.toml")
    config = validate(RunConfig, tomllib.loads(text), source="x.toml")
    tokenizer, teacher = config.tokenizer.model_dump(), config.models.teacher.model_dump()
    images = config.images
    assert (
        images.size,
        tokenizer["patch"],
        tokenizer["vocab_size"],
        images.channels,
        teacher["width"],
    ) == expected
    assert ("with transparency" in text) == (mode == "RGBA")
    assert config.models.student.model_dump()["width"] * 2 <= teacher["width"]
    assert max(map(len, text.splitlines())) <= 120
    settings = [line for line in text.splitlines() if re.match(r"(size|patch|vocab|steps)", line)]
    assert all("#" in line for line in settings), "every choice has its reason"


def test_splits_are_found_and_counted(tmp_path):
    make_images(tmp_path / "set" / "train", ["a", "b"], 30)
    make_images(tmp_path / "set" / "val", ["a", "b"], 5)
    found = survey(tmp_path / "set")
    assert (found.images, found.test_images, found.classes) == (60, 10, ("a", "b"))
    config = tomllib.loads(write_config(found, "set.toml"))
    assert config["images"]["train"] == str(tmp_path / "set" / "train")
    assert config["images"]["test"] == str(tmp_path / "set" / "val")
    assert config["evaluate"]["reference"] == "train", "ten images are too few to compare with"


def test_few_different_patches_get_few_codes(tmp_path):
    """Plain pictures: k-means refuses more codes than there are different patches."""
    for name in ("a", "b"):
        (tmp_path / "plain" / name).mkdir(parents=True)
        for index in range(200):
            tone = (index % 16) * 16 + (name == "b")
            Image.new("RGB", (32, 32), (tone, 0, 0)).save(
                tmp_path / "plain" / name / f"{index}.png"
            )
    found = survey(tmp_path / "plain")
    assert found.distinct_patches(32, 4) == 32
    assert choose(found).vocab_size == 16


def test_init_refuses_to_overwrite_and_says_what_is_missing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "pets", ["a", "b"], 3)
    code, out, err = varkd(capsys, "init", "pets")
    assert (code, out.splitlines()[0]) == (0, "6 images of 2 classes")
    before = (tmp_path / "pets.toml").read_text()
    code, out, err = varkd(capsys, "init", "pets")
    assert (code, out) == (2, "")
    assert "pets.toml: is there already; choose another name with --to" in err
    assert (tmp_path / "pets.toml").read_text() == before
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "flat" / "1.png")
    code, out, err = varkd(capsys, "init", "flat")
    assert code == 2
    assert "images without classes go into one folder" in err
    assert varkd(capsys, "init", "nowhere")[0] == 2
    assert sorted(path.name for path in tmp_path.glob("*.toml")) == ["pets.toml"]


def test_init_without_images_takes_the_digits(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = varkd(capsys, "init")
    assert code == 0
    assert out.splitlines()[0] == "1,438 images of 10 classes, 359 held out"
    config, _ = open_run(tmp_path / "digits.toml", [])
    assert (config.images.kind, config.images.size, config.images.channels) == ("digits", 8, 1)


def test_cpu_moves_tables_that_have_names_of_their_own():
    scorer = "scorers={teacher={kind='teacher'},codes={kind='token_logprob',gpus=0.5,cpus=4}}"
    moved, changes = on_cpu(open_run(Path("smoke"), [scorer])[0])
    codes = moved.scorers["codes"].model_dump()
    assert (codes["gpus"], codes["cpus"]) == (0.0, 1.0)
    assert any(change.startswith("scorers.codes.gpus 0.5 -> ") for change in changes)
    names = moved.contexts.sources.keys()
    assert names == open_run(Path("smoke"), [])[0].contexts.sources.keys()


def without_devices(tree):
    if not isinstance(tree, dict):
        return tree
    moved = ("device", "dtype")
    return {name: without_devices(value) for name, value in tree.items() if name not in moved}


@pytest.mark.parametrize("name", shipped_names())
def test_cpu_moves_a_config_to_this_machine_and_leaves_its_sizes(name):
    config, _ = open_run(Path(name), [])
    moved, changes = on_cpu(config)
    text = moved.model_dump_json()
    for word in ("cuda", "auto", "bfloat16"):
        assert f'"{word}"' not in text
    for section in (moved.tokens, moved.rollout, moved.teacher, moved.learner):
        assert section.gpus == 0
    kept = ("images", "tokenizer", "models", "pretrain", "contexts", "objective", "evaluate")
    for section in kept:
        before, after = (without_devices(c.model_dump()[section]) for c in (config, moved))
        assert after == before
    assert moved.learner.steps == config.learner.steps
    assert moved.learner.global_batch_size == config.learner.global_batch_size
    assert not moved.cluster.is_declared
    validated = RunConfig.model_validate_json(text)
    assert validated == moved
    if name.startswith("smoke"):
        assert changes == []
    else:
        types = {"rollout.dtype bfloat16 -> float32", "teacher.dtype bfloat16 -> float32"}
        assert name.startswith(("cifar", "dd")) or types & set(changes)
        assert name.startswith("cifar") or any(" cuda -> cpu" in change for change in changes)


def test_cpu_says_what_it_changed_and_the_dry_run_fits(capsys, tmp_path):
    there = ["teacher.device=cuda", "teacher.gpus=1"]
    there += ["learner.world_size=2", "rollout.dtype=bfloat16"]
    arguments = ["distill", "smoke", "--dry-run", "--out", tmp_path, *there]
    code, _, _ = varkd(capsys, *arguments)
    assert code == 2, "no such GPU here"
    code, out, err = varkd(capsys, *arguments, "--cpu")
    assert code == 0, err
    assert err == (
        "--cpu: rollout.dtype bfloat16 -> float32, teacher.gpus 1 -> 0, "
        "teacher.device cuda -> cpu, learner.world_size 2 -> 1\n"
    )
    assert "0 of 0 GPUs" in out


def test_cpu_moves_every_method_of_a_study(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(
        'base = "llamagen_l_to_b"\nseeds = [0]\nbudget = { steps = 5 }\n'
        '[cells]\ngpus = 1\n[methods.kd.objective]\nkind = "kd"\n'
        '[methods.gkd.objective]\nkind = "gkd"\n'
    )
    study = open_study(path, [])
    study.move_to_cpu()
    for run in (study.start, study.run("kd", 0, 5), study.run("gkd", 0, 5)):
        assert (run.learner.device, run.teacher.device, run.rollout.gpus) == ("cpu", "cpu", 0)
    assert study.config.cells.gpus == 0


def test_a_survey_names_the_broken_image(tmp_path):
    make_images(tmp_path / "x", ["a", "b"], 3)
    (tmp_path / "x" / "b" / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1\.png"):
        survey(tmp_path / "x")
