"""The command line as a user meets it: overrides, refusals with exit code 2, whole files."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.config.schema import dump_toml, load_config
from deploy.cli.config_reference import describe
from deploy.config import RunConfig
from deploy.main import main
from deploy.run_folder.opening import open_run
from deploy.run_folder.shipped import CONFIGS

SHIPPED = sorted(CONFIGS.glob("*.toml"))


def varkd(capsys, *arguments):
    """Exit code and stderr of one command, in this process."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return caught.value.code, capsys.readouterr()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_configs_are_valid_and_survive_a_round_trip(path, tmp_path):
    config = load_config(RunConfig, path)
    copy = tmp_path / "config.toml"
    copy.write_text(dump_toml(config))
    assert load_config(RunConfig, copy) == config


def test_a_run_folders_own_config_is_the_same_run(tmp_path, monkeypatch):
    """Same digest from anywhere, although paths were relative and `out` was given."""
    monkeypatch.chdir(tmp_path)
    first, workspace = open_run(Path("cifar10"), ["images.train=data.parquet", "out=made/here"])
    assert workspace.root == tmp_path / "made" / "here"
    workspace.root.mkdir(parents=True)
    workspace.config.write_text(dump_toml(first))
    monkeypatch.chdir("/")
    again, same = open_run(workspace.root, [])
    assert (again, same.root) == (first, workspace.root)
    assert again.images.train == tmp_path / "data.parquet"


def test_overrides_are_typed_and_stand_anywhere(capsys, tmp_path):
    config, _ = open_run(
        Path("smoke"),
        ["seed=7", "learner.optimizer.betas=[0.8, 0.9]", "objective.kind=kd"],
        tmp_path,
    )
    assert (config.seed, config.learner.optimizer.betas) == (7, (0.8, 0.9))
    assert config.objective.kind == "kd"
    code, out = varkd(
        capsys, "distill", "smoke", "--dry-run", "learner.steps=3", "--out", tmp_path, "seed=9"
    )
    assert code == 0
    assert "3 steps of 128 images" in out.out
    assert "seed 9" in out.out
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.learning_rat=1", "learner.learning_rat: unknown key"),
        ("learner.step=1", "did you mean learner.steps?"),
        ("rollout.workers=many", "rollout.workers: Input should be a valid integer"),
        (
            "rollout.workers=0",
            "rollout.workers: Input should be greater than or equal to 1 (found 0)",
        ),
        ("objective.kind=kl", "no learner.objectives plug-in called"),
        ("rollout.batch_size=48", "must be a multiple of rollout.batch_size 48"),
        ("learner.publish_every=9", "publish more often or raise max_staleness"),
        ("rollout.min_workers=5", "rollout.min_workers is 5"),
        ("seed", "must look like section.key=value"),
        ("models.student.heads=5", "head width"),
        ("learner.gpus=4", "reserve 4 GPUs"),
        ("cluster.memory_gb=0.5", "the run needs about"),
        ("teacher.device=cuda", "torch sees no CUDA device"),
    ],
)
def test_bad_overrides_exit_with_a_sentence(capsys, tmp_path, override, message):
    code, out = varkd(capsys, "distill", "smoke", override, "--dry-run", "--out", tmp_path)
    assert code == 2
    assert message in out.err
    assert "Traceback" not in out.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill", "nowhere.toml"], "nowhere.toml: no such config file"),
        (["distill", "smoke", "--frobnicate"], "unknown option --frobnicate"),
        (["distill", "smoke", "--local"], "make it with `varkd tokenize`"),
        (["sample", "smoke"], "make it with `varkd tokenize`"),
        (["evaluate", "smoke"], "make it with `varkd distill`"),
        (["pretrain", "smoke"], "make it with `varkd tokenize`"),
        (["options", "learnr"], "did you mean learner?"),
    ],
)
def test_missing_files_say_which_command_makes_them(capsys, tmp_path, arguments, message):
    place = [] if arguments[0] == "options" else ["--out", tmp_path]
    code, out = varkd(capsys, *arguments, *place)
    assert code == 2
    assert message in out.err


def test_a_broken_toml_and_a_foreign_file_are_named(capsys, tmp_path, prepared):
    broken = tmp_path / "broken.toml"
    broken.write_text("[learner\n")
    code, out = varkd(capsys, "distill", broken, "--dry-run")
    assert code == 2
    assert "broken.toml: not valid TOML" in out.err
    fake = tmp_path / "fake.safetensors"
    fake.write_bytes(b"\x80\x04pickle?")
    code, out = varkd(
        capsys, "distill", prepared, "--local", "--out", prepared, f"teacher.weights={fake}"
    )
    assert code == 2
    assert "fake.safetensors: not a readable safetensors file" in out.err


def test_help_and_options_name_every_command_and_field(capsys):
    code, out = varkd(capsys, "--help")
    assert code == 0
    for command in ("smoke", "tokenize", "pretrain", "distill", "sample", "evaluate", "options"):
        assert command in out.out
    options = describe("")
    assert all(option.meaning for option in options)
    clip = "learner.optimizer.max_grad_norm (number > 0"
    assert any(option.line().startswith(clip) for option in options)
    assert all(option.key.startswith("rollout.sampling") for option in describe("rollout.sampling"))


def test_sampling_writes_a_grid_and_adms_layout(capsys, run_in, quiet):
    from PIL import Image

    from deploy.stages.distill import distill

    config, workspace = run_in()
    distill(config, workspace, quiet, local=True, resume=False)
    code, _ = varkd(capsys, "sample", workspace.root, "sample.per_class=2")
    assert code == 0
    with Image.open(workspace.root / "grid.png") as image:
        assert image.height > image.width
    target = workspace.root / "out.npz"
    arguments = ("sample", workspace.root, "--to", target, "sample.per_class=3")
    assert varkd(capsys, *arguments)[0] == 0
    first = np.load(target)["arr_0"]
    assert (first.shape, first.dtype) == ((30, 8, 8, 3), np.uint8)
    assert varkd(capsys, *arguments)[0] == 0
    assert np.array_equal(np.load(target)["arr_0"], first)
    code, out = varkd(capsys, "sample", workspace.root, "--to", workspace.root / "x.gif")
    assert code == 2
    assert "must end in .png" in out.err


def test_a_run_folder_can_be_moved_and_sampled(capsys, run_in, quiet, tmp_path):
    import shutil

    from deploy.stages.distill import distill

    config, workspace = run_in()
    distill(config, workspace, quiet, local=True, resume=False)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("config.toml", "tokenizer.safetensors", "student.safetensors"):
        shutil.copy(workspace.root / name, moved / name)
    assert varkd(capsys, "sample", moved)[0] == 0
    assert (moved / "grid.png").exists()


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(server, tmp_path):
    """The operating system's own refusal: files over 4 KiB cannot be written in the child."""
    out = tmp_path / "out"
    arguments = ["tokenize", "smoke", "--local", "tokenizer.vocab_size=32", "--out", out]
    done = server.run(arguments, tmp_path, file_bytes=4096)
    assert done.code == 2, done.err
    assert "part-00000.parquet: could not be written" in done.err
    assert "Traceback" not in done.err
    left = {path.name for path in out.rglob("*") if path.is_file()}
    assert left == {"tokenizer.safetensors"}, "only files that are complete"


def test_metrics_are_json_lines(run_in, quiet):
    from deploy.stages.distill import distill

    config, workspace = run_in()
    distill(config, workspace, quiet, local=True, resume=False)
    rows = [json.loads(line) for line in (workspace.root / "metrics.jsonl").open()]
    assert {"step", "loss", "version", "buffer/fill", "seconds/rollout"} <= set(rows[0])
